#!/bin/bash
# Redis from Debian's packages, `redis:latest`; data in the volume /data:
#
#     images/redis.sh | vessel load
#     vessel run -d --name redis -p 127.0.0.1:6379:6379 redis
#     vessel exec redis redis-cli ping

. "$(dirname "$0")/lib.sh"

debian_root "$work/layer.tar" redis-server \
    'mkdir "$1/data" && chroot "$1" chown redis:redis /data'
# Protected mode would answer only on the container's own loopback.
docker_archive redis:latest "$work/layer.tar" "{
\"Cmd\":[\"redis-server\",\"--protected-mode\",\"no\",\"--dir\",\"/data\"],
\"Env\":[\"PATH=$default_path\"],
\"User\":\"redis\",
\"WorkingDir\":\"/data\",
\"ExposedPorts\":{\"6379/tcp\":{}},
\"Volumes\":{\"/data\":{}}}" "${1:--}"
