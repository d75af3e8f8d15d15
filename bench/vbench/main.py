"""Options, the set-up of the engines, and the run."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from . import machine, report, sandbox
from .bundle import REPOSITORY, make_image
from .engines import ENGINES, PEERS, RUNTIMES, make_runtime
from .launcher import CommandFailed
from .measure import Record, say
from .scenarios import ALL

DEFAULT_VESSEL = REPOSITORY / "target/x86_64-unknown-linux-gnu/release/vessel"


class Bench:
    """What a scenario gets."""

    def __init__(self, options, directory):
        self.options = options
        self.directory = directory
        self.record = Record()
        self.engines = []
        self.runtimes = []

    @property
    def daemons(self):
        return [engine for engine in self.engines if engine.has_daemon]

    def rounds(self, usual):
        """The number of samples of a scenario that usually takes `usual`."""
        return max(2, round(usual * self.options.scale))


def parse():
    parser = argparse.ArgumentParser(prog="bench/run", description="Runs Vessel and its peers side by side.")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=f"any of: {', '.join(ALL)} (default: all)")
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument("--only", metavar="ENGINES", help="'peers', or names separated by commas: vessel, docker, podman, crun, runc, youki")
    parser.add_argument("--vessel", default=DEFAULT_VESSEL, help="the vessel program (default: the release build)")
    parser.add_argument("--youki", default="youki", help="the youki program (default: from PATH)")
    parser.add_argument("--archive", type=Path, help="docker-archive of debian:latest for `load` (default: made by images/debian.sh)")
    parser.add_argument("--scale", type=float, default=1, help="times the usual number of samples (default: 1)")
    parser.add_argument("--at-once", type=int, default=100, help="containers of `start-100` (default: 100)")
    parser.add_argument("--many", type=int, default=500, help="containers of `many` (default: 500)")
    parser.add_argument("--many-network", default="bridge", help="their network (default: bridge)")
    parser.add_argument("--clients-seconds", type=float, default=60, help="how long `clients` takes for each engine (default: 60)")
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), help="where the engines' state goes (default: /var/tmp)")
    parser.add_argument("--output", type=Path, help="the file for raw results (default: bench/runs/DATE-REVISION.json; - for none)")
    options = parser.parse_args()
    for name in options.scenarios:
        if name not in ALL:
            parser.error(f"there is no scenario {name}; there are {', '.join(ALL)}")
    wanted = ["vessel", *PEERS]
    if options.only:
        wanted = list(PEERS) if options.only == "peers" else options.only.split(",")
        for name in wanted:
            if name not in ("vessel", *PEERS):
                parser.error(f"there is no engine {name}; there are vessel, {', '.join(PEERS)}")
    options.wanted = wanted
    options.scenarios = options.scenarios or list(ALL)
    return options


def main():
    options = parse()
    if options.list:
        for module in ALL.values():
            print(f"{module.NAME:10} {module.ABOUT}")
        return 0
    if os.geteuid() != 0:
        sys.exit("bench: must run as root: the engines make namespaces, mounts and cgroups")
    return sandbox.run_inside(lambda directory: measure(options, directory), options.work)


def set_up(bench):
    options = bench.options
    needs_engines = any(name not in ("oci-run", "registry") for name in options.scenarios)
    if needs_engines:
        archive = make_image(bench.directory)
        for name in options.wanted:
            kind = ENGINES.get(name)
            if kind is None:
                continue
            reason = kind.missing(options)
            if reason:
                bench.record.leave_out("all", name, reason)
                continue
            engine = kind(bench.directory)
            try:
                engine.start()
                engine.load(archive)
                bench.engines.append(engine)
            except Exception as error:
                bench.record.leave_out("all", name, error)
                engine.stop()
    if "oci-run" in options.scenarios:
        for name in RUNTIMES:
            if name not in options.wanted:
                continue
            runtime = make_runtime(name, options, bench.directory)
            if isinstance(runtime, str):
                bench.record.leave_out("oci-run", name, runtime)
            else:
                bench.runtimes.append(runtime)


def measure(options, directory):
    description = machine.describe()
    bench = Bench(options, directory)
    try:
        set_up(bench)
        versions = {}
        for subject in [*bench.engines, *bench.runtimes]:
            try:
                versions[subject.name] = subject.version()
            except CommandFailed as error:
                versions[subject.name] = str(error)
        for name in options.scenarios:
            say(f"{name}: {ALL[name].ABOUT}")
            ALL[name].measure(bench)
    finally:
        for subject in [*bench.engines, *bench.runtimes]:
            try:
                subject.stop()
            except (OSError, subprocess.SubprocessError) as error:
                say(f"bench: {subject.name} did not stop: {error}")
    print(report.table(bench.record))
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("list", "output")}
    if str(options.output) != "-":
        stamp = description["date"][:16].replace(":", "").replace("T", "-")
        revision = description["revision"][:10] or "unversioned"
        path = options.output or REPOSITORY / "bench/runs" / f"{stamp}-{revision}.json"
        report.write(path, description, versions, settings, bench.record)
        print(f"\nRaw results: {os.path.relpath(path)}")
    return 0
