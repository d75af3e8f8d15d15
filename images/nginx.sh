#!/bin/bash
# nginx from Debian's packages, `nginx:latest`; serves /var/www/html on port 80:
#
#     images/nginx.sh | vessel load
#     vessel run -d -p 8080:80 -v "$PWD/site:/var/www/html:ro" nginx

. "$(dirname "$0")/lib.sh"

debian_root "$work/layer.tar" nginx-light \
    'ln -sf /dev/stdout "$1/var/log/nginx/access.log" && ln -sf /dev/stderr "$1/var/log/nginx/error.log"' \
    'echo "nginx on Debian 12 works." >"$1/var/www/html/index.html"'
docker_archive nginx:latest "$work/layer.tar" "{
\"Cmd\":[\"nginx\",\"-g\",\"daemon off;\"],
\"Env\":[\"PATH=$default_path\"],
\"ExposedPorts\":{\"80/tcp\":{}},
\"StopSignal\":\"SIGQUIT\"}" "${1:--}"
