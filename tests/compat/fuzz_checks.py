"""What `fuzz` looks for in answers."""

import io
import tarfile

import schemathesis


@schemathesis.check
def no_internal_error(ctx, response, case):
    # What says that it is not there (501), or that there is no swarm (503), is an answer. So is a registry or another
    # server that cannot be reached, of which dockerd says 500, too.
    if response.status_code == 500 and "cannot be reached" not in response.text:
        raise AssertionError(f"500: {response.text[:500]}")


@schemathesis.hook
def map_body(ctx, body):
    # A container of an image that is not there is refused before anything else of it is looked at.
    if ctx.operation.path == "/containers/create" and isinstance(body, dict) and "Image" in body:
        body["Image"] = "busybox"
    return body


@schemathesis.hook
def before_call(ctx, case, kwargs):
    # What would go on until its client has enough of it.
    if case.operation.path == "/vessel/log" and isinstance(case.query, dict):
        case.query.pop("follow", None)


@schemathesis.serializer("application/x-tar")
def archive(ctx, value):
    """An archive with a file whose name and content are what was made up, or, where that is as it comes, no archive at all."""
    data = value if isinstance(value, bytes) else str(getattr(value, "data", value)).encode(errors="replace")
    if len(data) % 2:
        return data
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        entry = tarfile.TarInfo(data[:90].decode(errors="replace").replace("\0", "?") or "Dockerfile")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return made.getvalue()
