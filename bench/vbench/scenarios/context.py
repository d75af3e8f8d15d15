"""A context of 1 GB that was built before, with one file changed: what is read and sent again."""

import os

from ..builders import builders
from ..measure import interleave

NAME = "context"
ABOUT = "build of a 1 GB context with one changed file"

FILES = 1000
SIZE = 1 << 20


def measure(bench):
    subjects = builders(bench)
    context = bench.directory / "context"
    context.mkdir()
    for number in range(FILES):
        directory = context / f"part-{number // 50}"
        directory.mkdir(exist_ok=True)
        (directory / f"file-{number}").write_bytes(os.urandom(SIZE))
    dockerfiles = {}
    for subject in subjects:
        dockerfiles[subject.name] = f"FROM {subject.base}\nCOPY . /data\n"
    turn = 0

    def sample(subject):
        nonlocal turn
        turn += 1
        (context / "Dockerfile").write_text(dockerfiles[subject.name])
        (context / "part-3/file-150").write_bytes(os.urandom(SIZE))
        seconds, read, written = subject.build_counted(context)
        if turn > len(subjects):
            bench.record.add("context-read", subject.name, read / 1e6, "MB")
            bench.record.add("context-sent", subject.name, written / 1e6, "MB")
        return seconds

    interleave(bench.record, "context-time", subjects, bench.rounds(3), 1, sample)
