"""Virtual machines with more CPUs than their host runs at once: found by a trial, remembered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.engine import probe
from bitnet_tuning.engine.find import Location
from bitnet_tuning.engine.known import know, know_crowding
from bitnet_tuning.engine.probe import find_limit
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.machine.host import Crowding, Host
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.threads import choose_threads
from bitnet_tuning.prepare import crowded_host
from bitnet_tuning.store.state import State, moment
from tests.doctor_cases import case_of, found_in
from tests.engines import FakeEngine
from tests.machines import Machine, x86_entries

FOUND = Crowding("2026-01-31T12:00:00Z", 8, 2, 40.0)

Run = Callable[[int, int, float], Captured]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the load of the machine that runs the tests."""
    monkeypatch.setattr(probe, "BUSY", float("inf"))


def virtual(folder: Path, cores: int = 8, flags: str = "avx avx2 fma hypervisor") -> Machine:
    return Machine(folder).regular(cores).cpuinfo(x86_entries(cores, flags))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return virtual(tmp_path / "host").host()


def timed(rate: float | None) -> Captured:
    """A run that computed 200 tokens of a prompt at ``rate`` tokens/s; None: it took too long."""
    log = "" if rate is None else f"prompt eval time = {200 / rate * 1000:.3f} ms / 200 tokens\n"
    return Captured(None if rate is None else 0, "", log)


def running(rates: Mapping[int, float | None], seen: list[int] | None = None) -> Run:
    """An engine that is as fast as ``rates`` says for each number of threads."""

    def run(threads: int, batch: int, seconds: float) -> Captured:
        if seen is not None:
            seen.append(threads)
        return timed(rates[threads])

    return run


CROWDED_RATES: Mapping[int, float | None] = {8: 100, 4: 900, 2: 3900, 1: 4000}


@pytest.mark.parametrize(
    ("rates", "threads", "tried"),
    [
        pytest.param({8: 20000, 1: 4000}, 8, [1, 1, 8], id="ordinary"),
        pytest.param({8: 1500, 1: 4000}, 8, [1, 1, 8], id="busy at most"),
        pytest.param(CROWDED_RATES, 2, [1, 1, 8, 8, 1, 1, 8, 4, 4, 2], id="two real CPUs"),
        pytest.param({**CROWDED_RATES, 2: 1000}, 1, [1, 1, 8, 8, 1, 1, 8, 4, 4, 2, 2], id="one"),
        pytest.param(
            {8: None, 4: 3900, 1: 4000}, 4, [1, 1, 8, 8, 1, 1, 8, 4], id="too slow to end"
        ),
        pytest.param({8: 100, 1: None}, None, [1], id="even one thread"),
    ],
)
def test_the_most_threads_that_are_not_slower_are_found_by_halving(
    rates: Mapping[int, float | None], threads: int | None, tried: list[int]
) -> None:
    seen: list[int] = []
    found = find_limit(8, running(rates, seen))
    assert (found.planned, found.threads, seen) == (8, threads, tried)
    assert found.limits == (threads not in (None, 8))


@pytest.mark.parametrize("good", [1, 2, 3])
def test_one_good_run_of_the_planned_threads_clears_the_host(good: int) -> None:
    """A disturbance slows some runs down; a crowded host slows down all of them."""
    runs = iter(range(1, 4))

    def run(threads: int, batch: int, seconds: float) -> Captured:
        return timed(100 if threads == 8 and next(runs) != good else 4000)

    assert find_limit(8, run).threads == 8


@pytest.mark.parametrize(("rate", "batch"), [(20000, 32), (1000, 10), (24, 1)])
def test_a_slow_cpu_computes_fewer_tokens_at_a_time(rate: float, batch: int) -> None:
    """Threads wait for each other after each batch: about as often as with a real model."""
    seen: list[int] = []

    def run(threads: int, batch: int, seconds: float) -> Captured:
        seen.append(batch)
        return timed(rate * threads)

    find_limit(8, run)
    assert seen == [32, batch, batch]


