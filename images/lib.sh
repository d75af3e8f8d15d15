# Sourced by the scripts beside it: how a root file system becomes a docker-archive, the format of
# `docker save`, with standard tools only.
#
# A script that sources this writes its archive to the file given as its first argument, or to stdout
# when there is none or it is `-`; messages go to stderr.

set -euo pipefail
umask 022

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# need PROGRAM PACKAGE: ends the script with what to install when a program is missing.
need() {
    command -v "$1" >/dev/null || die "$1 is missing; install it with: apt-get install $2"
}

# tar_directory DIRECTORY FILE: the directory as a layer. The same tree gives the same bytes.
tar_directory() {
    tar --create --file "$2" --directory "$1" --sort=name --numeric-owner --owner=0 --group=0 \
        --mtime=@0 --format=gnu .
}

# debian_root FILE PACKAGE,... [HOOK...]: a Debian 12 root as a tar. A HOOK is shell text that runs
# outside of the root, which it gets as $1.
debian_root() {
    local file=$1 packages=$2 hook
    shift 2
    need mmdebstrap mmdebstrap
    local hooks=()
    for hook; do hooks+=(--customize-hook="$hook"); done
    mmdebstrap --quiet --variant=minbase --include="$packages" \
        --skip=output/dev --skip=cleanup/reproducible \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
        "${hooks[@]}" \
        --customize-hook='rm -rf "$1"/var/lib/apt/lists/* "$1"/var/cache/apt/*.bin "$1"/var/log/*.log' \
        bookworm "$file" >&2
}

# docker_archive NAME LAYER CONFIG [OUTPUT]: CONFIG is the JSON of the image's `config` object.
docker_archive() {
    local name=$1 layer=$2 config=$3 output=${4:--}
    local diff_id created id
    created=$(date --utc --date="@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)
    diff_id=$(sha256sum <"$layer" | cut -d' ' -f1)
    mkdir -p "$work/archive/$diff_id"
    mv "$layer" "$work/archive/$diff_id/layer.tar"
    printf '%s' "{\"architecture\":\"amd64\",\"os\":\"linux\",\"created\":\"$created\",\"config\":$config,\
\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$diff_id\"]},\
\"history\":[{\"created\":\"$created\",\"created_by\":\"images/${0##*/}\"}]}" >"$work/config.json"
    id=$(sha256sum <"$work/config.json" | cut -d' ' -f1)
    mv "$work/config.json" "$work/archive/$id.json"
    printf '%s' "[{\"Config\":\"$id.json\",\"RepoTags\":[\"$name\"],\"Layers\":[\"$diff_id/layer.tar\"]}]" \
        >"$work/archive/manifest.json"
    if [ "$output" = - ]; then
        [ ! -t 1 ] || die "refusing to write an archive to a terminal; name a file or pipe it into: vessel load"
    fi
    # manifest.json first: a reader of a stream then knows at once what to expect.
    tar --create --file "$output" --directory "$work/archive" --numeric-owner --owner=0 --group=0 --mtime=@0 \
        --format=gnu manifest.json "$id.json" "$diff_id/layer.tar"
}

default_path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
