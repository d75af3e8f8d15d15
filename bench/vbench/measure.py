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
        say(f"  {metric}: {engine}: {reason}")

    def median(self, metric, engine):
        values = self.samples.get(metric, {}).get(engine)
        return statistics.median(values) if values else None


PATIENCE = 3
"""Failures in a row after which a subject is left out of a metric."""


def interleave(record, metric, subjects, rounds, warmups, sample, unit="ms", scale=1000):
    """One sample of each subject in turn, the order shifted by one each round, so that what else the
    machine does hits all alike. A failure gives no sample and is reported; after some in a row the subject
    is left out."""
    subjects = list(subjects)
    failures = {subject.name: [] for subject in subjects}
    in_a_row = dict.fromkeys(failures, 0)
    for turn in range(warmups + rounds):
        shift = turn % max(len(subjects), 1)
        for subject in subjects[shift:] + subjects[:shift]:
            try:
                value = sample(subject)
            except Exception as error:
                failures[subject.name].append(error)
                in_a_row[subject.name] += 1
                if in_a_row[subject.name] == PATIENCE:
                    subjects.remove(subject)
                continue
            in_a_row[subject.name] = 0
            if turn >= warmups:
                record.add(metric, subject.name, value * scale, unit)
    for name, errors in failures.items():
        if errors:
            got = len(record.samples[metric][name])
            record.leave_out(metric, name, f"{len(errors)} failures, {got} samples; the last: {errors[-1]}")
    names = [name for name in failures if record.median(metric, name) is not None]
    say(f"  {metric}: {', '.join(f'{name} {record.median(metric, name):.4g}' for name in names)} {unit}")