def test_a_trial_beside_other_programs_finds_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter(range(100))
    monkeypatch.setattr(probe, "BUSY", 0.25)
    monkeypatch.setattr(probe, "_others", lambda: 1000 * next(times))
    assert find_limit(8, running(CROWDED_RATES)).threads is None
    assert find_limit(8, running({8: 2000, 1: 4000})).threads is None
    assert find_limit(8, running({8: 8000, 1: 4000})).threads == 8  # no load made it faster


# What is remembered


def trial(rates: Mapping[int, float | None], seen: list[int]) -> Crowding:
    return find_limit(8, running(rates, seen))


def test_a_limit_is_remembered_for_this_host_only(host: Host, tmp_path: Path) -> None:
    state, seen = State(str(tmp_path / "state")), list[int]()
    limited = know_crowding(host, state, lambda: trial(CROWDED_RATES, seen))
    assert limited.crowded is not None
    assert (limited.usable_cores, host.usable_cores) == (2, 8)
    seen.clear()
    assert know_crowding(host, state, lambda: trial({}, seen)) == limited
    assert know_crowding(host, state, None) == limited
    changed = virtual(tmp_path / "changed", 6).host()
    assert know_crowding(changed, state, None) == changed
    assert seen == []


def test_a_host_that_is_not_crowded_is_tried_once(host: Host, tmp_path: Path) -> None:
    state, seen = State(str(tmp_path / "state")), list[int]()
    good: Mapping[int, float | None] = {8: 9000, 1: 4000}
    for _ in range(2):
        assert know_crowding(host, state, lambda: trial(good, seen)) == host
    assert seen == [1, 1, 8]
    # Only the doctor asks again.
    crowd = lambda: trial(CROWDED_RATES, seen)  # noqa: E731
    assert know_crowding(host, state, crowd, again=True).usable_cores == 2
    assert know_crowding(host, state, None).usable_cores == 2
    assert know_crowding(host, state, lambda: trial(good, seen), again=True) == host
    assert know_crowding(host, state, None) == host


@pytest.mark.parametrize(
    ("threads", "confirmed", "age", "is_tried"),
    [
        (2, False, 1800, False),
        (2, False, 2 * 3600, True),
        (2, True, 23 * 3600, False),
        (2, True, 25 * 3600, True),
        (None, False, 1800, False),
        (None, False, 2 * 3600, True),
    ],
)
def test_limits_and_worthless_trials_are_repeated_some_time(
    host: Host, tmp_path: Path, threads: int | None, confirmed: bool, age: float, is_tried: bool
) -> None:
    state, seen = State(str(tmp_path / "state")), list[int]()
    nothing = trial({8: 100, 1: None}, [])
    know_crowding(host, state, lambda: nothing)
    (record,) = Path(state.folder).iterdir()
    stored: dict[str, Any] = json.loads(record.read_text())
    change = {"threads": threads, "confirmed": confirmed, "tried": moment(age)}
    record.write_text(json.dumps({**stored, **change}))
    result = know_crowding(host, state, lambda: trial({8: 9000, 1: 4000}, seen))
    assert seen == ([1, 1, 8] if is_tried else [])
    assert result.usable_cores == (8 if is_tried or threads is None else threads)


