"""The web application of every course: one page, with the container's name on it."""

import os
import socket

from flask import Flask

app = Flask(__name__)


@app.route("/")
def hello():
    greeting = os.environ.get("GREETING", "Hello")
    return f"<h1>{greeting} from Flask</h1><p>I am container {socket.gethostname()}.</p>\n"


if __name__ == "__main__":
    app.run(host="0.0.0.0", port=5000)
