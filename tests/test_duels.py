"""Benchmarks of duels: the program that slows another one down, and what is printed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import duels
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER

SLOWED = Path(duels.SLOWED)


def slowed(share: float, code: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-IS", str(SLOWED), str(share), sys.executable, "-IS", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)


def test_a_slowed_program_keeps_its_output_and_its_exit_code() -> None:
    done = slowed(0.5, "print('out'); raise SystemExit(3)")
    assert (done.returncode, done.stdout) == (3, "out\n")


def test_a_slowed_program_that_a_signal_ended_is_seen() -> None:
    done = slowed(0.5, f"import os; os.kill(os.getpid(), {int(signal.SIGTERM)})")
    assert done.returncode == 128 + signal.SIGTERM


def test_a_slowed_program_is_stopped_again_and_again() -> None:
    # Each look lasts a millisecond, unless the program was stopped in it.
    code = """
import time
gaps, end, last = 0, time.monotonic() + 20, time.monotonic()
while gaps < 3 and time.monotonic() < end:
    time.sleep(0.001)
    now = time.monotonic()
    gaps, last = gaps + (now - last > 0.5), now
print(gaps)
"""
    assert slowed(0.9, code).stdout == "3\n"


def test_verdicts_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    one = duels.Duel(FASTER, 1.02, 1.01, 1.03, 20, 30.0, 0.02, 14.0)
    duels.show([one, one._replace(verdict=SLOWER, ratio=0.98), one._replace(verdict=EQUAL), one])
    said = capsys.readouterr().out
    assert said.startswith(f"4 duels: {FASTER} 2, {SLOWER} 1, {EQUAL} 1, {OPEN} 0; ratio 1.0200 ")
    assert "20 rounds, 30.0 s" in said
