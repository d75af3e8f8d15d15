"""What SPECIFICATION.md promises, in a form that can be checked."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    metric: str
    peer: str | None
    """The engine compared with; None for an absolute limit."""
    limit: float
    """At most this ratio (ours / peer), or this value when there is no peer."""
    at_least: bool = False
    """The limit is a lower one: a rate."""

    def reached(self, value):
        return value >= self.limit if self.at_least else value <= self.limit

    def text(self):
        sign = "≥" if self.at_least else "≤"
        return f"{sign} {self.limit:.3g} × {self.peer}" if self.peer else f"{sign} {self.limit:.3g}"


TARGETS = [
    Target("run-bridge", "docker", 1 / 20),
    Target("run-none", "docker", 1 / 20),
    Target("run-host", "docker", 1 / 20),
    Target("oci-run", "crun", 0.7),
    Target("start-100", "docker", 20, at_least=True),
    Target("start-500th", None, 1.2),
    Target("memory-per-container", None, 400),
    Target("memory-daemon-idle", None, 20_000),
    Target("memory-daemon-500", None, 60_000),
    Target("load", "docker", 1 / 3),
    Target("load", "podman", 2 / 3),
    Target("restart-to-ps", "docker", 1 / 10),
    Target("pull", "docker", 1 / 3),
    Target("pull", "podman", 1 / 2),
    Target("push", "docker", 1 / 2),
    Target("build-cached", "docker", 1 / 10),
    Target("build-cached", "buildkit", 1 / 10),
    Target("build-cached", "buildah", 1 / 10),
    Target("build-cold", "docker", 1 / 2),
    Target("build-cold", "buildkit", 1 / 2),
    Target("build-cold", "buildah", 1 / 2),
    # One file of 1 MB has changed; the rest is the Dockerfile and the protocol.
    Target("context-read", None, 3),
    Target("context-sent", None, 3),
    Target("registry-blob", "docker-registry", 2, at_least=True),
    Target("registry-small", "docker-registry", 2, at_least=True),
    Target("registry-manifest", "docker-registry", 2, at_least=True),
    Target("registry-memory-idle", "docker-registry", 1 / 3),
    Target("registry-memory-load", "docker-registry", 1 / 3),
    Target("exec", "docker", 1 / 10),
    Target("list-500", "docker", 1 / 10),
    Target("logs-tail-growth", None, 1.5),
    Target("logs-rate", "docker", 3, at_least=True),
    Target("attach-rate", "docker", 3, at_least=True),
    Target("events-rate", None, 990, at_least=True),
    Target("events-lost", None, 0),
    Target("clients-p99", "docker", 1 / 5),
    Target("clients-errors", None, 0),
    Target("tcp-loopback", "docker", 1, at_least=True),
    Target("tcp-host", "docker", 1, at_least=True),
    Target("tcp-between", "docker", 1, at_least=True),
    Target("dns-name-lost", None, 0),
    Target("dns-reverse-lost", None, 0),
    Target("dns-forward-lost", None, 0),
]
