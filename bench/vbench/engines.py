"""Vessel and its peers: how each is started, stopped, and told to do the same thing.

An engine has a launcher, a `cli` (the start of its command line) and, with a daemon, a socket. All state
is below the run's directory; the daemons are children of this process.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

from . import procs, sandbox
from .api import ApiError, Client
from .launcher import Launcher

PODMAN_PREFIX = "localhost/"
ARCHIVE_NAME = "busybox:latest"


def in_memory(directory):
    """A directory on a tmpfs, as /run is, where all engines keep by default what need not survive a reboot."""
    directory.mkdir()
    sandbox.mount("tmpfs", directory, "tmpfs", 0, "mode=755")
    return directory


class EngineFailed(Exception):
    """An engine could not be started."""


class Engine:
    """What the command lines have in common; they all follow Docker's."""

    name = ""
    image = ARCHIVE_NAME
    run_flags = ()
    hide_unified = False
    has_daemon = False

    def __init__(self, directory):
        self.directory = directory / self.name
        self.directory.mkdir()
        self.run_directory = in_memory(self.directory / "run")
        self.launcher = Launcher(self.directory, self.name, self.hide_unified)
        self.cli = []

    @classmethod
    def missing(cls, options):
        """Why this engine cannot take part, or nothing."""
        return None

    def start(self):
        pass

    def stop(self):
        self.launcher.close()

    def load(self, archive):
        return self.launcher.run([*self.cli, "load", "-q", "-i", str(archive)], timeout=300)

    def run_command(self, network, command):
        return [*self.cli, "run", "--rm", "--network", network, *self.run_flags, self.image, *command]

    def version(self):
        return self.launcher.run([*self.cli, "--version"], capture=True).output.strip()


