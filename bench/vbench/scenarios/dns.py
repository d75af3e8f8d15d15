"""The engine's DNS server under 10,000 questions a second from one container: those for a container's name, for the name of an
address, and for a name that it passes on to a server of this scenario's. How many are answered, and how many are not.

The questions come from a process of the host's in the container's network namespace, which offers them at that rate however
many answers come back: a batch every millisecond, from several ports.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import struct
import time
import traceback

from ..api import ApiError
from ..measure import say
from ..sandbox import CLONE_NEWNET, check, libc

NAME = "dns"
ABOUT = "10,000 questions per second to the DNS server of containers, those lost"
PER_SECOND, SECONDS, SOCKETS = 10_000, 5, 16
SERVER = ("127.0.0.11", 53)
NETWORK, ASKED, ASKER = "bench-dns", "bench-asked", "bench-asker"
# How long a late answer counts still. Programs ask again after five seconds.
PATIENCE = 1
TYPE_A, TYPE_PTR = 1, 12
BUFFER = 4 << 20


def measure(bench):
    for number, engine in enumerate(bench.daemons):
        try:
            with laid_out(engine, number) as (pid, address):
                kinds = (
                    ("name", ASKED, TYPE_A),
                    ("reverse", ".".join(reversed(address.split("."))) + ".in-addr.arpa", TYPE_PTR),
                    ("forward", "www.example.com", TYPE_A),
                )
                for kind, name, code in kinds:
                    for _ in range(bench.rounds(3)):
                        one(bench.record, engine, kind, pid, question(name, code))
        except Exception as error:
            bench.record.leave_out("dns", engine.name, error)


@contextlib.contextmanager
def laid_out(engine, number):
    """A network with one container that is asked for and one that asks; where the latter runs, and the former's address."""
    subnet = f"10.214.{number}"
    upstream = None
    remove(engine)
    try:
        engine.api.call(
            "POST",
            "/v1.40/networks/create",
            {"Name": NETWORK, "IPAM": {"Config": [{"Subnet": f"{subnet}.0/24", "Gateway": f"{subnet}.1"}]}},
        )
        upstream = serve(f"{subnet}.1")
        for name in (ASKED, ASKER):
            body = {
                "Image": engine.image,
                "Cmd": ["sleep", "1000"],
                "HostConfig": {"NetworkMode": NETWORK, "Dns": [f"{subnet}.1"]},
            }
            engine.api.call("POST", f"/v1.40/containers/create?name={name}", body)
            engine.api.call("POST", f"/v1.40/containers/{name}/start")
        asked = engine.api.call("GET", f"/v1.40/containers/{ASKED}/json")
        asker = engine.api.call("GET", f"/v1.40/containers/{ASKER}/json")
        yield asker["State"]["Pid"], asked["NetworkSettings"]["Networks"][NETWORK]["IPAddress"]
    finally:
        if upstream:
            os.kill(upstream, signal.SIGKILL)
            os.waitpid(upstream, 0)
        remove(engine)


def remove(engine):
    engine.remove_containers([ASKED, ASKER])
    with contextlib.suppress(ApiError):
        engine.api.call("DELETE", f"/v1.40/networks/{NETWORK}")


def one(record, engine, kind, pid, packet):
    asked, answered, seconds = in_namespace(pid, packet)
    rate, lost = answered / seconds, asked - answered
    record.add(f"dns-{kind}", engine.name, rate, "/s")
    record.add(f"dns-{kind}-lost", engine.name, lost, "")
    say(f"  dns-{kind}: {engine.name}: {asked} questions in {seconds:.3g} s, {lost} without an answer")


def question(name, kind):
    """One without its first two bytes, which are its ID."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHH", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!HH", kind, 1)


def child(work):
    """A process of its own, which says what `work` returns."""
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, read
    try:
        os.close(read)
        os.write(write, json.dumps(work()).encode())
        os._exit(0)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


def in_namespace(pid, packet):
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)

    def work():
        check(libc.setns(ctypes.c_int(namespace), ctypes.c_int(CLONE_NEWNET)), "setns")
        return ask(packet)

    asking, said = child(work)
    os.close(namespace)
    with os.fdopen(said, "rb") as said:
        result = said.read()
    _, status = os.waitpid(asking, 0)
    if status:
        raise RuntimeError("the process that asks failed")
    return json.loads(result)


def ask(packet):
    """How many questions were asked, how many answered, within how many seconds they were asked."""
    sockets, waiting, poll = {}, {}, select.epoll()
    for _ in range(SOCKETS):
        asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        asking.connect(SERVER)
        sockets[asking.fileno()] = asking
        waiting[asking.fileno()] = set()
        poll.register(asking.fileno(), select.EPOLLIN)
    turns = list(sockets.values())
    total = PER_SECOND * SECONDS
    asked = answered = 0

    def drain(patience):
        count = 0
        for number, _ in poll.poll(patience):
            answers, open_ids = sockets[number], waiting[number]
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                while True:
                    answer = answers.recv(512)
                    # Without an error, and with an answer.
                    good = len(answer) > 12 and answer[3] & 15 == 0 and answer[6:8] != b"\0\0"
                    identity = answer[:2]
                    if good and identity in open_ids:
                        open_ids.remove(identity)
                        count += 1
        return count

    begin = time.perf_counter()
    while asked < total:
        due = min(total, int((time.perf_counter() - begin) * PER_SECOND))
        while asked < due:
            asking = turns[asked % SOCKETS]
            identity = struct.pack("!H", asked // SOCKETS & 0xFFFF)
            with contextlib.suppress(BlockingIOError, ConnectionRefusedError):
                asking.send(identity + packet)
                waiting[asking.fileno()].add(identity)
            asked += 1
        answered += drain(0.001)
    seconds = time.perf_counter() - begin
    end = time.perf_counter() + PATIENCE
    while answered < asked and time.perf_counter() < end:
        answered += drain(0.05)
    return asked, answered, seconds


def serve(address):
    """A name server that gives everybody the same address."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    server.bind((address, 53))
    record = b"\xc0\x0c" + struct.pack("!HHIH", TYPE_A, 1, 60, 4) + bytes([192, 0, 2, 7])

    def work():
        while True:
            packet, client = server.recvfrom(512)
            # The question as it is, without what may follow it.
            end = packet.index(0, 12) + 5
            server.sendto(packet[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + packet[12:end] + record, client)

    pid, said = child(work)
    os.close(said)
    server.close()
    return pid
