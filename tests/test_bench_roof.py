"""What limits a speed, the memory bandwidth above all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_tuning.bench import limits
from bitnet_tuning.bench.bandwidth import AbsentError, Bandwidth
from bitnet_tuning.bench.limits import Ceiling, roof
from bitnet_tuning.bench.results import Part
from bitnet_tuning.machine.conditions import Meanwhile
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root
from tests.machines import Machine


def memory(rate: float, at_least: bool = False) -> Bandwidth:
    return Bandwidth(rate, 2, (rate,), at_least)


def test_share_and_limit_follow_from_bandwidth_and_speed() -> None:
    found = roof(memory(34e9), 10**9, (1.0, 27.0, 28.0))
    assert found.share == pytest.approx(27 / 34)
    assert found.limit_tokens_per_second == 34.0


@pytest.mark.parametrize(("read", "speeds", "why"), [(None, (2.0,), "bytes"), (9, (), "not meas")])
def test_without_figures_there_is_no_roof(
    read: int | None, speeds: tuple[float, ...], why: str
) -> None:
    with pytest.raises(AbsentError, match=why):
        roof(memory(34e9), read, speeds)


@pytest.mark.parametrize(
    ("bandwidth", "speed", "at_least", "sentence"),
    [
        (34e9, 27.0, False, "generation reads 27 GB/s of 34 GB/s: 79 % of what memory allows"),
        (
            34e9,
            27.0,
            True,
            "generation reads 27 GB/s of at least 34 GB/s: at most 79 % of what memory allows",
        ),
        (
            123.4e9,
            0.5,
            False,
            "generation reads 0.5 GB/s of 123 GB/s: less than 1 % of what memory allows",
        ),
        (27e9, 27.0, False, "generation reads 27 GB/s of 27 GB/s: 100 % of what memory allows"),
    ],
)
def test_the_sentence_tells_the_share(
    bandwidth: float, speed: float, at_least: bool, sentence: str
) -> None:
    assert roof(memory(bandwidth, at_least), 10**9, (speed,)).words == sentence


@pytest.mark.parametrize(("at_least", "why"), [(False, "slower while"), (True, "is faster than")])
def test_a_speed_beyond_memory_is_explained(at_least: bool, why: str) -> None:
    sentence = roof(memory(34e9, at_least), 10**9, (41.0,)).words
    assert sentence.startswith(
        "generation reads 41 GB/s, more than the 34 GB/s measured from memory: part of"
    )
    assert why in sentence


# Speeds that memory does not allow

MEBIBYTE = 1 << 20


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Ceiling]:
    """Make a ceiling on a machine with a last-level cache of 32 MiB for each two of its four CPUs,
    whose memory delivers these bandwidths, one after the other."""

    def made(*found: Bandwidth, quota: float | None = None) -> Ceiling:
        machine = Machine(tmp_path / "root").regular(4)
        for cpu in range(4):
            folder = f"sys/devices/system/cpu/cpu{cpu}/cache/index3"
            machine.write(f"{folder}/level", "3").write(f"{folder}/size", "32768K")
            machine.write(f"{folder}/shared_cpu_list", "0-1" if cpu < 2 else "2-3")
        left = list(found)

        def measure(threads: int, host: Host) -> Bandwidth:
            asked.append(threads)
            if not left:
                raise AbsentError("no memory")
            return left.pop(0)

        asked.clear()
        monkeypatch.setattr(limits, "measure_bandwidth", measure)
        host = machine.host()._replace(quota=quota)
        return Ceiling(host, Root(str(machine.path)))

    return made


asked: list[int] = []
"""Threads with which bandwidth was measured."""


def test_a_speed_far_above_memory_is_refused_with_its_reason(seen: Callable[..., Ceiling]) -> None:
    ceiling = seen(memory(10e9), memory(20e9), memory(15e9))
    assert ceiling.objection(10**9, 9.0) is None
    assert asked == [4], "measured once, with all CPUs"
    assert ceiling.objection(10**9, 20.0) is None, "memory was busy when it was measured first"
    assert ceiling.found == memory(20e9), "the best that was seen"
    assert ceiling.objection(10**9, 340.0) == (
        "340 tokens/s would read 340 GB/s, but this memory delivers 20 GB/s at most"
    )
    assert ceiling.objection(10**9, 24.0) is None, "15 % more are noise"
    assert len(asked) == 3, "not again and again"


@pytest.mark.parametrize(
    ("read", "cpus", "speed", "refused"),
    [
        (None, None, 1e6, False),
        (60 * MEBIBYTE, None, 1e6, False),
        (100 * MEBIBYTE, None, 300.0, False),
        (100 * MEBIBYTE, None, 700.0, True),
        (100 * MEBIBYTE, frozenset({0}), 700.0, True),
    ],
)
def test_what_caches_can_hold_need_not_come_from_memory(
    seen: Callable[..., Ceiling],
    read: int | None,
    cpus: frozenset[int] | None,
    speed: float,
    refused: bool,
) -> None:
    ceiling = seen(*[memory(20e9)] * 3)
    assert (ceiling.objection(read, speed, cpus) is not None) == refused


def test_an_unknown_bandwidth_refuses_nothing(seen: Callable[..., Ceiling]) -> None:
    ceiling = seen()
    assert ceiling.objection(10**9, 1e6) is None
    assert (ceiling.found, ceiling.reason) == (None, "no memory")
    ceiling.objection(10**9, 1e6)
    assert len(asked) == 1
    assert seen(memory(20e9, at_least=True)).objection(10**9, 1e6) is None


def test_a_quota_bounds_the_threads_that_read(seen: Callable[..., Ceiling]) -> None:
    seen(memory(20e9), quota=1.5).look()
    assert asked == [2]


# What limits a speed

CALM = Meanwhile(100.0, 0.1, 0.0, 0, 0, 0.0, None, None)
EVEN = {1: 0.1, 2: 0.1}
UNKNOWN = "Limit: none of memory, kernels, waiting, neighbours and quota stands out"


@pytest.mark.parametrize(
    ("share", "seconds", "costs", "meanwhile", "expected"),
    [
        (0.9, {1: 0.11, 2: 0.059}, EVEN, CALM, []),
        (
            0.4,
            {1: 0.111, 2: 0.059},
            EVEN,
            CALM,
            [
                "Kernels: a token takes 111 ms with 1 and 59 ms with 2 threads; more cores would "
                "help"
            ],
        ),
        (0.4, {1: 0.1, 2: 0.09}, EVEN, CALM, [UNKNOWN]),
        (
            0.4,
            {},
            {1: 0.1, 2: 0.16},
            CALM,
            [
                "Waiting: a token costs 100 ms of CPU time with 1 and 160 ms with 2 threads, "
                "which wait for each other or for memory in 38 % of it"
            ],
        ),
        (
            0.4,
            {},
            {},
            CALM._replace(other_load_cpus=1.234),
            ["Neighbours: other programs took 1.2 CPUs on average meanwhile"],
        ),
        (
            0.4,
            {},
            {},
            CALM._replace(quota_periods=100, quota_throttled_periods=40),
            ["Quota: the CPU quota paused the engine in 40 of 100 periods"],
        ),
        (0.4, {2: 0.1}, {2: 0.2}, CALM, [UNKNOWN]),
        (None, {}, {}, None, [UNKNOWN]),
    ],
)
def test_what_limits_a_speed_is_named_from_measurements(
    share: float | None,
    seconds: dict[int, float],
    costs: dict[int, float],
    meanwhile: Meanwhile | None,
    expected: list[str],
) -> None:
    roof = Part({"share": share, "words": "some share"}) if share else Part(None, "no memory")
    said = list(limits.limiting(roof, seconds, costs, meanwhile))
    assert said == ["Memory: some share" if share else "Memory: no memory", *expected]
