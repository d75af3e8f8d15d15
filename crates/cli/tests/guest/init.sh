#!/bin/sh
# PID 1 of the guest: makes the system that checks expect, runs them, powers off.
/bin/busybox --install -s /bin
export PATH=/bin

if [ "$1" = second ]; then
    mount -t proc -o nosuid,nodev,noexec proc /proc
    mount -t sysfs -o nosuid,nodev,noexec sysfs /sys
    mount -t devtmpfs -o nosuid devtmpfs /dev
    mkdir -p /dev/pts /dev/shm
    mount -t devpts -o ptmxmode=666 devpts /dev/pts
    mount -t tmpfs tmpfs /dev/shm
    mount -t tmpfs tmpfs /run
    mount -t tmpfs tmpfs /tmp
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
    ip link set lo up
    while read -r name; do
        options=
        [ "$name" = brd ] && options="rd_nr=3 rd_size=65536"
        # shellcheck disable=SC2086
        insmod "/modules/$name.ko" $options || echo "guest: the module $name cannot be loaded"
    done </modules/order
    # A file system on a block device: 6.1 cannot map owners on a tmpfs. (The second RAM disk is for I/O limits, the third for quotas.)
    mkdir /data
    mke2fs /dev/ram0 65536 >/dev/null && mount -t ext4 /dev/ram0 /data
    for word in $(cat /proc/cmdline); do
        case "$word" in checks=?*) export VESSEL_GUEST_ONLY="${word#checks=}" ;; esac
    done
    VESSEL_GUEST=1 checks inside::in_the_guest --exact --ignored --nocapture --test-threads=1
    poweroff -f
fi

# The root of an initramfs cannot be left by pivot_root(2), which is what a runtime does. It must work there, too...
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t devtmpfs devtmpfs /dev
seen=$(vessel runtime --root /first/state run --bundle /first first 2>&1 | tr '\n' ' ')
# The firmware has left the cursor in a line of its own.
echo
if [ "$seen" = "bin dev proc " ]; then
    echo "CHECK on-initramfs ok"
else
    echo "CHECK on-initramfs fail $seen"
fi
umount /dev /sys/fs/cgroup /sys /proc

# ...but is not how machines are: go on in a mount of it that has a parent.
mkdir /second
mount --bind / /second
cd /second
mount --move . /
exec chroot . /init second
