"""Logs: how long the last lines of a long log take, how fast a whole log is read, and how fast output is attached to.

Logs are unbounded here for both (Vessel's are bounded unless told otherwise), and in the same format.
"""

import time

from ..api import request
from ..measure import interleave

NAME = "logs"
ABOUT = "the last 100 lines of a log of 1 GB, a whole log of 200 MB, attach to 200 MB"
LINE = b"x" * 99 + b"\n"
LONG, MIDDLE, SHORT = 1_000_000_000, 200_000_000, 1_000_000
PIECE = 20_000_000
CHUNK = 1 << 20


def writer(engine, name, size, source, driver="json-file"):
    """A container that writes so many bytes in lines of 100, created."""
    # dockerd's logs are without bounds unless told otherwise, and it takes no -1.
    bounds = {"max-size": "-1"} if engine.name == "vessel" and driver == "json-file" else {}
    reader = "cat" if size >= PIECE else f"head -c {size}"
    body = {
        "Image": engine.image,
        # From a file, many at a time: busybox makes lines no faster than it takes to log them.
        "Cmd": ["sh", "-c", f"i=0; while [ $i -lt {size // min(size, PIECE)} ]; do {reader} /lines; i=$((i+1)); done"],
        "HostConfig": {"NetworkMode": "none", "LogConfig": {"Type": driver, "Config": bounds}, "Binds": [f"{source}:/lines:ro"]},
    }
    return engine.api.call("POST", f"/v1.40/containers/create?name={name}", body)["Id"]


def body_bytes(engine, method, path):
    """Seconds until a stream that the daemon ends has ended, and its bytes."""
    with engine.api.connect() as connection:
        connection.settimeout(300)
        start = time.perf_counter()
        connection.sendall(request(method, path))
        return count(connection, start)


def count(connection, start, begin=None):
    buffer = bytearray(CHUNK)
    total, tail = 0, b""
    while got := connection.recv_into(buffer):
        if total == 0 and not bytes(buffer[:12]).startswith((b"HTTP/1.1 200", b"HTTP/1.1 101")):
            raise RuntimeError(bytes(buffer[:got]).decode(errors="replace"))
        total += got
        if begin:
            begin(got)
        # A stream in chunks ends with an empty one; the connection stays.
        tail = (tail + bytes(buffer[max(0, got - 7) : got]))[-7:]
        if tail == b"\r\n0\r\n\r\n":
            break
    return time.perf_counter() - start, total


def tail(engine, name):
    seconds, total = body_bytes(engine, "GET", f"/v1.40/containers/{name}/logs?stdout=1&tail=100")
    if not 100 * 100 <= total <= 100 * 130:
        raise RuntimeError(f"{total} bytes instead of a hundred lines")
    return seconds


def rate(engine):
    seconds, total = body_bytes(engine, "GET", "/v1.40/containers/bench-log-middle/logs?stdout=1")
    if total < MIDDLE:
        raise RuntimeError(f"{total} bytes of {MIDDLE}")
    return MIDDLE / seconds / 1e6


def attach(engine, source):
    """Bytes per second from the first byte of a container's output to the last; nothing is logged."""
    container = writer(engine, "bench-attach", MIDDLE, source, "none")
    try:
        with engine.api.connect() as connection:
            connection.settimeout(300)
            head = f"POST /v1.40/containers/{container}/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: bench\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n"
            connection.sendall(head.encode())
            came = []

            def begin(got):
                # The first that comes is the answer's head: who is attached can be written to.
                if not came:
                    engine.api.call("POST", f"/v1.40/containers/{container}/start")
                came.append((time.perf_counter(), got))

            _, total = count(connection, 0, begin)
            if total < MIDDLE:
                raise RuntimeError(f"{total} bytes of {MIDDLE}")
            return sum(got for _, got in came[2:]) / (came[-1][0] - came[1][0]) / 1e6
    finally:
        engine.remove_containers([container])


def measure(bench):
    ready, made = [], {}
    source = bench.directory / "lines"
    source.write_bytes(LINE * (PIECE // len(LINE)))
    for engine in bench.daemons:
        try:
            made[engine.name] = []
            for size, name in ((LONG, "long"), (MIDDLE, "middle"), (SHORT, "short")):
                container = writer(engine, f"bench-log-{name}", size, source)
                made[engine.name].append(container)
                start = time.perf_counter()
                engine.api.call("POST", f"/v1.40/containers/{container}/start")
                engine.api.call("POST", f"/v1.40/containers/{container}/wait", timeout=600)
                if size == LONG:
                    bench.record.add("logs-written", engine.name, size / (time.perf_counter() - start) / 1e6, "MB/s")
            ready.append(engine)
        except Exception as error:
            bench.record.leave_out("logs", engine.name, error)
    try:
        rounds = bench.rounds(20)
        interleave(bench.record, "logs-tail-1g", ready, rounds, 2, lambda engine: tail(engine, "bench-log-long"))
        interleave(bench.record, "logs-tail-1m", ready, rounds, 2, lambda engine: tail(engine, "bench-log-short"))
        for engine in ready:
            growth = bench.record.median("logs-tail-1g", engine.name) / bench.record.median("logs-tail-1m", engine.name)
            bench.record.add("logs-tail-growth", engine.name, growth, "ratio")
        interleave(bench.record, "logs-rate", ready, bench.rounds(5), 1, rate, unit="MB/s", scale=1)
        interleave(bench.record, "attach-rate", ready, bench.rounds(5), 1, lambda engine: attach(engine, source), unit="MB/s", scale=1)
    finally:
        for engine in bench.daemons:
            engine.remove_containers(made.get(engine.name, []))
