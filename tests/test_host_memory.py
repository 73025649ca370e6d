"""Memory, reduced to what the limits of control groups leave."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_tuning.machine.memory import Memory
from tests.machines import CGROUP, GIBIBYTE, Machine

NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).meminfo(64 * GIBIBYTE, 48 * GIBIBYTE)


def total_and_available(machine: Machine) -> tuple[float | None, float | None]:
    memory = machine.host().memory
    total = None if memory.total is None else memory.total / GIBIBYTE
    return total, None if memory.available is None else memory.available / GIBIBYTE


def test_without_limits_all_memory_counts(machine: Machine) -> None:
    assert machine.host().memory == Memory(64 * GIBIBYTE, 48 * GIBIBYTE)


def test_on_old_kernels_free_memory_and_cache_are_available(machine: Machine) -> None:
    machine.meminfo(8 * GIBIBYTE)
    for key, size in (("MemFree", 1), ("Buffers", 2), ("Cached", 3), ("SwapCached", 99)):
        machine.append("proc/meminfo", f"{key}:  {size * 1024 * 1024} kB")
    assert total_and_available(machine) == (8, 6)


def test_available_memory_may_be_unknown(machine: Machine) -> None:
    assert total_and_available(machine.meminfo(8 * GIBIBYTE)) == (8, None)


@pytest.mark.parametrize(
    "text", ["", "MemTotal\n", "MemTotal: lots kB", "MemTotal: -5 kB", "MemTotal: 1.5 kB", "\0\0"]
)
def test_a_broken_meminfo_gives_no_memory(machine: Machine, text: str) -> None:
    assert machine.write("proc/meminfo", text).host().memory == Memory(None, None)


# Version 2


def test_memory_max_limits_total_and_available(machine: Machine) -> None:
    files = {"a/memory.max": 8 * GIBIBYTE, "a/memory.current": 3 * GIBIBYTE}
    assert total_and_available(machine.cgroup2("/a", files)) == (8, 5)


def test_inactive_page_cache_is_available(machine: Machine) -> None:
    """A model that was read once stays in the page cache of the group."""
    files = {
        "memory.max": 8 * GIBIBYTE,
        "memory.current": 7 * GIBIBYTE,
        "memory.stat": f"anon 123\nfile 456\ninactive_file {4 * GIBIBYTE}\nactive_file 99",
    }
    assert total_and_available(machine.cgroup2("/", files)) == (8, 5)


def test_memory_high_counts_if_it_is_smaller(machine: Machine) -> None:
    files = {"memory.max": 8 * GIBIBYTE, "memory.high": 6 * GIBIBYTE, "memory.current": GIBIBYTE}
    assert total_and_available(machine.cgroup2("/", files)) == (6, 5)


def test_the_word_max_is_no_limit(machine: Machine) -> None:
    files = {"memory.max": "max", "memory.high": "max", "memory.current": 60 * GIBIBYTE}
    assert total_and_available(machine.cgroup2("/", files)) == (64, 48)


@pytest.mark.parametrize("tightest", ["", "a/", "a/b/"])
def test_the_smallest_limit_of_all_parents_counts(machine: Machine, tightest: str) -> None:
    files = {f"{level}memory.max": 32 * GIBIBYTE for level in ("", "a/", "a/b/")}
    files[f"{tightest}memory.max"] = 4 * GIBIBYTE
    assert total_and_available(machine.cgroup2("/a/b", files)) == (4, 4)


def test_memory_that_others_use_in_a_parent_is_not_available(machine: Machine) -> None:
    files = {
        "a/memory.max": 10 * GIBIBYTE,
        "a/memory.current": 9 * GIBIBYTE,
        "a/b/memory.max": 8 * GIBIBYTE,
        "a/b/memory.current": 1 * GIBIBYTE,
    }
    assert total_and_available(machine.cgroup2("/a/b", files)) == (8, 1)


def test_use_above_the_limit_leaves_nothing(machine: Machine) -> None:
    files = {"memory.max": 2 * GIBIBYTE, "memory.current": 3 * GIBIBYTE}
    assert total_and_available(machine.cgroup2("/", files)) == (2, 0)


def test_available_memory_is_at_most_the_limit(machine: Machine) -> None:
    files = {
        "memory.max": 2 * GIBIBYTE,
        "memory.current": GIBIBYTE,
        "memory.stat": f"inactive_file {5 * GIBIBYTE}",
    }
    assert total_and_available(machine.cgroup2("/", files)) == (2, 2)


def test_a_limit_above_the_machines_memory_does_not_count(machine: Machine) -> None:
    files = {"memory.max": 500 * GIBIBYTE, "memory.current": GIBIBYTE}
    assert total_and_available(machine.cgroup2("/", files)) == (64, 48)


def test_a_limit_counts_without_meminfo(machine: Machine) -> None:
    machine.remove("proc/meminfo").cgroup2("/", {"memory.max": GIBIBYTE})
    assert total_and_available(machine) == (1, 1)


# Version 1


def test_a_limit_of_version_1_counts(machine: Machine) -> None:
    files = {
        "a/memory.limit_in_bytes": 8 * GIBIBYTE,
        "a/memory.usage_in_bytes": 6 * GIBIBYTE,
        "a/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * GIBIBYTE}",
    }
    assert total_and_available(machine.cgroup1("memory", "/a", files)) == (8, 4)


def test_the_largest_number_of_version_1_is_no_limit(machine: Machine) -> None:
    files = {"memory.limit_in_bytes": NO_LIMIT_V1, "memory.usage_in_bytes": 60 * GIBIBYTE}
    assert total_and_available(machine.cgroup1("memory", "/", files)) == (64, 48)


def test_a_limit_of_a_parent_counts_in_version_1(machine: Machine) -> None:
    files = {
        "a/memory.limit_in_bytes": 4 * GIBIBYTE,
        "a/b/memory.limit_in_bytes": NO_LIMIT_V1,
    }
    assert total_and_available(machine.cgroup1("memory", "/a/b", files)) == (4, 4)


def test_a_limit_of_a_parent_that_is_not_mounted_counts_in_version_1(machine: Machine) -> None:
    """A container sees only its own folder, but its statistics tell the limits of parents."""
    files = {
        "memory.limit_in_bytes": NO_LIMIT_V1,
        "memory.stat": f"cache 1\nhierarchical_memory_limit {16 * GIBIBYTE}",
    }
    assert total_and_available(
        machine.cgroup1("memory", "/docker/1", files, origin="/docker/1")
    ) == (16, 16)


def test_the_smaller_limit_of_both_versions_counts(machine: Machine) -> None:
    machine.cgroup2("/", {"memory.max": 8 * GIBIBYTE}, mount=f"/{CGROUP}/unified")
    machine.cgroup1("memory", "/", {"memory.limit_in_bytes": 4 * GIBIBYTE})
    assert total_and_available(machine) == (4, 4)


@pytest.mark.parametrize("text", ["", "none", "-1", "8G", "1e9"])
def test_a_broken_limit_is_ignored(machine: Machine, text: str) -> None:
    machine.cgroup2("/", {"memory.max": text, "memory.high": text})
    assert total_and_available(machine.cgroup1("memory", "/", {"memory.limit_in_bytes": text})) == (
        64,
        48,
    )
