"""Registry servers under load: blobs and manifests over loopback, and the memory they need for it.

Requests are counted by wrk. It reads bodies in small pieces and would be what is measured with large blobs, so these are
fetched by threads here that let the kernel throw the bytes away (MSG_TRUNC). What else the machine does takes from
throughput, so the server's processor time for a gigabyte is recorded, too.

Each server has a fresh directory, gets the same content through its own API, and is loaded alone: the other one is
started only when it has ended. Neither writes an access log.
"""

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from .. import procs
from ..measure import say

NAME = "registry"
ABOUT = "a registry server: throughput of blobs, requests per second, memory"

PORT = 5000
REPOSITORY = "bench/image"
BLOB = 16 << 20
SMALL = 4 << 10
CONNECTIONS = 32
READERS = 4
SECONDS = 5

CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


class Server:
    def __init__(self, name, command):
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 20
        while True:
            try:
                if self.request("GET", "/v2/").status == 200:
                    return
            except OSError:
                pass
            if time.monotonic() > end or self.process.poll() is not None:
                self.stop()
                raise RuntimeError(f"{name} does not answer")
            time.sleep(0.02)

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer

    def push_blob(self, content):
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        location = self.request("POST", f"/v2/{REPOSITORY}/blobs/uploads/").getheader("location")
        parts = urlsplit(location)
        query = f"{parts.query}&" if parts.query else ""
        answer = self.request("PUT", f"{parts.path}?{query}digest={digest}", content, {"content-type": "application/octet-stream"})
        if answer.status != 201:
            raise RuntimeError(f"{self.name} refused a blob: {answer.status}")
        return {"digest": digest, "size": len(content)}

    def push(self):
        """The paths of a large blob, a small one and a manifest."""
        large = self.push_blob(os.urandom(BLOB))
        config = self.push_blob(json.dumps({"os": "linux", "architecture": "amd64", "pad": "x" * SMALL}).encode())
        prefix = "application/vnd.oci.image."
        manifest = {
            "schemaVersion": 2,
            "mediaType": prefix + "manifest.v1+json",
            "config": {"mediaType": prefix + "config.v1+json", **config},
            "layers": [{"mediaType": prefix + "layer.v1.tar", **large}],
        }
        path = f"/v2/{REPOSITORY}/manifests/latest"
        answer = self.request("PUT", path, json.dumps(manifest), {"content-type": manifest["mediaType"]})
        if answer.status != 201:
            raise RuntimeError(f"{self.name} refused a manifest: {answer.status}")
        return [f"/v2/{REPOSITORY}/blobs/{large['digest']}", f"/v2/{REPOSITORY}/blobs/{config['digest']}", path]

    def pss_kb(self):
        return procs.pss_kb(self.process.pid)

    def processor_time(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def wrk(path, server):
    """Requests per second, and the server's largest Pss meanwhile."""
    largest = 0
    done = threading.Event()

    def watch():
        nonlocal largest
        while not done.wait(0.1):
            largest = max(largest, server.pss_kb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    accept = "Accept: application/vnd.oci.image.manifest.v1+json"
    command = ["wrk", "-t", "2", "-c", str(CONNECTIONS), "-d", f"{SECONDS}s", "-H", accept, f"http://127.0.0.1:{PORT}{path}"]
    try:
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    finally:
        done.set()
        watcher.join()
    if "Non-2xx" in text:
        raise RuntimeError(f"{server.name} answered with errors")
    rate = float(re.search(r"Requests/sec:\s*([\d.]+)", text)[1])
    return rate, largest


def fetch(path, server):
    """Bytes per second of a large blob, the server's processor time for a gigabyte, and its largest Pss."""
    end = time.monotonic() + SECONDS
    fetched = []
    largest = 0

    def client():
        buffer = bytearray(1 << 20)
        with socket.create_connection(("127.0.0.1", PORT), timeout=60) as connection:
            while time.monotonic() < end:
                connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(2048)
                left = BLOB - len(head.split(b"\r\n\r\n", 1)[1])
                while left > 0:
                    got = connection.recv_into(buffer, min(left, len(buffer)), socket.MSG_TRUNC)
                    if got <= 0:
                        raise RuntimeError(f"{server.name} cut a blob")
                    left -= got
                fetched.append(BLOB)

    threads = [threading.Thread(target=client) for _ in range(READERS)]
    begin, used = time.monotonic(), server.processor_time()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        largest = max(largest, server.pss_kb())
        time.sleep(0.1)
    total = sum(fetched)
    return total / (time.monotonic() - begin), (server.processor_time() - used) / (total / 1e9), largest


def commands(bench, directory):
    root = directory / "content"
    config = directory / "config.yml"
    config.write_text(CONFIG.format(root=root, port=PORT))
    vessel = [str(bench.options.vessel), "registry", "serve", "--listen", f"127.0.0.1:{PORT}", "--root", str(root), "--log-level", "error"]
    return {"vessel": vessel, "docker-registry": ["docker-registry", "serve", str(config)]}


def measure(bench):
    for program in ("wrk", "docker-registry"):
        if not shutil.which(program):
            bench.record.leave_out("registry", "all", f"{program} is not installed (apt-get install wrk docker-registry)")
            return
    names = ["vessel", "docker-registry"]
    for turn in range(bench.rounds(3)):
        for name in names if turn % 2 == 0 else reversed(names):
            directory = bench.directory / f"registry-{name}-{turn}"
            directory.mkdir()
            server = Server(name, commands(bench, directory)[name])
            try:
                large, small, manifest = server.push()
                time.sleep(1)
                bench.record.add("registry-memory-idle", name, server.pss_kb(), "kB")
                bandwidth, processor, memory = fetch(large, server)
                bench.record.add("registry-blob", name, bandwidth / 1e6, "MB/s")
                bench.record.add("registry-blob-cpu", name, processor, "s/GB")
                rate, more = wrk(small, server)
                bench.record.add("registry-small", name, rate, "1/s")
                memory = max(memory, more)
                rate, more = wrk(manifest, server)
                bench.record.add("registry-manifest", name, rate, "1/s")
                bench.record.add("registry-memory-load", name, max(memory, more), "kB")
            finally:
                server.stop()
                shutil.rmtree(directory, ignore_errors=True)
    for metric in ("blob", "blob-cpu", "small", "manifest", "memory-idle", "memory-load"):
        values = ", ".join(f"{name} {bench.record.median(f'registry-{metric}', name):.4g}" for name in names)
        say(f"  registry-{metric}: {values}")
