"""Every sample of a benchmark as lines of CSV, for spreadsheets and other statistics."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from bitnet_tuning.bench.document import Results
from bitnet_tuning.bench.rounds import Round
from bitnet_tuning.setting import describe

COLUMNS = (
    "round",
    "stage",
    "position",
    "setting",
    "words",
    "phase",
    "sample",
    "tokens_per_second",
    "process_seconds",
    "problem",
)
"""``position`` is the run's place in its round and ``sample`` the sample's in its run, from 1."""


def to_csv(results: Results) -> str:
    """One line per sample, and one without a speed for each run that failed."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in results.rounds:
        writer.writerows(_lines(each, results))
    return content.getvalue()


def _lines(each: Round, results: Results) -> Iterator[tuple[object, ...]]:
    for position, run in enumerate(each.runs, 1):
        words = describe(results.settings[run.setting])
        start = (each.number, each.stage, position, run.setting, words)
        if run.problem is not None:
            yield (*start, None, None, None, run.seconds, run.problem)
        for phase, speeds in run.samples.items():
            for number, speed in enumerate(speeds, 1):
                yield (*start, phase, number, speed, run.seconds, None)
