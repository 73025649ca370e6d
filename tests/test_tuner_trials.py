"""The simulated tunings of benchmarks/tuner_trials.py, with a few trials."""

from __future__ import annotations

import pytest

from benchmarks import tuner_trials
from benchmarks.tuner_trials import EQUAL, MACHINES, SERVERS, Lab, Row, Weather, highest_mean, ours

NOISY = Weather(0.15, 0.0)
THREADS, MMAP = MACHINES[1:3]


def row(machine: tuner_trials.Machine, trials: int = 5) -> Row:
    outcomes = tuner_trials.tunings(ours, machine, NOISY, [300.0] * trials, seed=5)
    return Row(machine, "ours", outcomes)


def test_equal_settings_hardly_ever_have_a_winner() -> None:
    assert sum(each.crowned for each in row(EQUAL).outcomes) <= 1


@pytest.mark.parametrize("machine", [THREADS, MMAP])
def test_a_better_setting_is_mostly_found(machine: tuner_trials.Machine) -> None:
    outcomes = row(machine).outcomes
    assert sum(each.speed == pytest.approx(1.2) for each in outcomes) >= 4
    assert max(each.runs for each in outcomes) <= 300 / SERVERS.phase


def test_the_highest_mean_of_two_runs_takes_noise_for_a_gain() -> None:
    done = highest_mean(Lab(EQUAL, NOISY, "1"), 300)
    assert done.crowned
    assert done.runs == 2 * 5 * 2**5


def test_true_speeds_multiply() -> None:
    machine = EQUAL._replace(threads={4: 1.0, 3: 1.1}, knobs={"no mmap": 1.2})
    assert machine.best() == pytest.approx(1.32)
    space = machine.space
    best = space.default._replace(threads=3, threads_batch=3, mmap=False)
    assert machine.speed(best) == pytest.approx(1.32)
    assert machine.speed(space.default) == 1.0


def test_a_row_counts(capsys: pytest.CaptureFixture[str]) -> None:
    found = tuner_trials.Outcome(1.2, True, 100)
    missed = tuner_trials.Outcome(1.0, False, 200)
    tuner_trials.show([Row(THREADS, "ours", [found, missed])])
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[-6:] == ["ours", "1/2", "1/2", "0/2", "0.917", "150"]


def test_quick_decides_threads_and_the_slim_file() -> None:
    options = tuner_trials.parse(["--trials", "5", "--noise", "0.1"])
    assert min(tuner_trials.quick(options)) >= 4
    assert min(tuner_trials.quick(options, 1.29, tuner_trials.BUSY)) >= 4
