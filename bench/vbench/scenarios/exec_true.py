"""`exec CONTAINER true` in a container that runs."""

from ..measure import interleave

NAME = "exec"
ABOUT = "exec of true in a running container"


def measure(bench):
    name = "bench-exec"
    ready = []
    for engine in bench.engines:
        try:
            engine.launcher.run(
                [*engine.cli, "run", "-d", "--name", name, "--network", "none", *engine.run_flags, engine.image, "sleep", "3600"]
            )
            ready.append(engine)
        except Exception as error:
            bench.record.leave_out("exec", engine.name, error)
    try:
        interleave(
            bench.record,
            "exec",
            ready,
            bench.rounds(20),
            2,
            lambda engine: engine.launcher.run([*engine.cli, "exec", name, "true"]).seconds,
        )
    finally:
        for engine in ready:
            engine.launcher.run([*engine.cli, "rm", "-f", name])
