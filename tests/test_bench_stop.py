"""Signals interrupt a measurement, but not what saves the results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from bitnet_tuning.launch.signals import Stop, Stopped

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_interrupts_a_measurement(number: int) -> None:
    with Stop() as stop, pytest.raises(Stopped) as caught, stop.interruptible():
        os.kill(os.getpid(), number)
        pytest.fail("the measurement went on")
    assert caught.value.number == number


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_between_measurements_interrupts_the_next_one(number: int) -> None:
    done = []
    with Stop() as stop:
        os.kill(os.getpid(), number)
        done.append("saved")
        with pytest.raises(Stopped) as caught, stop.interruptible():
            done.append("measured")
    assert done == ["saved"]
    assert caught.value.number == number


def test_a_second_signal_does_not_interrupt_the_cleanup() -> None:
    cleaned = []
    with Stop() as stop, pytest.raises(Stopped), stop.interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned.append(True)
    assert cleaned == [True]


def test_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in NUMBERS]
    with Stop():
        assert [signal.getsignal(number) for number in NUMBERS] != before
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop() as stop, stop.interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_fourth_signal_ends_a_program_that_is_stuck() -> None:
    code = (
        "import os, signal, time\n"
        "from bitnet_tuning.launch.signals import Stop\n"
        "with Stop():\n"
        "    for _ in range(3):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "    print('and here')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGTERM, "still here\n")
