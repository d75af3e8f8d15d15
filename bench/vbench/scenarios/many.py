"""500 running containers: the cost of the last one, memory, and the daemon's restart."""

import os
import statistics
import time

from .. import procs
from ..api import create_and_start
from ..measure import say

NAME = "many"
ABOUT = "500 running containers: cost of the 500th, memory of ours, restart of the daemon"


def measure(bench):
    # Idle memory first, of a fresh daemon that has an image and no containers.
    for engine in bench.daemons:
        engine.stop_daemon()
        engine.start()
        time.sleep(1)
        bench.record.add("memory-daemon-idle", engine.name, procs.total_pss_kb(engine.daemon_pids()), "kB")
    for engine in bench.daemons:
        try:
            one_engine(bench, engine, bench.options.many)
        except Exception as error:
            bench.record.leave_out("many", engine.name, error)


def one_engine(bench, engine, count):
    record = bench.record
    ids = []
    try:
        seconds = []
        for number in range(count):
            seconds.append(engine.api.chains([create_and_start(engine.image, ["sleep", "3600"], bench.options.many_network, ids)]))
            record.add("start-nth", engine.name, seconds[-1] * 1000, "ms")
            if number % 100 == 99:
                say(f"  many: {engine.name}: {number + 1} containers, the last 20 {statistics.median(seconds[-20:]) * 1000:.4g} ms each")
        edge = min(20, count // 2)
        # The very first start may find everything cold; the median of the first twenty is the fair base.
        record.add("start-500th", engine.name, statistics.median(seconds[-edge:]) / statistics.median(seconds[:edge]), "ratio")

        running = len(engine.running())
        if running != count:
            raise RuntimeError(f"{running} of {count} containers run")
        shims = engine.container_pids()
        if len(shims) < count:
            raise RuntimeError(f"only {len(shims)} of the engine's processes were found for {count} containers")
        record.add("memory-per-container", engine.name, procs.total_pss_kb(shims) / count, "kB")
        record.add("processes-per-container", engine.name, len(shims) / count, "")
        record.add("memory-daemon-500", engine.name, procs.total_pss_kb(engine.daemon_pids()), "kB")
        for _ in range(bench.rounds(20)):
            # Without what this process needs to understand the answer.
            record.add("list-500", engine.name, engine.api.seconds("GET", "/v1.40/containers/json") * 1000, "ms")

        for _ in range(bench.rounds(3)):
            engine.stop_daemon()
            os.sync()
            engine.spawn()
            record.add("restart-to-ps", engine.name, engine.wait_for(count) * 1000, "ms")
            time.sleep(1)
    finally:
        engine.remove_containers(ids)
    say(
        f"  many: {engine.name}: 500th/1st {record.median('start-500th', engine.name):.3g}, "
        f"{record.median('memory-per-container', engine.name):.4g} kB each, "
        f"restart to ps {record.median('restart-to-ps', engine.name):.4g} ms"
    )
