"""Starts commands and measures them from outside: posix_spawn to wait, with the monotonic clock.

Each engine has a launcher, a small process forked early, so that a large harness process makes nothing
slower, and so that an engine that needs a different view of the machine gets it at no cost per command.
"""

import os
import pickle
import shutil
import signal
import struct
import time
from dataclasses import dataclass

from . import sandbox


class CommandFailed(Exception):
    """A measured command did not do its work; a figure from it would be worthless."""


@dataclass
class Outcome:
    seconds: float
    status: int
    output: str


class Launcher:
    def __init__(self, directory, name, hide_unified=False):
        self.log = str(directory / f"{name}.stderr")
        self.out = str(directory / f"{name}.stdout")
        self.hide_unified = hide_unified
        request, response = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(request[1])
            os.close(response[0])
            try:
                self.serve(request[0], response[1])
            finally:
                os._exit(1)
        os.close(request[0])
        os.close(response[1])
        self.request, self.response = request[1], response[0]

    def close(self):
        # Not by closing the pipe: launchers forked later hold its other end too.
        send(self.request, None)
        os.waitpid(self.pid, 0)
        os.close(self.request)
        os.close(self.response)

    def run(self, argv, timeout=120, capture=False):
        """Runs a command to its end; raises CommandFailed when it does not end well."""
        send(self.request, (argv, timeout, capture))
        result = receive(self.response)
        if isinstance(result, Exception):
            raise CommandFailed(f"{' '.join(argv)}: {result}")
        if result.status != 0:
            raise CommandFailed(f"{' '.join(argv)}: exit status {result.status}: {result.output.strip()[-600:]}")
        return result

    # In the launcher's own process from here on.

    def serve(self, request, response):
        sandbox.die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self.hide_unified and os.path.ismount("/sys/fs/cgroup/unified"):
            # crun and Podman refuse a hybrid hierarchy.
            sandbox.unshare(sandbox.CLONE_NEWNS)
            sandbox.mount("none", "/", flags=sandbox.MS_REC | sandbox.MS_PRIVATE)
            sandbox.unmount("/sys/fs/cgroup/unified")
        while True:
            message = receive(request)
            if message is None:
                os._exit(0)
            try:
                send(response, self.measure(*message))
            except OSError as error:
                send(response, error)

    def measure(self, argv, timeout, capture):
        path = shutil.which(argv[0])
        if path is None:
            raise FileNotFoundError(f"{argv[0]} is not installed")
        write = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, self.out if capture else "/dev/null", write, 0o600),
            (os.POSIX_SPAWN_OPEN, 2, self.log, write, 0o600),
        ]
        child = 0
        expired = False

        def expire(_signal, _frame):
            nonlocal expired
            expired = True
            os.kill(child, signal.SIGKILL)

        signal.signal(signal.SIGALRM, expire)
        signal.alarm(timeout)
        start = time.perf_counter()
        child = os.posix_spawn(path, argv, os.environ, file_actions=actions)
        _, status = os.waitpid(child, 0)
        seconds = time.perf_counter() - start
        signal.alarm(0)
        if expired:
            raise TimeoutError(f"did not end within {timeout} s")
        code = sandbox.exit_code(status)
        output = read(self.log) if code != 0 else read(self.out) if capture else ""
        return Outcome(seconds, code, output)


def read(path):
    with open(path, errors="replace") as file:
        return file.read()


def send(fd, message):
    data = pickle.dumps(message)
    os.write(fd, struct.pack("I", len(data)) + data)


def receive(fd):
    header = os.read(fd, 4)
    if len(header) < 4:
        return None
    size = struct.unpack("I", header)[0]
    data = b""
    while len(data) < size:
        data += os.read(fd, size - len(data))
    return pickle.loads(data)
