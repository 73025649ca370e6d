#!/usr/bin/env python3
"""Measure how much longer run_inference.py takes than a bare launcher to start an engine.

The bare launcher does what upstream's script does: argparse, then subprocess.run. The engine is
/bin/echo under the name llama-cli; its first byte shows that it runs. Each round starts both, in
changing order, and the ratio is taken within a round.

    python3 benchmarks/launch_overhead.py [--rounds N] [--python EXECUTABLE]
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

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitnet_tuning.engine.known import FREE
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Crowding, fingerprint
from bitnet_tuning.store.state import State, moment

REPOSITORY = Path(__file__).resolve().parent.parent
AIM = 1.15
"""Largest median ratio that is acceptable."""

BARE = """\
import argparse
import subprocess
import sys

parser = argparse.ArgumentParser(description="Run inference")
parser.add_argument("-m", "--model", type=str, default="model.gguf")
parser.add_argument("-n", "--n-predict", type=int, default=128)
parser.add_argument("-p", "--prompt", type=str, required=True)
parser.add_argument("-t", "--threads", type=int, default=2)
parser.add_argument("-c", "--ctx-size", type=int, default=2048)
parser.add_argument("-temp", "--temperature", type=float, default=0.8)
parser.add_argument("-cnv", "--conversation", action="store_true")
args, extra = parser.parse_known_args()
command = [{engine!r}, "-m", args.model, "-n", str(args.n_predict), "-t", str(args.threads),
           "-p", args.prompt, "-ngl", "0", "-c", str(args.ctx_size),
           "--temp", str(args.temperature), *extra]
subprocess.run(command, check=True)
"""


def first_byte(command: list[str], environment: dict[str, str]) -> float:
    """Return the seconds until the first byte on stdout. Raise RuntimeError without one."""
    start = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, bufsize=0
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        byte = process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
        log = process.stderr.read()
    if not byte or process.returncode:
        raise RuntimeError(f"{command} failed: {log.decode()}")
    return seconds


def quartiles(values: list[float]) -> str:
    """Return the median with quartiles and range for printing."""
    low, middle, high = statistics.quantiles(values, n=4)
    spread = f"quartiles {low:.3f}-{high:.3f}, all {min(values):.3f}-{max(values):.3f}"
    return f"median {middle:.3f} ({spread})"


def measure(python: str, rounds: int, folder: Path) -> tuple[list[float], list[float]]:
    """Return the seconds of run_inference.py and of the bare launcher, one of each per round."""
    engine = folder / "build" / "bin" / "llama-cli"
    engine.parent.mkdir(parents=True)
    shutil.copy(shutil.which("echo") or "/bin/echo", engine)
    bare = folder / "bare.py"
    bare.write_text(BARE.format(engine=str(engine)))
    model = str(REPOSITORY / "bitnet_tuning" / "demo" / "demo-i2_s.gguf")
    tail = ["-m", model, "-p", "a prompt"]
    ours = [python, str(REPOSITORY / "run_inference.py"), "--engine", str(engine), *tail]
    theirs = [python, str(bare), *tail]
    state = State(str(folder / "state"))
    environment = {**os.environ, "BITNET_TUNING_HOME": state.folder}
    # As on any machine where an engine has run the demo model, which /bin/echo cannot do.
    host = read_host()
    key = str(tuple(fingerprint(host)))
    state.store(FREE, key, Crowding(moment(), host.usable_cores, host.usable_cores))
    # Let Python cache compiled modules, as it does on a user's machine.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    for command in (ours, theirs, ours):  # fill the caches; the first run probes the engine
        first_byte(command, environment)
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for number in range(rounds):
        pair = [("ours", ours), ("theirs", theirs)]
        for name, command in pair if number % 2 else reversed(pair):
            times[name].append(first_byte(command, environment))
    return times["ours"], times["theirs"]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="rounds (default: %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="Python to time (default: this)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = measure(options.python, options.rounds, Path(folder))
    ratios = [mine / bare for mine, bare in zip(ours, theirs, strict=True)]
    print(f"run_inference.py, ms to the engine:  {quartiles([1000 * value for value in ours])}")
    print(f"bare launcher, ms to the engine:     {quartiles([1000 * value for value in theirs])}")
    print(f"ratio within a round:                {quartiles(ratios)}")
    print(f"goal: a median of at most {AIM}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
