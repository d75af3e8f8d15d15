"""Three stages that need nothing of each other and a fourth that takes from all, nothing cached."""

from ..builders import builders
from ..measure import interleave
from .build_cached import make_context

NAME = "build-cold"
ABOUT = "build of three independent stages, nothing cached"

STAGE = """\
FROM {base} AS {name}
WORKDIR /work
COPY src ./src
RUN for n in $(seq 300); do echo "$n" > "file-$n"; done
RUN head -c 40000000 /dev/zero | sha256sum > sum
RUN tar -cf out.tar src file-*
"""
STAGES = ("one", "two", "three")


def dockerfile(base):
    stages = [STAGE.format(base=base, name=name) for name in STAGES]
    last = [f"FROM {base}\n", *(f"COPY --from={name} /work/out.tar /{name}.tar\n" for name in STAGES)]
    return "".join([*stages, *last])


def measure(bench):
    subjects = builders(bench)
    contexts = {}
    for subject in subjects:
        contexts[subject.name] = bench.directory / "build-cold" / subject.name
        make_context(contexts[subject.name], subject.base, "")
        (contexts[subject.name] / "Dockerfile").write_text(dockerfile(subject.base))

    def sample(subject):
        return subject.build(contexts[subject.name], cached=False).seconds

    interleave(bench.record, "build-cold", subjects, bench.rounds(5), 1, sample)
