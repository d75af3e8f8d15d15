"""100 listeners of /events while a thousand events a second happen: who hears how many.

The events are those of volumes that come and go, caused by a few clients in processes of their own.
"""

import contextlib
import os
import select
import signal
import time
import traceback

from ..api import ApiError, read_reply, request
from ..measure import say

NAME = "events"
ABOUT = "1,000 events per second to 100 listeners, those lost"
LISTENERS, DRIVERS, PER_SECOND, SECONDS = 100, 4, 1000, 10
FILTERS = "%7B%22type%22%3A%5B%22volume%22%5D%2C%22event%22%3A%5B%22create%22%2C%22destroy%22%5D%7D"
WORD = b'"Action":"'
# How long nothing may come before what is missing counts as lost.
PATIENCE = 3


def measure(bench):
    for engine in bench.daemons:
        for _ in range(bench.rounds(3)):
            try:
                one(bench.record, engine)
            except Exception as error:
                bench.record.leave_out("events", engine.name, error)
                break


def one(record, engine):
    poll = select.epoll()
    heard, drivers = {}, []
    for number in range(DRIVERS):
        with contextlib.suppress(ApiError):
            engine.api.call("DELETE", f"/v1.40/volumes/{volume(number)}")
    try:
        for _ in range(LISTENERS):
            listener = engine.api.connect()
            heard[listener.fileno()] = [listener, 0, b""]
            listener.sendall(request("GET", f"/v1.40/events?filters={FILTERS}"))
            listener.setblocking(False)
            poll.register(listener.fileno(), select.EPOLLIN)
        time.sleep(1)
        happened = PER_SECOND * SECONDS
        begin = time.perf_counter()
        drivers += [start(engine, number, happened // DRIVERS) for number in range(DRIVERS)]
        while drivers:
            # Not at every event: a hundred reads cost more than the event.
            time.sleep(0.05)
            drain(poll, heard, 0)
            for pid in list(drivers):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    drivers.remove(pid)
                    if status:
                        raise RuntimeError("a client that causes events failed")
        took = time.perf_counter() - begin
        quiet = time.perf_counter()
        while time.perf_counter() - quiet < PATIENCE and min(count for _, count, _ in heard.values()) < happened:
            if drain(poll, heard, 0.1):
                quiet = time.perf_counter()
        lost = sum(max(0, happened - count) for _, count, _ in heard.values())
        record.add("events-rate", engine.name, happened / took, "/s")
        record.add("events-lost", engine.name, lost, "")
        if lost:
            # A median of the rounds could hide it.
            record.leave_out("events-lost", engine.name, f"{lost} events were not heard in a round")
        say(f"  events: {engine.name}: {happened} in {took:.3g} s, {lost} of {happened * LISTENERS} not heard")
    finally:
        for pid in drivers:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        for listener, _, _ in heard.values():
            listener.close()
        poll.close()


def volume(number):
    return f"bench-event-{number}"


def start(engine, number, events):
    """A process that causes so many events, as many per second as its share is."""
    pid = os.fork()
    if pid:
        return pid
    try:
        name = volume(number)
        begin = time.perf_counter()
        caused = 0
        with engine.api.connect() as connection:
            connection.settimeout(60)
            while caused < events:
                if caused >= (time.perf_counter() - begin) * PER_SECOND / DRIVERS:
                    time.sleep(0.0005)
                    continue
                for method, path, body in (("POST", "/v1.40/volumes/create", {"Name": name}), ("DELETE", f"/v1.40/volumes/{name}", None)):
                    connection.sendall(request(method, path, body))
                    read_reply(connection).value(path)
                    caused += 1
        os._exit(0)
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(1)


def drain(poll, heard, timeout):
    """Whether anything came."""
    events = poll.poll(timeout)
    for number, _ in events:
        entry = heard[number]
        chunk = entry[0].recv(1 << 20)
        if not chunk:
            raise RuntimeError("the daemon ended a stream of events")
        # One field of each; what is read may end within the word, of which less than the whole is kept.
        text = entry[2] + chunk
        entry[1] += text.count(WORD)
        entry[2] = text[1 - len(WORD) :]
    return bool(events)
