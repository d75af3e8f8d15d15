"""TCP: bits per second into a published port, by the loopback address and by one of the host's, and from one
container to another. Both ends are Python of the host's, in the container by `chroot`, so that all engines move the
same bytes with the same program."""

import json
import socket
import time

from ..measure import interleave

NAME = "tcp"
ABOUT = "TCP throughput through a published port, and between two containers"
SECONDS = 3
SINK = """
import socket
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(('0.0.0.0', 5000))
server.listen()
buffer = bytearray(1 << 20)
while True:
    client, _ = server.accept()
    total = 0
    while got := client.recv_into(buffer):
        total += got
    client.sendall(str(total).encode())
    client.close()
"""
SOURCE = """
import socket, sys, time
client = socket.create_connection((sys.argv[1], int(sys.argv[2])))
data = bytes(1 << 20)
begin = time.perf_counter()
while time.perf_counter() - begin < float(sys.argv[3]):
    client.sendall(data)
client.shutdown(socket.SHUT_WR)
total = int(client.recv(100))
print(total / (time.perf_counter() - begin))
"""


def create(engine, name, command, ports=()):
    body = {
        "Image": engine.image,
        "Cmd": ["chroot", "/host", "python3", "-c", *command],
        "ExposedPorts": {port: {} for port in ports},
        "HostConfig": {"Binds": ["/:/host:ro"], "PortBindings": {port: [{"HostPort": ""}] for port in ports}},
    }
    container = engine.api.call("POST", f"/v1.40/containers/create?name={name}", body)["Id"]
    engine.api.call("POST", f"/v1.40/containers/{container}/start")
    return container


def send(address, port, seconds=SECONDS):
    """Gigabits per second, as the other end counts them."""
    data = bytes(1 << 20)
    with socket.create_connection((address, port), timeout=30) as client:
        begin = time.perf_counter()
        while time.perf_counter() - begin < seconds:
            client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        total = int(client.recv(100))
        return total * 8 / (time.perf_counter() - begin) / 1e9


def measure(bench):
    ready = []
    for engine in bench.daemons:
        try:
            container = create(engine, "bench-sink", [SINK], ["5000/tcp"])
            seen = engine.api.call("GET", f"/v1.40/containers/{container}/json")["NetworkSettings"]
            engine.sink = (seen["IPAddress"], int(seen["Ports"]["5000/tcp"][0]["HostPort"]), seen["Gateway"])
            for attempt in range(50):
                try:
                    send("127.0.0.1", engine.sink[1], 0.01)
                    break
                except (OSError, ValueError):
                    if attempt == 49:
                        raise
                    time.sleep(0.1)
            ready.append(engine)
        except Exception as error:
            bench.record.leave_out("tcp", engine.name, error)

    def between(engine):
        container = create(engine, "bench-source", [SOURCE, engine.sink[0], "5000", str(SECONDS)])
        try:
            code = engine.api.call("POST", f"/v1.40/containers/{container}/wait")["StatusCode"]
            said = engine.launcher.run([*engine.cli, "logs", "bench-source"], capture=True).output
            if code != 0:
                raise RuntimeError(f"the source ended with {json.dumps(said)}")
            return float(said) * 8 / 1e9
        finally:
            engine.remove_containers([container])

    try:
        rounds = bench.rounds(5)
        for metric, sample in (
            ("tcp-loopback", lambda engine: send("127.0.0.1", engine.sink[1])),
            # An address of the host's that both engines publish on: that of their bridge.
            ("tcp-host", lambda engine: send(engine.sink[2], engine.sink[1])),
            ("tcp-between", between),
        ):
            interleave(bench.record, metric, ready, rounds, 1, sample, unit="Gbit/s", scale=1)
    finally:
        for engine in bench.daemons:
            engine.remove_containers(["bench-sink", "bench-source"])
