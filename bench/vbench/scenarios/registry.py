"""What `pull` and `push` share: Debian's docker-registry on a loopback port, and images of three layers in it.

The registry's own work is in every figure; it is the same for all engines. Needs docker-registry and, to make
images no engine has seen, skopeo.
"""

import contextlib
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import time

from ..engines import EngineFailed
from .load import add, member

LAYERS = 3


def missing():
    absent = [p for p in ("docker-registry", "skopeo") if not shutil.which(p)]
    return f"not installed: {', '.join(absent)}" if absent else None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serving(directory):
    """A registry below `directory`; gives its `host:port`."""
    root = directory / "registry"
    root.mkdir()
    port = free_port()
    config = root / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {root}}}\n"
        f"http: {{addr: 127.0.0.1:{port}}}\n"
    )
    with (root / "log").open("ab") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=log, stderr=log)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
                break
            time.sleep(0.02)
        else:
            raise EngineFailed("docker-registry does not listen")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(root)


def members(raw):
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        for item in archive:
            data = archive.extractfile(item).read() if item.isreg() else None
            yield item, data


def three_layers(source, target, name, number):
    """A docker-archive of the files of `source` in three layers of about the same size, with one file more in each:
    nobody has seen any of them."""
    with tarfile.open(source) as archive:
        item = json.loads(member(archive, "manifest.json"))[0]
        config = json.loads(member(archive, item["Config"]))
        parts = [part for layer in item["Layers"] for part in members(member(archive, layer))]
    total = sum(len(data or b"") for _, data in parts)
    layers, done, at = [], 0, 0
    for index in range(LAYERS):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as archive:
            add(archive, f"round-{number}-{index}", b"")
            while at < len(parts) and (index == LAYERS - 1 or done < total * (index + 1) // LAYERS):
                entry, data = parts[at]
                archive.addfile(entry, None if data is None else io.BytesIO(data))
                done += len(data or b"")
                at += 1
        layers.append(raw.getvalue())
    config["rootfs"]["diff_ids"] = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config.pop("history", None)
    raw = json.dumps(config).encode()
    names = [f"{index}/layer.tar" for index in range(LAYERS)]
    config_name = f"{hashlib.sha256(raw).hexdigest()}.json"
    with tarfile.open(target, "w") as archive:
        for path, layer in zip(names, layers):
            add(archive, path, layer)
        add(archive, config_name, raw)
        add(archive, "manifest.json", json.dumps([{"Config": config_name, "RepoTags": [name], "Layers": names}]).encode())


def command(engine, verb, image):
    """Pulls or pushes; seconds."""
    flags = ["--tls-verify=false"] if engine.name == "podman" else []
    return engine.launcher.run([*engine.cli, verb, "-q", *flags, image], timeout=300).seconds
