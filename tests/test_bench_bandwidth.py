"""Memory bandwidth: buffers and CPUs on fake machines, the reading itself on this one."""

from __future__ import annotations

import ctypes
import math
import os
import threading
from pathlib import Path

import pytest

from bitnet_tuning.bench import bandwidth
from bitnet_tuning.bench.bandwidth import (
    LEAST_BUFFER,
    PASSES,
    AbsentError,
    buffer_size,
    measure_bandwidth,
    read_together,
    reader,
    spread,
)
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.root import Root
from tests.machines import GIBIBYTE, Machine

MEBIBYTE = 1 << 20
NOWHERE = 4095
"""A CPU that no machine of a test has, so that a thread stays where it is."""


def do_nothing(_: int, __: int) -> None:
    pass


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=4, threads=2)


def size_of(
    machine: Machine, threads: int, cpus: frozenset[int] = frozenset(range(8))
) -> int | None:
    host = machine.host()._replace(allowed=cpus)
    return buffer_size(threads, host, Root(str(machine.path)))


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
    with pytest.raises(AbsentError, match="too little free memory"):
        measure_bandwidth(2, host, root=Root(str(machine.path)))


# CPUs of the threads


def test_threads_take_one_cpu_of_each_core_first(machine: Machine) -> None:
    host = machine.host()
    assert spread(host, host.allowed) == (0, 1, 2, 3, 4, 5, 6, 7)
    assert spread(host, frozenset((0, 4, 2))) == (0, 2, 4)
    assert spread(host, frozenset((99,))) == ()


def test_threads_take_performance_cores_first(tmp_path: Path) -> None:
    host = Machine(tmp_path).hybrid(performance=2, efficiency=2).host()
    assert spread(host, host.allowed) == (0, 2, 4, 5, 1, 3)


# Reading


@pytest.mark.parametrize(("from_cache", "limits"), [(3e9, True), (9e9, False)])
def test_no_more_threads_than_cpus(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, from_cache: float, limits: bool
) -> None:
    # Several threads on one CPU would read their slices from its cache again and again.
    sizes: list[tuple[int, int]] = []

    def record(team: tuple[int, ...], each: int, _: object) -> list[float]:
        sizes.append((len(team), each))
        return [8e9, 5e9, 2e9]

    monkeypatch.setattr(bandwidth, "read_together", record)
    monkeypatch.setattr(bandwidth, "cached_rate", lambda _: from_cache)
    host = machine.host()._replace(allowed=frozenset((1, 2)))
    seen = measure_bandwidth(64, host, Root(str(machine.path)))
    assert (seen.threads, seen.median, seen.samples) == (64, 5e9, (8e9, 5e9, 2e9))
    assert sizes == [(2, LEAST_BUFFER // 2)]
    assert seen.reader_limits is limits


def test_the_reader_sees_every_byte() -> None:
    # A comparison that ends early would make memory look fast.
    data = bytearray([bandwidth.FILL]) * 4096
    address = ctypes.addressof((ctypes.c_char * 4096).from_buffer(data))
    read = reader()
    read(address, 4096)
    for place in (2047, 4095):
        data[place] = 2
        with pytest.raises(ValueError, match="equal bytes"):
            read(address, 4096)
        data[place] = bandwidth.FILL


def test_no_library(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: object) -> None:
        raise OSError

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(AbsentError, match="no C library"):
        measure_bandwidth(1, machine.host(), root=Root(str(machine.path)))


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
                raise ValueError("it broke")
            self.contents.add(ctypes.string_at(address, size))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read one step in each pass."""
    monkeypatch.setattr(bandwidth, "PASS_SECONDS", 0.0)


@pytest.mark.usefixtures("short")
def test_every_thread_writes_its_slice_and_reads_it_in_each_pass() -> None:
    counted = Counted()
    rates = read_together((NOWHERE,) * 3, 4096, counted.read)
    assert len(rates) == PASSES
    assert min(rates) > 0
    assert counted.calls == 3 * PASSES
    assert counted.contents == {bytes([bandwidth.FILL]) * 4096}


@pytest.mark.parametrize("call", [1, 2, 4, 7])
@pytest.mark.usefixtures("short")
def test_a_thread_that_fails_stops_all(call: int) -> None:
    with pytest.raises(AbsentError, match="it broke"):
        read_together((NOWHERE,) * 2, 4096, Counted(fails=call).read)


@pytest.mark.usefixtures("short")
def test_memory_that_cannot_be_allocated() -> None:
    with pytest.raises(AbsentError, match="could not be measured"):
        read_together((NOWHERE,) * 2, 1 << 62, do_nothing)


def test_a_thread_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = threading.Thread.start
    started: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(AbsentError, match="did not start"):
        read_together((NOWHERE,) * 2, 4096, do_nothing)
    started[0].join(10)
    assert not started[0].is_alive()


@pytest.mark.usefixtures("short")
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_threads_are_bound_and_this_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    bound: list[tuple[int, set[int]]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cpus: bound.append((pid, cpus)))
    read_together((3, 5), 4096, do_nothing)
    assert sorted(bound, key=str) == [(0, {3}), (0, {5})]


def test_this_machine_has_a_plausible_bandwidth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "LEAST_BUFFER", 32 * MEBIBYTE)
    monkeypatch.setattr(bandwidth, "CACHE_FACTOR", 0)
    monkeypatch.setattr(bandwidth, "PASS_SECONDS", 0.01)
    try:
        seen = measure_bandwidth(2, read_host())
    except AbsentError as why:
        pytest.skip(str(why))
    assert seen.median > 1e7, "plausible even on a busy machine"
    assert min(seen.samples) > 0
    assert seen.threads == 2
