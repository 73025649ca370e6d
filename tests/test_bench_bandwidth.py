"""Memory bandwidth: buffers and CPUs on fake machines, the reading itself on this one."""

from __future__ import annotations

import ctypes
import json
import math
import os
import threading
from pathlib import Path

import pytest

from bitnet_tuning.bench import bandwidth
from bitnet_tuning.bench.bandwidth import (
    LEAST_BUFFER,
    Absent,
    Bandwidth,
    Reader,
    ReadError,
    Team,
    buffer_size,
    fastest_reader,
    measure_bandwidth,
    places,
    pooled,
    readers,
    spread,
    summary,
)
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.root import Root
from bitnet_tuning.store.codec import to_json
from tests.machines import GIBIBYTE, Machine

MEBIBYTE = 1 << 20
ANYWHERE = frozenset[int]()
"""No CPUs, so that a thread stays where it is."""


def do_nothing(_: int, __: int) -> None:
    pass


def reader(from_cache: float) -> Reader:
    return Reader("memchr", do_nothing, from_cache)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=4, threads=2)


def size_of(
    machine: Machine, threads: int, cpus: frozenset[int] = frozenset(range(8))
) -> int | None:
    return buffer_size(threads, machine.host(), cpus, Root(str(machine.path)))


# Size of the buffer


def test_the_buffer_has_a_minimum(machine: Machine) -> None:
    assert size_of(machine, 4) == LEAST_BUFFER
    assert size_of(machine.cache(range(8), 3, "8M"), 4) == LEAST_BUFFER


def test_the_buffer_is_four_times_the_caches_that_the_threads_fill(machine: Machine) -> None:
    machine.cache((0, 4, 1, 5), 3, "96M").cache((2, 6, 3, 7), 3, "128M")
    assert size_of(machine, 1) == 512 * MEBIBYTE
    assert size_of(machine, 2) == size_of(machine, 8) == 896 * MEBIBYTE
    assert size_of(machine, 8, frozenset((0, 1))) == 384 * MEBIBYTE


def test_the_buffer_takes_at_most_a_quarter_of_the_free_memory(machine: Machine) -> None:
    machine.cache(range(8), 3, "192M").meminfo(4 * GIBIBYTE, 2 * GIBIBYTE)
    assert size_of(machine, 1) == GIBIBYTE // 2


def test_a_buffer_that_the_caches_would_hold_is_too_small(machine: Machine) -> None:
    machine.cache(range(8), 3, "257M").meminfo(4 * GIBIBYTE, 2 * GIBIBYTE)
    assert size_of(machine, 1) is None


def test_every_thread_has_a_slice_larger_than_its_own_cache(machine: Machine) -> None:
    assert size_of(machine, 100) == 1600 * MEBIBYTE


def test_too_little_memory(machine: Machine) -> None:
    host = machine.host()._replace(memory=Memory(None, 127 * MEBIBYTE))
    absent = measure_bandwidth(2, host, root=Root(str(machine.path)))
    assert isinstance(absent, Absent)
    assert "too little free memory" in absent.reason


# CPUs of the threads


def test_threads_take_one_cpu_of_each_core_first(machine: Machine) -> None:
    host = machine.host()
    assert spread(host, host.allowed) == (0, 1, 2, 3, 4, 5, 6, 7)
    assert spread(host, frozenset((0, 4, 2))) == (0, 2, 4)
    assert spread(host, frozenset((99,))) == ()


def test_threads_take_performance_cores_first(tmp_path: Path) -> None:
    host = Machine(tmp_path).hybrid(performance=2, efficiency=2).host()
    assert spread(host, host.allowed) == (0, 2, 4, 5, 1, 3)


def test_with_too_few_cpus_all_threads_get_all_of_them(machine: Machine) -> None:
    host, some = machine.host(), frozenset((1, 5, 2))
    assert places(host, some, 2) == (frozenset((1,)), frozenset((2,)))
    assert places(host, some, 4) == (some,) * 4


# Figures


def test_passes_are_summarised() -> None:
    seen = summary([3e9, 1e9, 2e9], 2, 512, reader(1.6e9))
    assert seen == Bandwidth(2e9, 1e9, 3e9, 2, (3e9, 1e9, 2e9), 512, "memchr", False)
    assert json.loads(json.dumps(to_json(seen)))["samples"] == [3e9, 1e9, 2e9]


def test_a_function_that_is_no_faster_from_the_cache_limits_the_figure() -> None:
    assert summary([2e9], 2, 512, reader(1.4e9)).reader_limits


def test_two_measurements_are_joined() -> None:
    first = summary([3e9, 1e9], 2, 512, reader(9e9))
    both = pooled(first, summary([5e9], 2, 512, reader(1e9)))
    assert (both.median, both.low, both.high) == (3e9, 1e9, 5e9)
    assert both.samples == (3e9, 1e9, 5e9)
    assert both.reader_limits


