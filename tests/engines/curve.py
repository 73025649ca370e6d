"""The speeds and failures of a fake engine, read from ``curve.json`` beside the program.

::

    {
      "threads": {"1": 1e4, "2": 2e4},   tg in tokens/s; linear between, constant beyond
      "pp": 4.0,                         ratio of pp to tg
      "factors": {"mmap=0": 1.1, "flash=1,threads=2": 0.9, "OMP_PROC_BIND=true": 0.7},
      "lies": {"threads=2": 10},         factor of what it prints to its speed, else 1; without
                                         this, tokens that take 0.1 s take no time
      "noise": 0.02, "seed": 1,          log-normal, drawn for each run from a fixed sequence
      "outliers": 0.02,                  share of samples that are five times slower
      "seconds": 0.0,                    time that every run takes besides that for its tokens
      "crash": {"threads=2": 11},        signal number, or "exit 3"
      "hang": ["threads=3"],
      "broken": {"flash=1": "json"},     json, empty, log, nan, zero, negative, text, rows,
                                         samples, threads
      "text": {"flash=1": " other words"}
    }

A key may have several conditions, separated by commas. Their names are ``threads``, ``phase`` (pp
or tg, in factors only), ``mmap``, ``mlock``, ``flash``, ``ubatch``, ``poll``, ``numa``, ``cpus``
(written 0+1 for 0 and 1), ``model`` (the file's name) and all environment
variables; a flag that was not given has the value ``-``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import sys
import time
from typing import Any


def load(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, "curve.json")) as file:
            curve: dict[str, Any] = json.load(file)
            return curve
    except FileNotFoundError:
        return {}


def seen(argv: list[str], threads: str) -> dict[str, Any]:
    """Return the settings of a run by the names of conditions."""

    def value(*names: str) -> str:
        found = [argv[at + 1] for at, word in enumerate(argv[:-1]) if word in names]
        return found[-1] if found else "-"

    flash = {"on": "1", "off": "0"}.get(value("-fa"), value("-fa"))
    mode = value("-lm", "--load-mode")
    mmap = {"-": value("-mmp")}.get(mode, "1" if "mmap" in mode else "0")
    return {
        **os.environ,
        "threads": threads,
        "model": os.path.basename(value("-m", "--model")),
        "mmap": "0" if "--no-mmap" in argv else mmap,
        "mlock": "1" if "--mlock" in argv or "mlock" in mode else "-",
        "flash": flash if flash in {"0", "1", "-"} else "1",  # -fa without a value
        "ubatch": value("-ub"),
        "poll": value("--poll"),
        "numa": value("--numa"),
        "cpus": "+".join(map(str, sorted(_cpus()))),
    }


def _cpus() -> set[int]:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {0}


def holds(condition: str, facts: dict[str, Any]) -> bool:
    pairs = (part.partition("=") for part in condition.split(","))
    return all(facts.get(name, "-") == value for name, _, value in pairs)


def chosen(table: dict[str, Any], facts: dict[str, Any]) -> Any:
    """Return the value of the first condition that holds, or None."""
    return next((value for condition, value in table.items() if holds(condition, facts)), None)


def misbehave(curve: dict[str, Any], facts: dict[str, Any]) -> None:
    """End this process, or hang, if the curve says so."""
    if any(holds(condition, facts) for condition in curve.get("hang", [])):
        time.sleep(600)
    crash = chosen(curve.get("crash", {}), facts)
    if isinstance(crash, str):
        print("error: the fake engine fails as it was told to", file=sys.stderr, flush=True)
        sys.exit(int(crash.split()[1]))
    if crash is not None:
        os.kill(os.getpid(), crash)
    time.sleep(curve.get("seconds", 0))


def speed(curve: dict[str, Any], facts: dict[str, Any], phase: str) -> float:
    """Return the true speed in tokens/s, without noise."""
    points = sorted(
        (int(count), rate) for count, rate in curve.get("threads", {"1": 20_000}).items()
    )
    rate: float = _between(points, int(facts["threads"]))
    if phase == "pp":
        rate *= curve.get("pp", 4.0)
    facts = {**facts, "phase": phase}
    fitting = [by for when, by in curve.get("factors", {}).items() if holds(when, facts)]
    return float(rate * math.prod(fitting))


def told(curve: dict[str, Any], facts: dict[str, Any], tokens: int, rate: float) -> float:
    """Return the speed to print for tokens. Take their time if it is short, or if the curve says
    who lies."""
    if "lies" in curve or tokens / rate < 0.1:
        time.sleep(tokens / rate)
    return rate * float(chosen(curve.get("lies", {}), facts) or 1)


def _between(points: list[tuple[int, float]], threads: int) -> float:
    for (low, slow), (high, fast) in itertools.pairwise(points):
        if low <= threads <= high:
            return slow + (fast - slow) * (threads - low) / (high - low)
    return points[0][1] if threads < points[0][0] else points[-1][1]


class Noise:
    """The random deviations of the samples of one run."""

    def __init__(self, curve: dict[str, Any], folder: str) -> None:
        path = os.path.join(folder, "draws")
        with open(path, "ab") as file:  # Its length is the number of runs.
            file.write(b".")
        self.spread, self.outliers = curve.get("noise", 0.0), curve.get("outliers", 0.0)
        self.random = random.Random(f"{curve.get('seed', 1)}:{os.path.getsize(path)}")

    def __call__(self, rate: float) -> float:
        slow = 0.2 if self.random.random() < self.outliers else 1.0
        return rate * slow * math.exp(self.spread * self.random.gauss(0, 1))