class DaemonEngine(Engine):
    has_daemon = True

    def __init__(self, directory):
        super().__init__(directory)
        self.socket = self.directory / "api.sock"
        self.process = None
        self.api = Client(self.socket)

    def daemon_command(self):
        raise NotImplementedError

    def spawn(self):
        with (self.directory / "daemon.log").open("ab") as log:
            self.process = subprocess.Popen(self.daemon_command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def running(self):
        """Ids of the running containers; ApiError or OSError while the daemon does not answer."""
        return [c["Id"] for c in self.api.call("GET", "/v1.40/containers/json", timeout=60)]

    def wait_for(self, count=0, limit=120):
        """Seconds until the daemon lists at least `count` running containers."""
        start = time.perf_counter()
        while True:
            with contextlib.suppress(OSError, ApiError):
                if len(self.running()) >= count:
                    return time.perf_counter() - start
            if self.process.poll() is not None:
                raise EngineFailed(f"the {self.name} daemon ended with {self.process.returncode}: {self.last_log()}")
            if time.perf_counter() - start > limit:
                raise EngineFailed(f"the {self.name} daemon did not list {count} containers within {limit} s: {self.last_log()}")
            time.sleep(0.001)

    def last_log(self):
        return (self.directory / "daemon.log").read_text(errors="replace")[-800:].strip()

    def start(self):
        self.spawn()
        self.wait_for()

    def stop_daemon(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def stop(self):
        self.stop_daemon()
        super().stop()

    def remove_containers(self, ids):
        for container in ids:
            with contextlib.suppress(ApiError, OSError):
                self.api.call("DELETE", f"/v1.40/containers/{container}?force=1&v=1")

    def remove_image(self, name):
        self.launcher.run([*self.cli, "rmi", name])

    def daemon_pids(self):
        return [self.process.pid]

    def container_pids(self):
        """Processes of ours (of theirs) that exist per container; not the container's own."""
        raise NotImplementedError


class Docker(DaemonEngine):
    name = "docker"

    def __init__(self, directory):
        super().__init__(directory)
        self.cli = ["docker", "-H", f"unix://{self.socket}"]

    @classmethod
    def missing(cls, options):
        absent = [p for p in ("docker", "dockerd", "containerd", "runc") if not shutil.which(p)]
        return f"not installed: {', '.join(absent)}" if absent else None

    def daemon_command(self):
        return [
            "dockerd",
            "--data-root", str(self.directory / "data"),
            "--exec-root", str(self.run_directory),
            "--pidfile", str(self.directory / "dockerd.pid"),
            "-H", f"unix://{self.socket}",
            "--bip", "10.213.0.1/16",
            "--storage-driver", "overlay2",
            "--live-restore",
        ]  # fmt: skip

    def version(self):
        version = self.api.call("GET", "/version")
        parts = [f"{c['Name']} {c['Version']}" for c in version.get("Components", [])]
        return f"{super().version()}; {', '.join(parts) or version['Version']}"

    def daemon_pids(self):
        return [p for p in procs.all_pids() if os.path.basename(procs.executable(p)) in ("dockerd", "containerd")]

    def container_pids(self):
        return [p for p in procs.all_pids() if os.path.basename(procs.executable(p)).startswith("containerd-shim")]


class Podman(Engine):
    name = "podman"
    image = PODMAN_PREFIX + ARCHIVE_NAME
    hide_unified = True
    # Without these it asks for more than a host without CAP_SYS_RESOURCE can give.
    run_flags = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--pull", "never")

    def __init__(self, directory):
        super().__init__(directory)
        self.cli = [
            "podman",
            "--root", str(self.directory / "root"),
            "--runroot", str(self.run_directory),
            "--tmpdir", str(self.run_directory / "tmp"),
            "--storage-driver", "overlay",
            "--cgroup-manager", "cgroupfs",
            "--events-backend", "file",
            "--runtime", "crun",
        ]  # fmt: skip

    @classmethod
    def missing(cls, options):
        absent = [p for p in ("podman", "crun", "conmon") if not shutil.which(p)]
        return f"not installed: {', '.join(absent)}" if absent else None

    def remove_image(self, name):
        self.launcher.run([*self.cli, "rmi", PODMAN_PREFIX + name])


class Vessel(DaemonEngine):
    name = "vessel"
    path = None

    def __init__(self, directory):
        super().__init__(directory)
        self.cli = [self.path, "-H", f"unix://{self.socket}"]

    @classmethod
    def missing(cls, options):
        cls.path = str(Path(options.vessel).resolve())
        return None if os.access(cls.path, os.X_OK) else f"{options.vessel} is not there; build it with: cargo build --release"

    def daemon_command(self):
        return [
            self.path, "daemon",
            "--root", str(self.directory / "data"),
            "--run", str(self.run_directory),
            "--socket", str(self.socket),
            "--bridge", "vessel-bench0",
        ]  # fmt: skip

    def container_pids(self):
        # The shim executes the binary through a mount of its own, so its path says nothing.
        program = os.stat(self.path)
        return [p for p in procs.all_pids() if p != self.process.pid and procs.same_program(p, program)]


class Runtime:
    """An OCI runtime's command line: `run --bundle DIRECTORY ID`."""

    def __init__(self, name, command, directory, hide_unified=False):
        self.name = name
        state = in_memory(directory / f"state-{name}")
        self.command = [*command, "--root", str(state), "run", "--bundle"]
        self.version_command = [*command, "--version"]
        self.launcher = Launcher(directory, f"runtime-{name}", hide_unified)

    def run(self, bundle, container):
        # youki 0.7 sometimes waits for ever for a program that has ended already.
        return self.launcher.run([*self.command, str(bundle), container], timeout=3)

    def version(self):
        return self.launcher.run(self.version_command, capture=True).output.strip()

    def stop(self):
        self.launcher.close()


ENGINES = {engine.name: engine for engine in (Vessel, Docker, Podman)}
PEERS = ("docker", "podman", "crun", "runc", "youki")
RUNTIMES = ("vessel", "crun", "runc", "youki")


def make_runtime(name, options, directory):
    """The runtime, or the reason why it takes no part."""
    if name == "vessel":
        reason = Vessel.missing(options)
        return reason or Runtime(name, [Vessel.path, "runtime"], directory)
    program = options.youki if name == "youki" else name
    path = shutil.which(program)
    if path is None:
        return "not installed"
    return Runtime(name, [path], directory, hide_unified=name == "crun")
