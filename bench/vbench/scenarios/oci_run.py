"""`run` of a bundle by each OCI runtime: no daemon, no image, no network set-up."""

import itertools

from ..bundle import make_bundle
from ..measure import interleave

NAME = "oci-run"
ABOUT = "an OCI runtime's `run` of a bundle with a static true"


def measure(bench):
    bundle = make_bundle(bench.directory)
    numbers = itertools.count()
    interleave(
        bench.record,
        "oci-run",
        bench.runtimes,
        bench.rounds(40),
        3,
        lambda runtime: runtime.run(bundle, f"bench{next(numbers)}").seconds,
    )
