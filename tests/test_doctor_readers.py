"""What the doctor reads of a machine: mounts, .wslconfig, limits and kernel settings."""

from __future__ import annotations

from math import inf
from pathlib import Path

import pytest

from bitnet_tuning.machine.cgroups import Mount, mount_holding, read_mounts
from bitnet_tuning.machine.detect import read_lock_limit
from bitnet_tuning.machine.memory import read_huge_pages, read_numa_balancing
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import read_base_clock
from bitnet_tuning.machine.wsl import parse_wsl_config, read_wsl_configs
from tests.machines import GIBIBYTE, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root").regular(cores=2)


def root(machine: Machine) -> Root:
    return Root(str(machine.path))


# Mounts


def test_the_longest_mount_point_holds_a_path(machine: Machine) -> None:
    machine.mount("/", "ext4", "/dev/sda1").windows_drive().mount("/mnt/c/own disk", "xfs")
    mounts = read_mounts(root(machine))
    kinds = {
        path: (found := mount_holding(path, mounts)) and found.kind
        for path in ("/home/a/m.gguf", "/mnt/c/m.gguf", "/mnt/cd/m.gguf", "/mnt/c/own disk/m.gguf")
    }
    assert list(kinds.values()) == ["ext4", "9p", "ext4", "xfs"]


def test_a_later_mount_hides_an_earlier_one(machine: Machine) -> None:
    machine.mount("/data", "nfs", "server:/data").mount("/data", "ext4", "/dev/sdb1")
    found = mount_holding("/data/m.gguf", read_mounts(root(machine)))
    assert found is not None
    assert found.kind == "ext4"


def test_proc_mounts_counts_where_mountinfo_is_missing(machine: Machine) -> None:
    machine.write("proc/mounts", "C:\\134 /mnt/c drvfs rw,noatime 0 0\nbroken\n")
    assert read_mounts(root(machine)) == (Mount("/mnt/c", "drvfs", "C:\\", "rw,noatime"),)


def test_without_a_table_there_are_no_mounts(machine: Machine) -> None:
    assert read_mounts(root(machine)) == ()
    assert mount_holding("/m.gguf", ()) is None


@pytest.mark.parametrize(
    ("kind", "source", "options", "windows"),
    [
        ("drvfs", "C:", "rw", True),
        ("9p", "C:\\", "rw,aname=drvfs;path=C:\\", True),
        ("9p", "drvfs", "rw,aname=drvfs;path=D:\\", True),
        ("virtiofs", "drvfsC", "rw", True),
        ("9p", "hostshare", "rw,trans=virtio", False),
        ("ext4", "/dev/sdc", "rw", False),
    ],
)
def test_windows_drives(kind: str, source: str, options: str, windows: bool) -> None:
    assert Mount("/mnt/c", kind, source, options).windows is windows


# .wslconfig


@pytest.mark.parametrize(
    ("text", "memory"),
    [
        ("4GB", 4 * GIBIBYTE),
        ("512MB", 512 << 20),
        ("4 gb # for the laptop", 4 * GIBIBYTE),
        ("8589934592B", 8 * GIBIBYTE),
        ("1073741", 1073741),
        ("a lot", None),
        ("4.5GB", None),
        ("", None),
    ],
)
def test_sizes_in_a_wslconfig(text: str, memory: int | None) -> None:
    found = parse_wsl_config("/x", f"[wsl2]\nmemory={text}\n")
    assert found.memory == memory
    assert bool(found.problems) is (memory is None)


def test_a_whole_wslconfig() -> None:
    found = parse_wsl_config(
        "/x",
        "\ufeff# mine\n[WSL2]\nprocessors = 6\nMemory=2GB\nswap=0\nlocalhostForwarding\n"
        "[experimental]\nmemory=1GB\n",
    )
    assert found == ("/x", 2 * GIBIBYTE, 6, ())


@pytest.mark.parametrize("text", ["memory=4GB", "[wsl2\nmemory", "\x00\x01"])
def test_a_file_that_is_not_a_wslconfig_has_a_problem(text: str) -> None:
    found = parse_wsl_config("/x", text)
    assert (found.memory, found.processors) == (None, None)
    assert len(found.problems) == 1


def test_the_files_of_all_users_on_all_drives_are_read(machine: Machine) -> None:
    machine.wsl_config("[wsl2]\nmemory=4GB").wsl_config("[wsl2]", user="Bob")
    machine.windows_drive("/win/d").write("win/d/Users/Eve/.wslconfig", "[wsl2]\nprocessors=2")
    found = read_wsl_configs(root(machine), read_mounts(root(machine)))
    assert [(config.path, config.memory, config.processors) for config in found] == [
        ("/win/d/Users/Eve/.wslconfig", None, 2),
        ("/mnt/c/Users/Ada Example/.wslconfig", 4 * GIBIBYTE, None),
        ("/mnt/c/Users/Bob/.wslconfig", None, None),
    ]


# Limits and settings


@pytest.mark.parametrize(
    ("soft", "limit"),
    [(8388608, 8388608), ("unlimited", inf), ("much", None)],
)
def test_a_recorded_lock_limit(machine: Machine, soft: int | str, limit: float | None) -> None:
    assert read_lock_limit(root(machine.lock_limit(soft))) == limit


def test_without_a_recorded_lock_limit_it_is_unknown(machine: Machine) -> None:
    assert read_lock_limit(root(machine)) is None


def test_huge_pages_and_numa_balancing(machine: Machine) -> None:
    assert read_huge_pages(root(machine)).transparent is None
    assert read_numa_balancing(root(machine)) is None
    machine.huge_pages("madvise").write("proc/sys/kernel/numa_balancing", 2)
    assert read_huge_pages(root(machine)).transparent == "madvise"
    assert read_numa_balancing(root(machine)) is True
    machine.write("proc/sys/kernel/numa_balancing", 0)
    assert read_numa_balancing(root(machine)) is False


def test_the_base_clock_comes_from_three_places(machine: Machine) -> None:
    def base(brand: str | None) -> float | None:
        return read_base_clock(root(machine), frozenset({0, 1}), brand)

    assert base(None) is None
    assert base("Some CPU @ ..GHz") is None
    assert base("Intel(R) Xeon(R) Silver 4108 CPU @ 1.80GHz") == pytest.approx(1800)
    machine.per_cpu("acpi_cppc/nominal_freq", {0: 2100, 1: 0})
    assert base("Some CPU @ 1.80GHz") == 2100
    machine.per_cpu("cpufreq/base_frequency", {0: 1900000, 1: 1400000})
    assert base(None) == 1900
