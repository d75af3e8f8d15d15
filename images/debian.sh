#!/bin/bash
# Debian 12 as small as it gets with apt, `debian:latest`:
#
#     images/debian.sh | vessel load
#
# PACKAGES adds packages: PACKAGES=curl,procps images/debian.sh

. "$(dirname "$0")/lib.sh"

debian_root "$work/layer.tar" "${PACKAGES:-ca-certificates}"
docker_archive debian:latest "$work/layer.tar" "{\"Cmd\":[\"bash\"],\"Env\":[\"PATH=$default_path\"]}" "${1:--}"
