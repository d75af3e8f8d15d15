#!/bin/sh
# Entry point of the image made by mariadb.sh: fills an empty data directory, sees to the root password
# (MARIADB_ROOT_PASSWORD) and a database (MARIADB_DATABASE) at every start, then becomes the server.
set -eu

if [ "${1-}" != mariadbd ]; then
    exec "$@"
fi
shift

data=/var/lib/mysql
install -d -o mysql -g mysql /run/mysqld
if [ ! -d "$data/mysql" ]; then
    if [ -z "${MARIADB_ROOT_PASSWORD-}" ]; then
        echo "entrypoint: $data is empty and MARIADB_ROOT_PASSWORD is not set; set it with -e" >&2
        exit 1
    fi
    chown mysql:mysql "$data"
    echo "entrypoint: initialising $data" >&2
    mariadb-install-db --user=mysql --datadir="$data" --skip-test-db \
        --auth-root-authentication-method=normal >/dev/null
fi

if [ -n "${MARIADB_ROOT_PASSWORD-}" ]; then
    # The server executes this when it starts. In SQL text a quote is doubled; NO_BACKSLASH_ESCAPES makes
    # it the only special character. No statement fails when what it makes is there already.
    password=$(printf %s "$MARIADB_ROOT_PASSWORD" | sed "s/'/''/g")
    statements=/run/mysqld/start.sql
    (umask 077 && cat >"$statements") <<END
SET @@SESSION.SQL_MODE=CONCAT(@@SESSION.SQL_MODE, ',NO_BACKSLASH_ESCAPES');
ALTER USER 'root'@'localhost' IDENTIFIED BY '$password';
CREATE USER IF NOT EXISTS 'root'@'%' IDENTIFIED BY '$password';
ALTER USER 'root'@'%' IDENTIFIED BY '$password';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;
${MARIADB_DATABASE:+CREATE DATABASE IF NOT EXISTS \`$(printf %s "$MARIADB_DATABASE" | sed 's/`/``/g')\`;}
END
    chown mysql:mysql "$statements"
    set -- --init-file="$statements" "$@"
fi
exec mariadbd --user=mysql --datadir="$data" "$@"
