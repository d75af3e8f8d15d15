#!/bin/sh
# Entry point of the image made by postgres.sh: fills an empty data directory as Docker Hub's image does, with the user
# POSTGRES_USER, POSTGRES_PASSWORD and the database POSTGRES_DB, runs /docker-entrypoint-initdb.d/*.sql and *.sh, then
# becomes the server. POSTGRES_HOST_AUTH_METHOD=trust does without a password; POSTGRES_INITDB_ARGS are initdb's.
set -eu

# A server's options alone mean the server.
case ${1-} in
-*) set -- postgres "$@" ;;
esac
if [ "${1-}" != postgres ]; then
    exec "$@"
fi

data=${PGDATA:-/var/lib/postgresql/data}
export PGDATA="$data"
if [ "$(id -u)" = 0 ]; then
    install -d -o postgres -g postgres -m 700 "$data"
    # For the server's socket: /run of an image may be empty, or hidden by a tmpfs.
    install -d -o postgres -g postgres -m 2775 /run/postgresql
    # What an earlier start, or a volume of another host, left to others.
    find "$data" ! -user postgres -exec chown postgres:postgres {} +
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

run_scripts() {
    for script in /docker-entrypoint-initdb.d/*; do
        case $script in
        *.sh)
            echo "entrypoint: running $script" >&2
            sh "$script"
            ;;
        *.sql)
            echo "entrypoint: running $script" >&2
            psql --username "$user" --dbname "$database" --no-psqlrc --set ON_ERROR_STOP=1 --file "$script"
            ;;
        esac
    done
}

if [ ! -s "$data/PG_VERSION" ]; then
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    method=${POSTGRES_HOST_AUTH_METHOD:-scram-sha-256}
    if [ -z "${POSTGRES_PASSWORD-}" ] && [ "$method" != trust ]; then
        echo "entrypoint: $data is empty and POSTGRES_PASSWORD is not set; set it with -e" >&2
        exit 1
    fi
    password=$(mktemp)
    printf '%s\n' "${POSTGRES_PASSWORD:-unused}" >"$password"
    # shellcheck disable=SC2086 # several words
    initdb --username="$user" --pwfile="$password" --auth-local=trust --auth-host="$method" ${POSTGRES_INITDB_ARGS-} >&2
    rm -f "$password"
    printf 'host all all all %s\n' "$method" >>"$data/pg_hba.conf"
    # Nobody but this script reaches it before it is ready: no TCP.
    pg_ctl --wait --options='-c listen_addresses=' start >&2
    if [ "$database" != postgres ]; then
        createdb --username "$user" --maintenance-db postgres -- "$database"
    fi
    export PGUSER="$user" PGDATABASE="$database"
    run_scripts
    unset PGUSER PGDATABASE
    pg_ctl --mode=fast --wait stop >&2
    echo "PostgreSQL init process complete; ready for start up." >&2
fi
exec "$@"
