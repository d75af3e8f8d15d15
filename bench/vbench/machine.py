"""Where and of what a run was made."""

import datetime
import os
import platform
import subprocess
from pathlib import Path

from .bundle import REPOSITORY


def git(*arguments):
    result = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else ""


def field(file, name):
    for line in Path(file).read_text().splitlines():
        if line.startswith(name):
            return line.split(":", 1)[1].strip()
    return ""


def describe():
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "revision": git("rev-parse", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--untracked-files=no")),
        "machine": {
            "cpu": field("/proc/cpuinfo", "model name"),
            "cpus": os.cpu_count(),
            "memory_kb": int(field("/proc/meminfo", "MemTotal").split()[0]),
            "kernel": platform.release(),
            "system": release.get("PRETTY_NAME", "").strip('"'),
            "load_before": os.getloadavg()[0],
        },
    }
