"""The table, and the raw results as a file."""

import json

from .targets import TARGETS

ORDER = ("vessel", "docker", "buildkit", "podman", "buildah", "crun", "runc", "youki", "docker-registry")


def number(value):
    return "-" if value is None else f"{value:.4g}"


def table(record):
    engines = [e for e in ORDER if any(e in samples for samples in record.samples.values())]
    rows = [["metric", "unit", *engines]]
    for metric in record.samples:
        rows.append([metric, record.units[metric], *(number(record.median(metric, e)) for e in engines)])
    lines = ["Medians:", *columns(rows)]
    judged = judge(record)
    if judged:
        lines += ["", "Against SPECIFICATION.md:"]
        lines += columns([["metric", "measured", "promised", ""], *([j["metric"], number(j["measured"]), j["promised"], "reached" if j["reached"] else "MISSED"] for j in judged)])
    if record.absent:
        lines += ["", "Left out or failed:"]
        lines += [f"  {what}: {reason}" for what, reason in record.absent.items()]
    return "\n".join(lines)


def judge(record):
    """Each promise for which this run has a figure."""
    results = []
    for target in TARGETS:
        ours = record.median(target.metric, "vessel")
        if ours is None:
            continue
        if target.peer:
            peer = record.median(target.metric, target.peer)
            if not peer:
                continue
            ours /= peer
        results.append({"metric": target.metric, "measured": ours, "promised": target.text(), "reached": target.reached(ours)})
    return results


def columns(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def write(path, description, versions, settings, record):
    path.parent.mkdir(parents=True, exist_ok=True)
    result = {
        **description,
        "versions": versions,
        "settings": settings,
        "samples": {
            metric: {"unit": record.units[metric], **{engine: [round(v, 4) for v in values] for engine, values in engines.items()}}
            for metric, engines in record.samples.items()
        },
        "medians": {m: {e: round(record.median(m, e), 4) for e in engines} for m, engines in record.samples.items()},
        "targets": judge(record),
        "left_out": record.absent,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")
