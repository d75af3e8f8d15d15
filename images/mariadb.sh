#!/bin/bash
# MariaDB from Debian's packages, `mariadb:latest`; data in the volume /var/lib/mysql:
#
#     images/mariadb.sh | vessel load
#     vessel run -d --name db -e MARIADB_ROOT_PASSWORD=secret -e MARIADB_DATABASE=shop mariadb
#     vessel exec -it db mariadb -psecret shop

. "$(dirname "$0")/lib.sh"

entrypoint=$(dirname "$0")/mariadb-entrypoint.sh
debian_root "$work/layer.tar" mariadb-server \
    "install -m 755 '$entrypoint' \"\$1/usr/local/bin/entrypoint\"" \
    'rm -rf "$1"/var/lib/mysql/* "$1"/var/lib/mysql/.[a-z]*' \
    'chroot "$1" chown mysql:mysql /var/lib/mysql' \
    'sed -i "s/^bind-address/#bind-address/" "$1/etc/mysql/mariadb.conf.d/50-server.cnf"'
docker_archive mariadb:latest "$work/layer.tar" "{
\"Entrypoint\":[\"entrypoint\"],
\"Cmd\":[\"mariadbd\"],
\"Env\":[\"PATH=$default_path\"],
\"ExposedPorts\":{\"3306/tcp\":{}},
\"Volumes\":{\"/var/lib/mysql\":{}}}" "${1:--}"
