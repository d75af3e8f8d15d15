"""200 clients at once, each of which creates, starts, waits for and removes containers for some time."""

import statistics
import time

from ..api import ApiError, request
from ..measure import say

NAME = "clients"
ABOUT = "200 clients that create, start, wait and remove: p99 of a round, errors"
CLIENTS = 200


def measure(bench):
    for engine in bench.daemons:
        try:
            one(bench.record, engine, bench.options.clients_seconds)
        except Exception as error:
            bench.record.leave_out("clients", engine.name, error)


def one(record, engine, seconds):
    rounds, errors = [], []
    end = time.perf_counter() + seconds

    def client():
        body = {"Image": engine.image, "Cmd": ["true"], "HostConfig": {"NetworkMode": "none"}}
        while time.perf_counter() < end:
            begin = time.perf_counter()
            try:
                reply = yield request("POST", "/v1.40/containers/create", body)
                path = f"/v1.40/containers/{reply.value('create')['Id']}"
                for method, what in (("POST", "/start"), ("POST", "/wait"), ("DELETE", "")):
                    reply = yield request(method, path + what)
                    said = reply.value(what or "remove")
                    if what == "/wait" and said["StatusCode"] != 0:
                        raise ApiError(f"the container ended with {said}")
            except ApiError as error:
                errors.append(str(error))
                continue
            rounds.append(time.perf_counter() - begin)

    took = engine.api.chains([client() for _ in range(CLIENTS)], timeout=120)
    left = len(engine.api.call("GET", "/v1.40/containers/json?all=1"))
    # `quantiles` of a hundred gives ninety-nine cuts.
    record.add("clients-p99", engine.name, statistics.quantiles(rounds, n=100)[98] * 1000, "ms")
    record.add("clients-p50", engine.name, statistics.median(rounds) * 1000, "ms")
    record.add("clients-rate", engine.name, len(rounds) / took, "/s")
    record.add("clients-errors", engine.name, len(errors), "")
    record.add("clients-left", engine.name, left, "")
    say(f"  clients: {engine.name}: {len(rounds)} containers in {took:.4g} s, {len(errors)} errors, {left} containers left")
    if errors:
        say(f"  clients: {engine.name}: the last error: {errors[-1]}")
