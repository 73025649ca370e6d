#!/usr/bin/env python3
"""How much longer a shell takes that sources bitnet-env.sh than one that sources an empty file.

Both are started in turn, which one first changes every round, and the difference is taken
round by round: a machine that is busy slows down both.

    python3 benchmarks/env_overhead.py [--rounds N] [--shell NAME ...] [--root DIR]
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
AIM_MS = 10

SHELLS = {
    "dash": ["dash"],
    "bash": ["bash", "--norc", "--noprofile"],
    "zsh": ["zsh", "-f"],
    "busybox": ["busybox", "sh"],
}


def milliseconds(command: list[str], environment: dict[str, str]) -> float:
    """From the start of a shell to its end; raises CalledProcessError where it fails."""
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=True)
    return 1000 * (time.perf_counter() - start)


def measure(shell: list[str], empty: Path, rounds: int, root: str) -> tuple[list[float], ...]:
    """Milliseconds with the script and with the empty file, one of each per round."""
    prefixes = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "BITNET_")
    environment = {name: text for name, text in os.environ.items() if not name.startswith(prefixes)}
    environment["BITNET_ENV_ROOT"] = root
    commands = [[*shell, "-c", f". '{file}'"] for file in (REPOSITORY / "bitnet-env.sh", empty)]
    times: tuple[list[float], ...] = ([], [])
    for command in commands:  # fills the caches
        milliseconds(command, environment)
    for number in range(rounds):
        for which in (0, 1) if number % 2 else (1, 0):
            times[which].append(milliseconds(commands[which], environment))
    return times


def quartiles(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.2f} ({low:.2f}-{high:.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--shell", action="append", choices=SHELLS)
    parser.add_argument("--root", default="", help="another machine's proc and sys")
    options = parser.parse_args()
    names = [name for name in options.shell or SHELLS if shutil.which(name)]
    print("ms, median (quartiles)   empty file          bitnet-env.sh       difference")
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.sh"
        empty.touch()
        for name in names:
            ours, theirs = measure(SHELLS[name], empty, options.rounds, options.root)
            more = [mine - bare for mine, bare in zip(ours, theirs, strict=True)]
            columns = "".join(f"{quartiles(values):20}" for values in (theirs, ours, more))
            print(f"{name:23}{columns.rstrip()}")
    print(f"aim: at most {AIM_MS} ms more in dash and bash on two cores")
    return 0


if __name__ == "__main__":
    sys.exit(main())
