"""`load` of an uncompressed Debian docker-archive, removed again after each sample."""

import json
import os
import tarfile

from ..bundle import make_large_image
from ..measure import interleave

NAME = "load"
ABOUT = "load of a Debian docker-archive of about 160 MB"


def measure(bench):
    archive = bench.options.archive or make_large_image(bench.directory)
    with open(archive, "rb") as file:
        while file.read(1 << 20):  # into the page cache, for all alike
            pass

    with tarfile.open(archive) as file:
        name = json.load(file.extractfile("manifest.json"))[0]["RepoTags"][0]

    def sample(engine):
        # What an earlier load wrote must not be written back during this one.
        os.sync()
        seconds = engine.load(archive).seconds
        engine.remove_image(name)
        return seconds

    interleave(bench.record, "load", bench.engines, bench.rounds(5), 1, sample)
