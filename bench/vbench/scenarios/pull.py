"""`pull` of three layers with a Debian system from docker-registry on loopback, another image in each round.

It ends when the image can be run: what an engine leaves for later is not looked for. As in `load`, nothing is
removed in between.
"""

import os
import subprocess

from ..bundle import make_large_image
from ..measure import interleave, say
from . import registry

NAME = "pull"
ABOUT = "pull of three layers, about 160 MB, from a registry on loopback"
WARMUPS = 1


def measure(bench):
    if why := registry.missing():
        say(f"{NAME}: skipped: {why}")
        return
    source = bench.options.archive or make_large_image(bench.directory)
    rounds = bench.rounds(5)
    with registry.serving(bench.directory) as address:
        for number in range(WARMUPS + rounds):
            archive = bench.directory / f"pull-{number}.tar"
            registry.three_layers(source, archive, f"pull:{number}", number)
            subprocess.run(
                ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"docker-archive:{archive}", f"docker://{address}/pull:{number}"],
                check=True,
            )
            archive.unlink()
        turns = {engine.name: iter(range(WARMUPS + rounds)) for engine in bench.engines}

        def sample(engine):
            os.sync()
            return registry.command(engine, "pull", f"{address}/pull:{next(turns[engine.name])}")

        interleave(bench.record, "pull", bench.engines, rounds, WARMUPS, sample)
