"""100 containers created and started at once by one client over 100 connections of the Engine API."""

from ..api import create_and_start
from ..measure import interleave

NAME = "start-100"
ABOUT = "100 containers started at once, containers per second"


def measure(bench):
    count = bench.options.at_once

    def sample(engine):
        ids = []
        try:
            seconds = engine.api.chains(
                [create_and_start(engine.image, ["sleep", "3600"], "bridge", ids) for _ in range(count)]
            )
            running = len(engine.running())
            if running != count:
                raise RuntimeError(f"{running} of {count} containers run")
            return count / seconds
        finally:
            engine.remove_containers(ids)

    interleave(bench.record, "start-100", bench.daemons, bench.rounds(3), 0, sample, unit="/s", scale=1)
