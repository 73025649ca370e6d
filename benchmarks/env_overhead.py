#!/usr/bin/env python3
"""Measure how much longer a shell takes to source bitnet-env.sh than to source an empty file.

A hit finds the answer that an earlier shell cached; a miss asks Python and caches the answer. Each
round starts all three, in changing order, and differences are taken within a round, since other
load on the machine slows down all of them.

    python3 benchmarks/env_overhead.py [--rounds N] [--shell NAME ...]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
AIM_MS = 5
"""Most milliseconds that a hit should take longer than an empty file."""

SHELLS = {
    "dash": ["dash"],
    "bash": ["bash", "--norc", "--noprofile"],
    "zsh": ["zsh", "-f"],
    "busybox": ["busybox", "sh"],
}
KINDS = ("empty", "hit", "miss")


def milliseconds(command: list[str], environment: dict[str, str]) -> float:
    """Return the time in ms that a shell runs. Raise CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)
    return 1000 * (time.perf_counter() - start)


def measure(shell: list[str], rounds: int, folder: Path) -> dict[str, list[float]]:
    """Return the times in ms by kind, one per round. Raise SystemExit if no answer is cached."""
    prefixes = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BITNET_")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(prefixes)}
    # Find the Python that runs this program, not a version manager's wrapper around it.
    environment["PATH"] = f"{folder}{os.pathsep}{os.environ['PATH']}"
    state, script = folder / "state", REPOSITORY / "bitnet-env.sh"
    environment["BITNET_TUNING_HOME"] = str(state)
    commands = {kind: [*shell, "-c", f". '{script}'"] for kind in KINDS}
    commands["empty"] = [*shell, "-c", f". '{folder / 'empty.sh'}'"]
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(-1, rounds):  # the first round only fills the caches
        for kind in (*KINDS[number % 3 :], *KINDS[: number % 3]):
            if kind == "miss":
                shutil.rmtree(state, ignore_errors=True)
            elif kind == "hit" and not state.exists():
                milliseconds(commands["miss"], environment)
                if not state.exists():
                    raise SystemExit(
                        "bitnet-env.sh cached no answer; was the package changed just now?"
                    )
            took = milliseconds(commands[kind], environment)
            if number >= 0:
                times[kind].append(took)
    return times


def quartiles(values: list[float]) -> str:
    """Return median and quartiles for the table."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.2f} ({low:.2f}-{high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100, help="rounds (default: %(default)s)")
    parser.add_argument(
        "--shell", action="append", choices=SHELLS, help="shell to time (default: all)"
    )
    options = parser.parse_args()
    names = [name for name in options.shell or SHELLS if shutil.which(name)]
    print("ms, median (quartiles)  empty file            hit, difference       miss, difference")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.sh").touch()
        (folder / "python3").symlink_to(sys.executable)
        for shell in names:
            times = measure(SHELLS[shell], options.rounds, folder)
            columns = [times["empty"]]
            for kind in KINDS[1:]:
                pairs = zip(times[kind], times["empty"], strict=True)
                columns.append([with_it - without for with_it, without in pairs])
            print(f"{shell:22}" + "".join(f"{quartiles(values):22}" for values in columns).rstrip())
    print(f"goal: a hit takes at most {AIM_MS} ms longer, a miss the time of one Python start")
    return 0


if __name__ == "__main__":
    sys.exit(main())
