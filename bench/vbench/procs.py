"""Processes of an engine and the memory they cost, from /proc.

The harness runs in a PID namespace of its own, so what has a name here belongs to the run.
"""

import os
from pathlib import Path


def all_pids():
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def executable(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


def same_program(pid, program):
    """Whether a process executes the file with this stat(2) result, whatever its path is there."""
    try:
        return os.path.samestat(os.stat(f"/proc/{pid}/exe"), program)
    except OSError:
        return False


def pss_kb(pid):
    """Proportional set size: what the process would free, shared pages split among their users."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    return 0


def total_pss_kb(pids):
    total = 0
    for pid in pids:
        try:
            total += pss_kb(pid)
        except OSError:
            continue  # it has ended since the list was made
    return total
