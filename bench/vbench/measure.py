"""Samples, kept raw, and what they come to."""

import statistics
import sys
from collections import defaultdict


def say(text):
    print(text, file=sys.stderr, flush=True)


class Record:
    """All samples of a run: metric, engine, value; and why something is missing."""

    def __init__(self):
        self.samples = defaultdict(lambda: defaultdict(list))
        self.units = {}
        self.absent = {}

    def add(self, metric, engine, value, unit):
        self.samples[metric][engine].append(value)
        self.units[metric] = unit

    def leave_out(self, metric, engine, reason):
        self.absent[f"{metric}/{engine}"] = str(reason)
        say(f"  {metric}: {engine} left out: {reason}")

    def median(self, metric, engine):
        values = self.samples.get(metric, {}).get(engine)
        return statistics.median(values) if values else None


def interleave(record, metric, subjects, rounds, warmups, sample, unit="ms", scale=1000):
    """One sample of each subject in turn, the order shifted by one each round, so that what else the
    machine does hits all alike. A subject that fails is left out with its reason."""
    subjects = list(subjects)
    for turn in range(warmups + rounds):
        for subject in subjects[turn % max(len(subjects), 1) :] + subjects[: turn % max(len(subjects), 1)]:
            try:
                value = sample(subject)
            except Exception as error:
                record.leave_out(metric, subject.name, error)
                subjects.remove(subject)
                continue
            if turn >= warmups:
                record.add(metric, subject.name, value * scale, unit)
    line = ", ".join(f"{s.name} {record.median(metric, s.name):.4g}" for s in subjects if record.median(metric, s.name) is not None)
    say(f"  {metric}: {line} {unit}")
