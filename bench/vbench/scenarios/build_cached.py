"""A build of ten steps that all come from the cache: what is run dozens of times a day."""

from ..builders import builders
from ..measure import interleave

NAME = "build-cached"
ABOUT = "build of a Dockerfile of ten steps, all cached"

DOCKERFILE = """\
FROM {base}
WORKDIR /app
ENV MODE=production
COPY list.txt ./
RUN while read -r name; do mkdir -p "lib/$name"; done < list.txt
COPY src ./src
RUN find src -type f | sort > manifest
RUN sha256sum $(cat manifest) > sums
ENV VERSION=1
COPY start.sh /usr/local/bin/
RUN chmod 755 /usr/local/bin/start.sh
CMD ["/usr/local/bin/start.sh"]
"""


def make_context(directory, base, dockerfile=DOCKERFILE):
    directory.mkdir(parents=True)
    (directory / "Dockerfile").write_text(dockerfile.format(base=base))
    (directory / "list.txt").write_text("".join(f"package-{n}\n" for n in range(50)))
    (directory / "start.sh").write_text("#!/bin/sh\nexec sh\n")
    for number in range(200):
        file = directory / f"src/part-{number // 20}/file-{number}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"content of {number}\n" * 50)


def measure(bench):
    subjects = builders(bench)
    contexts = {}
    for subject in subjects:
        contexts[subject.name] = bench.directory / "build-cached" / subject.name
        make_context(contexts[subject.name], subject.base)

    def sample(subject):
        return subject.build(contexts[subject.name]).seconds

    # The first one fills the cache.
    interleave(bench.record, "build-cached", subjects, bench.rounds(15), 2, sample)