# Reading


def test_no_more_threads_than_cpus(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    # Several threads on one CPU would read their slices from its cache again and again.
    sizes: list[tuple[int, int]] = []

    class Recorder:
        def __init__(self, team: tuple[frozenset[int], ...], each: int, _: object) -> None:
            sizes.append((len(team), each))

        def run(self) -> list[float]:
            return [5e9]

    monkeypatch.setattr(bandwidth, "Team", Recorder)
    monkeypatch.setattr(bandwidth, "fastest_reader", lambda: reader(3e9))
    seen = measure_bandwidth(64, machine.host(), frozenset((1, 2)), Root(str(machine.path)))
    assert isinstance(seen, Bandwidth)
    assert (seen.threads, seen.buffer, seen.samples) == (64, LEAST_BUFFER, (5e9,))
    assert sizes == [(2, LEAST_BUFFER // 2)]
    assert seen.reader_limits


def test_both_readers_see_every_byte() -> None:
    # A search that ends early would make memory look fast.
    functions = readers()
    if not functions:
        pytest.skip("no C library here")
    assert set(functions) == {"memchr", "memcmp"}
    for read in functions.values():
        data = bytearray([bandwidth.FILL]) * 4096
        buffer = (ctypes.c_char * 4096).from_buffer(data)
        read(ctypes.addressof(buffer), 4096)
        data[4095] = 2
        with pytest.raises(ReadError):
            read(ctypes.addressof(buffer), 4096)


def test_no_library(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert fastest_reader() is None
    absent = measure_bandwidth(1, machine.host(), root=Root(str(machine.path)))
    assert isinstance(absent, Absent)
    assert "no C library" in absent.reason


class Counted:
    """A function that reads nothing, counts its calls, and fails at call number ``fails``."""

    def __init__(self, fails: float = math.inf) -> None:
        self.lock = threading.Lock()
        self.calls = 0
        self.fails = fails
        self.contents: set[bytes] = set()

    def read(self, address: int, size: int) -> None:
        with self.lock:
            self.calls += 1
            if self.calls >= self.fails:
                raise ReadError("it broke")
            self.contents.add(ctypes.string_at(address, size))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure the fewest passes, without repeats within a pass."""
    monkeypatch.setattr(bandwidth, "PASS_SECONDS", 0.0)
    monkeypatch.setattr(bandwidth, "SECONDS", 0.0)


@pytest.mark.usefixtures("short")
def test_every_thread_writes_its_slice_and_reads_it_in_each_pass() -> None:
    counted = Counted()
    rates = Team((ANYWHERE,) * 3, 4096, counted.read).run()
    assert len(rates) == 3
    assert min(rates) > 0
    assert counted.calls == 3 * (1 + 3)
    assert counted.contents == {bytes([bandwidth.FILL]) * 4096}


@pytest.mark.parametrize("call", [1, 2, 4, 7])
@pytest.mark.usefixtures("short")
def test_a_thread_that_fails_stops_all(call: int) -> None:
    with pytest.raises(ReadError, match="it broke"):
        Team((ANYWHERE,) * 2, 4096, Counted(fails=call).read).run()


@pytest.mark.usefixtures("short")
def test_memory_that_cannot_be_allocated() -> None:
    with pytest.raises(ReadError):
        Team((ANYWHERE,) * 2, 1 << 62, do_nothing).run()


def test_a_thread_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread.start
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(ReadError, match="did not start"):
        Team((ANYWHERE,) * 2, 4096, do_nothing).run()
    started[0].join(10)
    assert not started[0].is_alive()


@pytest.mark.usefixtures("short")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_threads_are_bound_and_this_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[tuple[int, frozenset[int]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: bound.append((pid, cpus)))
    Team((frozenset((3,)), frozenset((5,))), 4096, do_nothing).run()
    assert sorted(bound, key=str) == [(0, frozenset((3,))), (0, frozenset((5,)))]


def test_this_machine_has_a_plausible_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "LEAST_BUFFER", 32 * MEBIBYTE)
    monkeypatch.setattr(bandwidth, "CACHE_FACTOR", 0)
    monkeypatch.setattr(bandwidth, "SECONDS", 0.1)
    seen = measure_bandwidth(2, read_host())
    if isinstance(seen, Absent):
        pytest.skip(seen.reason)
    assert seen.median > 1e7, "plausible even on a busy machine"
    assert min(seen.samples) > 0
    assert seen.low <= seen.median <= seen.high
    assert (seen.threads, seen.reader in ("memchr", "memcmp")) == (2, True)
