#!/bin/bash
# A Flask application on Debian's Python, `flask:latest`; counts visits in the volume /data:
#
#     images/flask.sh | vessel load
#     vessel run -d -p 5000:5000 -v visits:/data flask
#     curl http://127.0.0.1:5000/

. "$(dirname "$0")/lib.sh"

debian_root "$work/layer.tar" python3-flask \
    "install -D -m 644 '$(dirname "$0")/flask-app.py' \"\$1/app/app.py\"" \
    'mkdir "$1/data"'
docker_archive flask:latest "$work/layer.tar" "{
\"Cmd\":[\"flask\",\"--app\",\"app\",\"run\",\"--host\",\"0.0.0.0\",\"--port\",\"5000\"],
\"Env\":[\"PATH=$default_path\",\"PYTHONUNBUFFERED=1\"],
\"WorkingDir\":\"/app\",
\"ExposedPorts\":{\"5000/tcp\":{}},
\"Volumes\":{\"/data\":{}}}" "${1:--}"
