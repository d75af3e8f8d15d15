#!/bin/bash
# The exercises of docs/exercises.md, one after the other, each checked; ends with 0 when all went well.
#
#     images/debian.sh | vessel load
#     images/exercises/walk.sh
#
# ENGINE is the client to use (`vessel`; `docker` works, too), PORT the first of two ports to publish on.

set -euo pipefail
cd "$(dirname "$0")"
read -ra engine <<<"${ENGINE:-vessel}"
port=${PORT:-8080}
work=$(mktemp -d)
failed=0

e() { "${engine[@]}" "$@"; }

clean() {
    e rm -f walk-web walk-flask walk-box >/dev/null 2>&1 || true
    e rmi -f walk-apache walk-flask walk-curl walk-root >/dev/null 2>&1 || true
}
trap 'clean; rm -rf "$work"' EXIT
clean

# step WHAT COMMAND...: says how it went; what it printed only when it failed.
step() {
    local what=$1
    shift
    local begin=$EPOCHREALTIME
    if "$@" >"$work/log" 2>&1; then
        printf 'ok    %-60s %6.1f s\n' "$what" "$(bc <<<"$EPOCHREALTIME - $begin")"
    else
        printf 'FAIL  %s\n' "$what"
        sed 's/^/      /' "$work/log" | tail -n 20
        failed=1
    fi
}

# page PORT TEXT: waits until the page there has the text.
page() {
    local try
    for try in $(seq 50); do
        curl --silent --fail --max-time 2 "http://127.0.0.1:$1/" >"$work/page" && break
        sleep 0.2
    done
    cat "$work/page"
    grep -q -- "$2" "$work/page"
}

# says TEXT COMMAND...: the command's output has the text.
says() {
    local text=$1
    shift
    "$@" 2>&1 | tee "$work/said"
    grep -q -- "$text" "$work/said"
}

step 'build Apache from a Dockerfile' e build -t walk-apache apache
step 'run it with -p' e run -d --name walk-web -p "$port:80" walk-apache
step 'fetch its page' page "$port" 'It works, in a container'
step 'build it again: all from the cache' e build -t walk-apache apache
step 'its history has the steps' says 'apt-get install -y apache2' e history --no-trunc walk-apache
step 'build Flask with app.py' e build -t walk-flask flask
step 'run it with -p and -e' e run -d --name walk-flask -p "$((port + 1)):5000" -e GREETING=Bonjour walk-flask
step 'fetch its page' page "$((port + 1))" 'Bonjour from Flask'
step 'look at its log' says 'Running on' e logs walk-flask
step 'apt-get install in a container' \
    e run --name walk-box debian sh -c 'apt-get update && apt-get install -y --no-install-recommends curl'
step 'commit it' e commit -m 'curl is in it' -c 'ENTRYPOINT ["curl"]' walk-box walk-curl
step 'run what was committed' says '^curl ' e run --rm walk-curl --version
step 'save it' e save -o "$work/image.tar" walk-curl
step 'remove it' e rmi walk-curl
step 'load it' e load -i "$work/image.tar"
step 'run what was loaded' says '^curl ' e run --rm walk-curl --version
step 'export a container' e export -o "$work/root.tar" walk-box
step 'import its root' e import -c 'CMD ["curl", "--version"]' "$work/root.tar" walk-root
step 'run what was imported' says '^curl ' e run --rm walk-root
exit "$failed"
