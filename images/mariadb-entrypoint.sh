#!/bin/sh
# Entry point of the image made by mariadb.sh: fills an empty data directory, sets the root password
# (MARIADB_ROOT_PASSWORD) and a first database (MARIADB_DATABASE), then becomes the server.
set -eu

if [ "${1-}" != mariadbd ]; then
    exec "$@"
fi
shift

data=/var/lib/mysql
if [ ! -d "$data/mysql" ]; then
    if [ -z "${MARIADB_ROOT_PASSWORD-}" ]; then
        echo "entrypoint: $data is empty and MARIADB_ROOT_PASSWORD is not set; set it with -e" >&2
        exit 1
    fi
    chown mysql:mysql "$data"
    echo "entrypoint: initialising $data" >&2
    mariadb-install-db --user=mysql --datadir="$data" --skip-test-db \
        --auth-root-authentication-method=normal >&2
    # In SQL text a quote is doubled; NO_BACKSLASH_ESCAPES makes that the only special character.
    password=$(printf %s "$MARIADB_ROOT_PASSWORD" | sed "s/'/''/g")
    # Read by the server that is started below, at its first start.
    init=/run/mysqld/first-start.sql
    (umask 077 && cat >"$init" && chown mysql "$init") <<END
SET @@SESSION.SQL_MODE=CONCAT(@@SESSION.SQL_MODE, ',NO_BACKSLASH_ESCAPES');
ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';
CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '$password';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;
${MARIADB_DATABASE:+CREATE DATABASE IF NOT EXISTS \`$(printf %s "$MARIADB_DATABASE" | sed 's/`/``/g')\`;}
END
    set -- --init-file="$init" "$@"
fi
exec mariadbd --user=mysql --datadir="$data" "$@"
