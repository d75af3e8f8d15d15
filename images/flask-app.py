"""Counts visits in a file under /data, so that a volume shows, and says which container answered."""

import fcntl
import pathlib
import socket

from flask import Flask, jsonify

app = Flask(__name__)
visits = pathlib.Path("/data/visits")


@app.get("/")
def index():
    with visits.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        count = int(file.read() or 0) + 1
        file.truncate(0)
        file.write(str(count))
    return jsonify(host=socket.gethostname(), visits=count)


@app.get("/health")
def health():
    return "ok\n"
