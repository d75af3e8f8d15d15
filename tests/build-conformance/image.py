"""An image as `docker save` writes it: its files, put together from the layers, and its configuration."""

import hashlib
import json
import tarfile
from pathlib import Path

# What says nothing about what was built.
IGNORED = {"Hostname", "Domainname", "Image", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce"}


class Files:
    """A tree: paths to what is there. Hard links are one entry under several paths."""

    def __init__(self) -> None:
        self.entries: dict[str, dict] = {}

    def remove(self, path: str, itself: bool = True) -> None:
        below = path + "/" if path else ""
        for name in [n for n in self.entries if n.startswith(below) or (itself and n == path)]:
            if name != "" and (itself or name != path):
                del self.entries[name]

    def apply(self, layer: tarfile.TarFile) -> None:
        new: set[str] = set()
        for member in layer:
            path = member.name.removeprefix("./").strip("/")
            path = "" if path == "." else path
            directory, _, name = path.rpartition("/")
            if name == ".wh..wh..opq":
                for known in [n for n in self.entries if n.startswith(directory + "/") and n not in new]:
                    del self.entries[known]
                continue
            if name.startswith(".wh."):
                self.remove(f"{directory}/{name[4:]}".strip("/"))
                continue
            new.add(path)
            if member.islnk():
                self.entries[path] = self.entries[member.linkname.removeprefix("./").strip("/")]
                continue
            old = self.entries.get(path)
            if old and old["type"] == "directory" and not member.isdir():
                self.remove(path)
            content = layer.extractfile(member).read() if member.isreg() else b""
            kind = {b"5": "directory", b"2": "link", b"3": "character", b"4": "block", b"6": "fifo"}.get(member.type, "file")
            self.entries[path] = {
                "type": kind,
                "mode": oct(member.mode & 0o7777) if kind != "link" else "",
                "owner": f"{member.uid}:{member.gid}",
                "mtime": int(member.mtime),
                "link": member.linkname,
                "size": len(content),
                "content": hashlib.sha256(content).hexdigest() if content else "",
                "device": f"{member.devmajor},{member.devminor}" if kind in ("character", "block") else "",
                "xattrs": {k[13:]: v for k, v in member.pax_headers.items() if k.startswith("SCHILY.xattr.")},
            }

    def links(self) -> dict[str, list[str]]:
        """Paths that share an entry with others."""
        paths: dict[int, list[str]] = {}
        for path, entry in self.entries.items():
            paths.setdefault(id(entry), []).append(path)
        return {path: sorted(group) for group in paths.values() if len(group) > 1 for path in group}


def read(archive: Path) -> tuple[Files, dict]:
    """The files and the configuration of the one image in an archive."""
    files = Files()
    with tarfile.open(archive) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))[0]
        config = json.load(tar.extractfile(manifest["Config"]))
        for layer in manifest["Layers"] or []:
            member = tar.getmember(layer)
            if member.issym():
                name = Path(layer).parent.joinpath(member.linkname)
                member = tar.getmember(str(Path(*normal(name.parts))))
            with tarfile.open(fileobj=tar.extractfile(member)) as opened:
                files.apply(opened)
    return files, config


def normal(parts: tuple[str, ...]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if part == "..":
            out.pop()
        else:
            out.append(part)
    return out


def difference(left: tuple[Files, dict], right: tuple[Files, dict], since: float, history: bool) -> list[str]:
    """How the right image is other than the left. Times from `since` on are those of the build, and all the same."""
    (left_files, left_config), (right_files, right_config) = left, right
    out = []
    left_links, right_links = left_files.links(), right_files.links()
    for path in sorted(left_files.entries.keys() | right_files.entries.keys()):
        a, b = left_files.entries.get(path), right_files.entries.get(path)
        if path == "":
            continue
        if a is None or b is None:
            out.append(f"/{path}: only in the {'right' if a is None else 'left'} ({(a or b)['type']})")
            continue
        for field in a:
            x, y = a[field], b[field]
            if field == "mtime" and (x >= since) == (y >= since) and (x >= since or x == y):
                continue
            if x != y:
                out.append(f"/{path}: {field} {x} -> {y}")
        if left_links.get(path) != right_links.get(path):
            out.append(f"/{path}: hard links {left_links.get(path)} -> {right_links.get(path)}")
    a, b = settings(left_config), settings(right_config)
    out += [f"config {key}: {a.get(key)} -> {b.get(key)}" for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)]
    if history:
        a, b = steps(left_config), steps(right_config)
        out += [f"history: {x} -> {y}" for x, y in zip(a, b) if x != y][:3]
        if len(a) != len(b):
            out.append(f"history: {len(a)} -> {len(b)} steps")
    return out


def settings(config: dict) -> dict:
    """What of a configuration is said; nothing and empty are the same."""
    all_of_it = dict(config.get("config") or {}) | {name: config.get(name) for name in ("architecture", "os", "variant", "author")}
    return {key: value for key, value in all_of_it.items() if value and key not in IGNORED}


def steps(config: dict) -> list[tuple]:
    return [(s.get("created_by"), bool(s.get("empty_layer")), s.get("comment"), s.get("author")) for s in config.get("history") or []]
