"""`run --rm IMAGE /bin/true`, the whole command, with each kind of network."""

from ..measure import interleave

NAME = "run-rm"
ABOUT = "run --rm IMAGE /bin/true with bridge, none and host networks"


def measure(bench):
    for network in ("bridge", "none", "host"):
        interleave(
            bench.record,
            f"run-{network}",
            bench.engines,
            bench.rounds(20),
            3,
            lambda engine: engine.launcher.run(engine.run_command(network, ["/bin/true"])).seconds,
        )
