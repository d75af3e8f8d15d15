"""`push` of three layers with a Debian system to docker-registry on loopback, another image and another repository
in each round: nothing can be mounted, everything is sent."""

import os

from ..bundle import make_large_image
from ..measure import interleave, say
from . import registry

NAME = "push"
ABOUT = "push of three layers, about 160 MB, to a registry on loopback"
WARMUPS = 1


def measure(bench):
    if why := registry.missing():
        say(f"{NAME}: skipped: {why}")
        return
    source = bench.options.archive or make_large_image(bench.directory)
    rounds = bench.rounds(5)
    with registry.serving(bench.directory) as address:
        for at, engine in enumerate(bench.engines):
            for number in range(WARMUPS + rounds):
                archive = bench.directory / f"push-{number}.tar"
                name = f"{address}/push-{engine.name}-{number}:1"
                # Other layers for each engine: what one has sent, another need not send.
                registry.three_layers(source, archive, name, f"{at}-{number}")
                engine.load(archive)
                archive.unlink()
        turns = {engine.name: iter(range(WARMUPS + rounds)) for engine in bench.engines}

        def sample(engine):
            os.sync()
            return registry.command(engine, "push", f"{address}/push-{engine.name}-{next(turns[engine.name])}:1")

        interleave(bench.record, "push", bench.engines, rounds, WARMUPS, sample)
