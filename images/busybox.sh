#!/bin/bash
# A small image with a shell, `busybox:latest`, made from the host's static busybox:
#
#     images/busybox.sh | vessel load
#     vessel run -it --rm busybox
#
# BUSYBOX names another static busybox.

. "$(dirname "$0")/lib.sh"

busybox=${BUSYBOX:-$(command -v busybox || true)}
[ -n "$busybox" ] || die "busybox is missing; install it with: apt-get install busybox-static"
if LC_ALL=C ldd "$busybox" >/dev/null 2>&1; then
    die "$busybox needs shared libraries; install a static one with: apt-get install busybox-static"
fi

root=$work/root
mkdir -p "$root"/{bin,dev,etc,home,proc,sys,usr/bin,usr/sbin,var/log,var/spool}
mkdir -m 700 "$root/root"
mkdir -m 1777 "$root/tmp" "$root/var/tmp"
mkdir "$root/run" "$root/sbin"
install -m 755 "$busybox" "$root/bin/busybox"
"$busybox" --list-full | while read -r applet; do
    case $applet in
        bin/busybox | busybox | */busybox) ;;
        */*) mkdir -p "$root/${applet%/*}" && ln -sf /bin/busybox "$root/$applet" ;;
        *) ln -sf /bin/busybox "$root/bin/$applet" ;;
    esac
done
cat >"$root/etc/passwd" <<'END'
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
operator:x:37:37:operator:/var:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
END
cat >"$root/etc/group" <<'END'
root:x:0:
daemon:x:1:
tty:x:5:
disk:x:6:
www-data:x:33:
users:x:100:
nogroup:x:65534:
END
printf 'root:*:::::::\n' >"$root/etc/shadow" && chmod 640 "$root/etc/shadow"

tar_directory "$root" "$work/layer.tar"
docker_archive busybox:latest "$work/layer.tar" \
    "{\"Cmd\":[\"sh\"],\"Env\":[\"PATH=$default_path\"]}" "${1:--}"
