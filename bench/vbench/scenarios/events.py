"""100 listeners of /events while a thousand events a second happen: who hears how many.

The events are those of volumes that come and go, caused by a few clients in processes of their own.
"""

import os
import select
import time
import traceback

from ..api import read_reply, request
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
    heard = {}
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
        drivers = [start(engine, number, happened // DRIVERS) for number in range(DRIVERS)]
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
        lost = sum(happened - count for _, count, _ in heard.values())
        record.add("events-rate", engine.name, happened / took, "/s")
        record.add("events-lost", engine.name, lost, "")
        say(f"  events: {engine.name}: {happened} in {took:.3g} s, {lost} of {happened * LISTENERS} not heard")
    finally:
        for listener, _, _ in heard.values():
            listener.close()
        poll.close()


def start(engine, number, events):
    """A process that causes so many events, as many per second as its share is."""
    pid = os.fork()
    if pid:
        return pid
    try:
        name = f"bench-event-{number}"
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
        entry[1] += (entry[2] + chunk).count(WORD)
        entry[2] = chunk[1 - len(WORD) :]
    return bool(events)
