"""A client of the Docker Engine API over a Unix socket, thin enough to be no part of what it measures.

Requests are bytes made beforehand; many run at once on non-blocking sockets under one epoll loop.
"""

import json
import select
import socket
import time


class ApiError(Exception):
    """The daemon refused a request."""


def request(method, path, body=None):
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    return head.encode() + data


class Reply:
    """Parses one HTTP/1.1 response as it comes in: Content-Length, chunked, or no body."""

    def __init__(self):
        self.data = b""
        self.status = None
        self.body = b""

    def feed(self, chunk):
        """True when the response is complete."""
        self.data += chunk
        if self.status is None:
            end = self.data.find(b"\r\n\r\n")
            if end < 0:
                return False
            lines = self.data[:end].decode("latin-1").split("\r\n")
            self.status = int(lines[0].split()[1])
            headers = dict(line.lower().split(":", 1) for line in lines[1:])
            self.chunked = "chunked" in headers.get("transfer-encoding", "")
            self.length = int(headers.get("content-length", 0))
            self.data = self.data[end + 4 :]
            if self.status in (204, 304):
                return True
        if not self.chunked:
            self.body = self.data
            return len(self.data) >= self.length
        while True:
            end = self.data.find(b"\r\n")
            if end < 0:
                return False
            size = int(self.data[:end].split(b";")[0], 16)
            if len(self.data) < end + 2 + size + 2:
                return False
            self.body += self.data[end + 2 : end + 2 + size]
            self.data = self.data[end + 4 + size :]
            if size == 0:
                return True

    def value(self, what):
        if self.status >= 400:
            raise ApiError(f"{what}: {self.status}: {self.body.decode(errors='replace').strip()}")
        return json.loads(self.body) if self.body.strip() else None


class Client:
    def __init__(self, path):
        self.path = str(path)

    def connect(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.path)
        return connection

    def call(self, method, path, body=None, timeout=120):
        with self.connect() as connection:
            connection.settimeout(timeout)
            connection.sendall(request(method, path, body))
            return read_reply(connection).value(f"{method} {path}")

    def seconds(self, method, path, timeout=120):
        """How long an answer takes, to its last byte."""
        with self.connect() as connection:
            connection.settimeout(timeout)
            start = time.perf_counter()
            connection.sendall(request(method, path))
            pieces, ended, length = [], False, None
            while not ended:
                piece = connection.recv(1 << 20)
                if not piece:
                    raise ApiError("the daemon closed the connection before it answered")
                pieces.append(piece)
                if length is None and b"\r\n\r\n" in piece:
                    head, _, rest = b"".join(pieces).partition(b"\r\n\r\n")
                    fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
                    chunked = b"chunked" in fields.get(b"transfer-encoding", b"")
                    length = len(head) + 4 + int(fields.get(b"content-length", 0))
                ended = length is not None and (b"".join(pieces[-2:]).endswith(b"\r\n0\r\n\r\n") if chunked else sum(map(len, pieces)) >= length)
            took = time.perf_counter() - start
        reply = Reply()
        reply.feed(b"".join(pieces))
        reply.value(f"{method} {path}")
        return took

    def chains(self, chains, timeout=600):
        """Runs request chains at once, one connection each; a chain is a generator that yields request
        bytes and is sent the reply. Returns the seconds from the first byte to the last answer."""
        connections = [self.connect() for _ in chains]
        poll = select.epoll()
        state = {}
        start = time.perf_counter()
        for connection, chain in zip(connections, chains):
            connection.sendall(next(chain))
            connection.setblocking(False)
            poll.register(connection.fileno(), select.EPOLLIN)
            state[connection.fileno()] = (connection, chain, Reply())
        while state:
            events = poll.poll(timeout)
            if not events:
                raise ApiError(f"{len(state)} requests had no answer within {timeout} s")
            for number, _ in events:
                connection, chain, reply = state[number]
                chunk = connection.recv(65536)
                if not chunk:
                    raise ApiError("the daemon closed a connection before it answered")
                if not reply.feed(chunk):
                    continue
                try:
                    connection.sendall(chain.send(reply))
                    state[number] = (connection, chain, Reply())
                except StopIteration:
                    poll.unregister(number)
                    del state[number]
        seconds = time.perf_counter() - start
        for connection in connections:
            connection.close()
        poll.close()
        return seconds


def read_reply(connection):
    reply = Reply()
    while True:
        chunk = connection.recv(65536)
        if not chunk:
            raise ApiError("the daemon closed the connection before it answered")
        if reply.feed(chunk):
            return reply


def create_and_start(image, command, network, marks=None):
    """A chain for `chains`: POST create, then POST start; appends the id to `marks`."""
    body = {"Image": image, "Cmd": command, "HostConfig": {"NetworkMode": network}}
    reply = yield request("POST", "/v1.40/containers/create", body)
    container = reply.value("create")["Id"]
    if marks is not None:
        marks.append(container)
    reply = yield request("POST", f"/v1.40/containers/{container}/start")
    reply.value("start")
