"""`load` of an uncompressed Debian docker-archive, another one in each round.

Nothing is removed in between. A removal would be measured with the next load: file systems discard and
forget what was freed long after the command has ended, and ext4 without a journal avoids inodes that were
freed in the last minutes one by one.
"""

import hashlib
import io
import json
import os
import tarfile

from ..bundle import make_large_image
from ..measure import interleave

NAME = "load"
ABOUT = "load of a Debian docker-archive of about 160 MB"
WARMUPS = 1


def member(archive, name):
    return archive.extractfile(name).read()


def add(archive, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def variant(source, target, number):
    """A copy of a docker-archive with one file more in its top layer: to every engine it is an image it has
    never seen."""
    with tarfile.open(source) as archive:
        item = json.loads(member(archive, "manifest.json"))[0]
        config = json.loads(member(archive, item["Config"]))
        layers = [bytearray(member(archive, name)) for name in item["Layers"]]
    top = layers[-1]
    # Up to the empty blocks at the end.
    del top[(len(top.rstrip(b"\0")) + 511) // 512 * 512 :]
    extra = io.BytesIO()
    with tarfile.open(fileobj=extra, mode="w") as archive:
        add(archive, f"round-{number}", b"")
    top += extra.getvalue()
    config["rootfs"]["diff_ids"][-1] = f"sha256:{hashlib.sha256(top).hexdigest()}"
    raw = json.dumps(config).encode()
    names = [f"{index}/layer.tar" for index in range(len(layers))]
    config_name = f"{hashlib.sha256(raw).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [f"bench-load:{number}"], "Layers": names}]
    with tarfile.open(target, "w") as archive:
        for name, layer in zip(names, layers):
            add(archive, name, layer)
        add(archive, config_name, raw)
        add(archive, "manifest.json", json.dumps(manifest).encode())


def measure(bench):
    source = bench.options.archive or make_large_image(bench.directory)
    rounds = bench.rounds(5)
    archives = [bench.directory / f"load-{number}.tar" for number in range(WARMUPS + rounds)]
    for number, archive in enumerate(archives):
        variant(source, archive, number)
    turns = {engine.name: iter(archives) for engine in bench.engines}

    def sample(engine):
        archive = next(turns[engine.name])
        with open(archive, "rb") as file:
            while file.read(1 << 20):  # into the page cache, for all alike
                pass
        # What others wrote must not be written back during this one.
        os.sync()
        return engine.load(archive).seconds

    interleave(bench.record, "load", bench.engines, rounds, WARMUPS, sample)
    for archive in archives:
        archive.unlink()
