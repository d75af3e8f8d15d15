"""100 listeners of /events while a thousand events a second happen: who hears how many."""

import select
import time

from ..api import read_reply, request
from ..measure import say

NAME = "events"
ABOUT = "1,000 events per second to 100 listeners, those lost"
LISTENERS, PER_SECOND, SECONDS = 100, 1000, 10


def measure(bench):
    for engine in bench.daemons:
        for _ in range(bench.rounds(3)):
            try:
                one(bench.record, engine)
            except Exception as error:
                bench.record.leave_out("events", engine.name, error)
                break


def one(record, engine):
    listeners = [engine.api.connect() for _ in range(LISTENERS)]
    poll = select.epoll()
    heard = {}
    driver = engine.api.connect()
    driver.settimeout(60)
    try:
        for listener in listeners:
            listener.sendall(request("GET", "/v1.40/events?filters=%7B%22type%22%3A%5B%22volume%22%5D%2C%22event%22%3A%5B%22create%22%2C%22destroy%22%5D%7D"))
            listener.setblocking(False)
            poll.register(listener.fileno(), select.EPOLLIN)
            heard[listener.fileno()] = [listener, 0]
        time.sleep(1)
        begin = time.perf_counter()
        happened = 0
        wanted = PER_SECOND * SECONDS
        drained = begin
        # One volume comes and goes: two events, by one client on one connection, as many as are due.
        while happened < wanted:
            now = time.perf_counter()
            # Not at every event: a hundred reads cost this process more than the event costs the daemon.
            if now - drained > 0.1:
                drain(poll, heard, 0)
                drained = now
            if happened >= min(wanted, int((now - begin) * PER_SECOND)):
                time.sleep(0.0005)
                continue
            for method, path, body in (("POST", "/v1.40/volumes/create", {"Name": "bench-event"}), ("DELETE", "/v1.40/volumes/bench-event", None)):
                answer(driver, method, path, body)
                happened += 1
        took = time.perf_counter() - begin
        quiet = time.perf_counter()
        while time.perf_counter() - quiet < 3 and min(count for _, count in heard.values()) < happened:
            if drain(poll, heard, 0.1):
                quiet = time.perf_counter()
        lost = sum(happened - count for _, count in heard.values())
        record.add("events-rate", engine.name, happened / took, "/s")
        record.add("events-lost", engine.name, lost, "")
        say(f"  events: {engine.name}: {happened} in {took:.3g} s, {lost} of {happened * LISTENERS} not heard")
    finally:
        for listener in listeners:
            listener.close()
        driver.close()
        poll.close()


def answer(connection, method, path, body):
    connection.sendall(request(method, path, body))
    read_reply(connection).value(path)


def drain(poll, heard, timeout):
    """Whether anything came."""
    events = poll.poll(timeout)
    for number, _ in events:
        entry = heard[number]
        chunk = entry[0].recv(1 << 18)
        if not chunk:
            raise RuntimeError("the daemon ended a stream of events")
        # Each is one line, and its chunk's size a line of its own.
        entry[1] += chunk.count(b'"Action":"')
    return bool(events)
