#!/bin/bash
# PostgreSQL from Debian's packages, `postgres:latest`, with the variables of Docker Hub's image; data in the volume
# /var/lib/postgresql/data:
#
#     images/postgres.sh | vessel load
#     vessel run -d --name db -e POSTGRES_PASSWORD=secret -e POSTGRES_DB=shop postgres
#     vessel exec -it db psql -U postgres shop

. "$(dirname "$0")/lib.sh"

entrypoint=$(dirname "$0")/postgres-entrypoint.sh
# No cluster is made while the packages are installed: the entry point makes one, in the volume.
debian_root "$work/layer.tar" postgresql \
    "install -m 755 '$entrypoint' \"\$1/usr/local/bin/docker-entrypoint.sh\"" \
    'rm -rf "$1"/var/lib/postgresql/* "$1"/etc/postgresql/*' \
    'for program in "$1"/usr/lib/postgresql/*/bin/*; do ln -sf "${program#"$1"}" "$1/usr/local/bin/"; done' \
    'chroot "$1" install -d -o postgres -g postgres -m 700 /var/lib/postgresql/data' \
    'chroot "$1" install -d /docker-entrypoint-initdb.d' \
    'sed -i "s/^#listen_addresses = .*/listen_addresses = '"'*'"'/" "$1"/usr/share/postgresql/*/postgresql.conf.sample'
docker_archive postgres:latest "$work/layer.tar" "{
\"Entrypoint\":[\"docker-entrypoint.sh\"],
\"Cmd\":[\"postgres\"],
\"Env\":[\"PATH=$default_path\",\"LANG=C.UTF-8\",\"PGDATA=/var/lib/postgresql/data\"],
\"ExposedPorts\":{\"5432/tcp\":{}},
\"StopSignal\":\"SIGINT\",
\"Volumes\":{\"/var/lib/postgresql/data\":{}}}" "${1:--}"
