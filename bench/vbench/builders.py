"""Builders: Vessel's, dockerd's two (the classic one, and BuildKit inside dockerd), and Buildah's.

Each is a command line that builds a directory; the engines behind them are those of the run. Buildah works on Podman's
storage, where the base image is.
"""

import os
import shutil
import subprocess
from pathlib import Path

from .engines import PODMAN_PREFIX


class Builder:
    def __init__(self, name, engine, command, build_flags=(), uncached_flags=("--no-cache",), base=None):
        self.name = name
        self.launcher = engine.launcher
        self.command = [*command, *build_flags]
        self.uncached_flags = list(uncached_flags)
        self.base = base or engine.image

    def build(self, directory, *flags, cached=True):
        """Builds a directory; the whole command is timed."""
        more = [] if cached else self.uncached_flags
        command = [*self.command, *more, *flags, "-t", "bench-build:latest", str(directory)]
        return self.launcher.run(command, timeout=600)

    def build_counted(self, directory):
        """The same, with the bytes that the command read and wrote by any means that the kernel counts."""
        command = [*self.command, "-t", "bench-build:latest", str(directory)]
        # A shell's own counters have those of the children that it has waited for.
        script = '"$@" >/dev/null && cat "/proc/$$/io"'
        result = self.launcher.run(["sh", "-c", script, "sh", *command], timeout=600, capture=True)
        fields = dict(line.split(": ") for line in result.output.splitlines() if ": " in line)
        return result.seconds, int(fields["rchar"]), int(fields["wchar"])


def docker_with_buildkit():
    """A docker program that builds by BuildKit: one with buildx, or one that has the client built in."""
    for directory in [*os.environ["PATH"].split(":"), "/usr/bin"]:
        program = Path(directory) / "docker"
        if not os.access(program, os.X_OK):
            continue
        says = subprocess.run([program, "build", "--help"], env={**os.environ, "DOCKER_BUILDKIT": "1"}, capture_output=True, text=True)
        if "--secret" in says.stdout and says.returncode == 0:
            return str(program)
    return None


def builders(bench):
    """Those of the engines that take part."""
    found = []
    for engine in bench.engines:
        if engine.name == "vessel":
            found.append(Builder("vessel", engine, [*engine.cli, "build"], ["--quiet"]))
        elif engine.name == "docker":
            address = f"unix://{engine.socket}"
            classic = ["env", "DOCKER_BUILDKIT=0", "docker", "-H", address, "build"]
            found.append(Builder("docker", engine, classic, ["--quiet"]))
            program = docker_with_buildkit()
            if program:
                command = ["env", "DOCKER_BUILDKIT=1", program, "-H", address, "build"]
                found.append(Builder("buildkit", engine, command, ["--quiet"]))
            else:
                bench.record.leave_out("build", "buildkit", "no docker program here builds by BuildKit")
        elif engine.name == "podman":
            if shutil.which("buildah") is None:
                bench.record.leave_out("build", "buildah", "not installed")
                continue
            command = [
                "buildah",
                "--root", str(engine.directory / "root"),
                "--runroot", str(engine.run_directory),
                "--storage-driver", "overlay",
                "bud", "--layers", "--pull-never", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024",
            ]  # fmt: skip
            found.append(Builder("buildah", engine, command, ["--quiet"], base=PODMAN_PREFIX + "busybox:latest"))
    return found
