"""A place of its own for a benchmark: namespaces, cgroups and a directory that all vanish afterwards.

Everything runs in fresh PID, network, mount and cgroup namespaces. No engine can see or disturb the
machine's bridges, firewall rules, mounts or containers, and whatever happens (an error, Ctrl-C, kill -9
of the harness) the kernel ends every process and drops every interface, rule and mount. What the kernel
keeps, the directory and the cgroups, the outer process removes.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG = 1

libc = ctypes.CDLL(None, use_errno=True)


def check(result, what):
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def unshare(flags):
    check(libc.unshare(flags), "unshare")


def mount(source, target, kind=None, flags=0, data=None):
    encode = lambda text: text.encode() if text is not None else None  # noqa: E731
    check(libc.mount(encode(source), encode(str(target)), encode(kind), flags, encode(data)), f"mount {target}")


def unmount(target):
    check(libc.umount2(str(target).encode(), MNT_DETACH), f"umount {target}")


class CgroupTree:
    """One cgroup below our own in every hierarchy; it becomes the root of the cgroup namespace."""

    def __init__(self):
        self.name = f"vessel-bench-{os.getpid()}"
        self.v1 = []  # (mount point, options for mounting it again)
        self.unified = None
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, target, kind, options = line.split()[:4]
            if kind == "cgroup":
                names = [o for o in options.split(",") if o not in ("rw", "relatime", "nosuid", "nodev", "noexec", "xattr", "clone_children")]
                self.v1.append((target, ",".join(names)))
            elif kind == "cgroup2":
                self.unified = target

    @property
    def usable(self):
        """On a pure cgroup v2 machine the inner-process rule forbids this; engines use the root there."""
        return bool(self.v1)

    def directories(self):
        own = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, names, path = line.split(":", 2)
            own[names] = path
        for target, names in self.v1:
            yield Path(target + own.get(names, "/")) / self.name
        if self.unified:
            yield Path(self.unified + own.get("", "/")) / self.name

    def join(self):
        for directory in self.directories():
            directory.mkdir()
            if "cpuset" in str(directory):
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (directory / file).write_text((directory.parent / file).read_text())
            (directory / "cgroup.procs").write_text("0")

    def mount_again(self, root):
        mount("tmpfs", root, "tmpfs", data="mode=755")
        for target, names in self.v1:
            inside = root / Path(target).name
            inside.mkdir()
            mount("cgroup", inside, "cgroup", data=names)
        if self.unified:
            inside = root / Path(self.unified).name
            inside.mkdir()
            mount("cgroup2", inside, "cgroup2")

    def remove(self):
        for top in self.directories():
            for path, _, _ in os.walk(top, topdown=False):
                for _ in range(50):
                    with contextlib.suppress(OSError):
                        os.rmdir(path)
                    if not os.path.exists(path):
                        break
                    time.sleep(0.02)
                else:
                    print(f"bench: cgroup {path} could not be removed", file=sys.stderr)


def enter_namespaces(cgroups):
    """The second process: it has its cgroups already and becomes the parent of PID 1."""
    flags = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWPID
    if cgroups.usable:
        flags |= CLONE_NEWCGROUP
    unshare(flags)


def prepare_mounts(cgroups):
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc")
    # The new network namespace shows in a new sysfs only.
    mount("sysfs", "/sys", "sysfs")
    root = Path("/sys/fs/cgroup")
    if cgroups.usable:
        cgroups.mount_again(root)
    else:
        mount("cgroup2", root, "cgroup2")
    # Engines put sockets and locks here without asking.
    for directory in ("/run", "/var/lib/containers", "/var/lib/cni"):
        if os.path.isdir(directory):
            mount("tmpfs", directory, "tmpfs", data="mode=755")


def prepare_network():
    """Loopback, and a default route into nowhere: engines look for one."""
    for arguments in (
        ["link", "set", "lo", "up"],
        ["link", "add", "uplink", "type", "veth", "peer", "name", "nowhere"],
        ["addr", "add", "192.0.2.2/24", "dev", "uplink"],
        ["link", "set", "uplink", "up"],
        ["link", "set", "nowhere", "up"],
        ["route", "add", "default", "via", "192.0.2.1"],
    ):
        status = os.spawnvp(os.P_WAIT, "ip", ["ip", *arguments])
        if status != 0:
            raise OSError(f"ip {' '.join(arguments)} failed with status {status}")


def exit_code(status):
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_inside(work, parent):
    """Runs `work(directory)` in the sandbox; its result is the exit code.

    Three processes: the outer one, which cleans up; one that has unshared, and its child, PID 1 of the
    namespace, which reaps orphans; and below that the one that does the work.
    """
    directory = Path(tempfile.mkdtemp(prefix="vessel-bench-", dir=parent))
    cgroups = CgroupTree()
    middle = os.fork()
    if middle == 0:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            if cgroups.usable:
                cgroups.join()
            enter_namespaces(cgroups)
            first = os.fork()
            if first == 0:
                die_with_parent()
                os._exit(pid_1(work, directory, cgroups))
            os._exit(exit_code(os.waitpid(first, 0)[1]))
        except BaseException as error:  # the traceback would be the outer process's, run a second time
            print(f"bench: cannot make the sandbox: {error}", file=sys.stderr)
            os._exit(1)

    def stop(signum, _frame):
        os.kill(middle, signal.SIGKILL)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    code = exit_code(os.waitpid(middle, 0)[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    cgroups.remove()
    shutil.rmtree(directory, ignore_errors=True)
    if directory.exists():
        print(f"bench: {directory} could not be removed completely", file=sys.stderr)
    if code >= 128:
        print("bench: interrupted; everything it started is gone", file=sys.stderr)
    return code


def pid_1(work, directory, cgroups):
    try:
        prepare_mounts(cgroups)
        prepare_network()
    except OSError as error:
        print(f"bench: cannot prepare the sandbox: {error}", file=sys.stderr)
        return 1
    worker = os.fork()
    if worker == 0:
        code = 1
        try:
            code = work(directory)
        except Exception:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while True:
        pid, status = os.waitpid(-1, 0)
        if pid == worker:
            return exit_code(status)