def test_a_second_trial_confirms_a_limit(host: Host, tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    seen = [
        know_crowding(host, state, lambda: trial(CROWDED_RATES, []), again=True) for _ in range(2)
    ]
    assert [each.crowded and each.crowded.confirmed for each in seen] == [False, True]


def test_a_trial_that_cannot_tell_does_not_replace_a_limit(host: Host, tmp_path: Path) -> None:
    state = State(str(tmp_path / "state"))
    know_crowding(host, state, lambda: trial(CROWDED_RATES, []))
    again = know_crowding(host, state, lambda: trial({8: 100, 1: None}, []), again=True)
    assert again.usable_cores == 2


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(lambda path: virtual(path, flags="avx2"), id="bare metal"),
        pytest.param(lambda path: virtual(path, 1), id="one CPU"),
        pytest.param(lambda path: virtual(path).affinity("3"), id="one usable CPU"),
        pytest.param(
            lambda path: virtual(path).cgroup2("/", {"cpu.max": "100000 100000"}), id="quota"
        ),
    ],
)
def test_nothing_is_run_where_there_is_nothing_to_find(
    tmp_path: Path, machine: Callable[[Path], Machine]
) -> None:
    seen: list[int] = []
    host = machine(tmp_path / "host").host()
    state = State(str(tmp_path / "state"))
    assert know_crowding(host, state, lambda: trial(CROWDED_RATES, seen)) == host
    assert seen == []


def test_nothing_is_run_at_every_start_if_nothing_can_be_stored(host: Host, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("not a folder")
    state, seen = State(str(tmp_path / "state")), list[int]()
    assert not state.store("engine", "key", FOUND)
    assert know_crowding(host, state, lambda: trial(CROWDED_RATES, seen)) == host
    assert seen == []


# A real process


def test_the_engine_runs_the_demo_model(host: Host, tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    text = fake.cli.read_text()
    slow = 'print("prompt eval time = 900 ms / 9 tokens" if value("-t") in "48" else timings('
    assert "print(timings(" in text
    fake.cli.write_text(text.replace("print(timings(", slow))
    state = State(str(tmp_path / "state"))
    engine = know(Location(str(fake.cli), "found"), state)
    limited = crowded_host(host, engine, state)
    runs = [run for run in fake.runs() if "-ub" in run["argv"]]
    threads = [int(run["argv"][run["argv"].index("-t") + 1]) for run in runs]
    assert threads == [1, 1, 8, 8, 1, 1, 8, 4, 4, 2]
    assert limited.usable_cores == 2
    started = len(fake.runs())
    assert crowded_host(host, engine, state) == limited
    assert crowded_host(host, engine._replace(ran=False), state, again=True) == limited
    assert len(fake.runs()) == started


# What follows from it


def test_a_plan_stays_within_the_limit_and_says_why(host: Host) -> None:
    plan = choose_threads(Request(), host._replace(crowded=FOUND), {})
    assert (plan.setting.threads, plan.setting.threads_batch) == (2, 2)
    reason = plan.reasons["threads"]
    assert "8 threads ran the demo model at least 40 times slower than one on 2026-01-31" in reason


@pytest.mark.parametrize(
    ("request_", "environ"),
    [
        (Request(threads=6), {}),
        (Request(), {"BITNET_THREADS": "6"}),
        (Request(), {"OMP_NUM_THREADS": "6"}),
    ],
)
def test_the_user_may_ask_for_more(host: Host, request_: Request, environ: dict[str, str]) -> None:
    plan = choose_threads(request_, host._replace(crowded=FOUND), environ)
    assert plan.setting.threads == 6
    assert "the 2 that this virtual machine" in plan.warnings[0]


def test_the_doctor_names_a_crowded_host(tmp_path: Path) -> None:
    machine = virtual(tmp_path)
    assert "crowded host" not in found_in(case_of(machine))
    finding = found_in(case_of(machine, host=machine.host()._replace(crowded=FOUND)))[
        "crowded host"
    ]
    assert finding.state == "warn"
    assert "40 times slower" in finding.text and "2 threads at most" in finding.text


def test_a_state_folder_that_cannot_be_written_means_no_trial(host: Host, tmp_path: Path) -> None:
    """Otherwise every start would make one."""
    folder = tmp_path / "state"
    folder.write_text("in the way")
    tried: list[int] = []

    def attempt() -> Crowding:
        tried.append(1)
        return FOUND

    know_crowding(host, State(str(folder)), attempt)
    assert tried == []


def test_a_record_of_no_threads_limits_nothing(host: Host) -> None:
    assert not FOUND._replace(threads=0).limits
