"""Affinity, privileges, and CPU quotas wherever control groups are mounted."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from bitnet_tuning.machine.cgroups import read_task_limits
from bitnet_tuning.machine.detect import Privileges, read_privileges
from bitnet_tuning.machine.root import Root
from tests.machines import CGROUP, Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path).regular(cores=8, threads=2)


def test_without_limits_all_cores_are_usable(machine: Machine) -> None:
    host = machine.host()
    assert host.allowed == host.online
    assert (host.quota, host.usable_cores) == (None, 8)


# Affinity


@pytest.mark.parametrize(
    ("cpus", "allowed", "cores"),
    [
        ("0-3", {0, 1, 2, 3}, 4),
        ("0,8", {0, 8}, 1),
        ("8-15", set(range(8, 16)), 8),
        ("5", {5}, 1),
        ("3,40-60", {3}, 1),
    ],
)
def test_affinity_limits_the_cores(
    machine: Machine, cpus: str, allowed: set[int], cores: int
) -> None:
    host = machine.affinity(cpus).host()
    assert host.allowed == allowed
    assert (len(host.allowed_cores), host.usable_cores, len(host.cores)) == (cores, cores, 8)


@pytest.mark.parametrize("cpus", ["", "?", "70-80"])
def test_an_affinity_without_an_online_cpu_is_ignored(machine: Machine, cpus: str) -> None:
    assert machine.affinity(cpus).host().allowed == frozenset(range(16))


def test_old_kernels_show_affinity_as_a_mask(machine: Machine) -> None:
    machine.write("proc/self/status", "Name:\tx\nCpus_allowed:\t00000000,00000103")
    assert machine.host().allowed == {0, 1, 8}


def test_offline_cpus_are_not_allowed(machine: Machine) -> None:
    assert machine.affinity("0-2").offline(1).host().allowed == {0, 2}


# Privileges

FULL = "000001ffffffffff"
DOCKER = "00000000a80425fb"
"""Docker's default capabilities, which lack CAP_SYS_NICE and CAP_IPC_LOCK."""


class Limits(NamedTuple):
    nice: int
    memlock: int


def privileges(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, limits: Limits, user: int = 1000
) -> Privileges:
    resource = pytest.importorskip("resource")
    values = {resource.RLIMIT_NICE: limits.nice, resource.RLIMIT_MEMLOCK: limits.memlock}
    monkeypatch.setattr(resource, "getrlimit", lambda which: (values[which], values[which]))
    monkeypatch.setattr(os, "geteuid", lambda: user)
    return read_privileges(Root(str(machine.path)))


@pytest.mark.parametrize(
    ("capabilities", "users", "expected"),
    [
        pytest.param("0000000000000000", "0 0 4294967295", (20, 65536), id="user"),
        pytest.param(FULL, "         0          0 4294967295", (-20, None), id="root"),
        pytest.param(FULL, None, (-20, None), id="root without user namespaces"),
        pytest.param(DOCKER, "0 0 4294967295", (20, 65536), id="root of a container"),
        pytest.param(FULL, "0 1000 1", (20, 65536), id="root of a user namespace"),
        pytest.param("0000000000004000", "0 0 4294967295", (20, None), id="may lock"),
        pytest.param("0000000000800000", "0 0 4294967295", (-20, 65536), id="may be nice"),
    ],
)
def test_capabilities_permit_priority_and_locked_memory(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: str,
    users: str | None,
    expected: tuple[int, int | None],
) -> None:
    machine.write("proc/self/status", f"CapPrm:\t{FULL}\nCapEff:\t{capabilities}")
    if users:
        machine.write("proc/self/uid_map", users)
    assert privileges(machine, monkeypatch, Limits(0, 65536), user=0) == expected


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((0, 65536), (20, 65536)), ((30, 1 << 30), (-10, 1 << 30)), ((-1, -1), (-20, None))],
)
def test_resource_limits_permit_priority_and_locked_memory(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    expected: tuple[int, int | None],
) -> None:
    assert privileges(machine, monkeypatch, Limits(*limits)) == expected


@pytest.mark.parametrize(("user", "expected"), [(0, (-20, None)), (1000, (20, 65536))])
def test_without_capabilities_only_root_is_privileged(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    user: int,
    expected: tuple[int, int | None],
) -> None:
    assert privileges(machine, monkeypatch, Limits(0, 65536), user) == expected


# Version 2


@pytest.mark.parametrize(
    ("text", "quota", "cores"),
    [
        ("max 100000", None, 8),
        ("400000 100000", 4.0, 4),
        ("150000 100000", 1.5, 2),
        ("50000 100000", 0.5, 1),
        ("1000 100000", 0.01, 1),
        ("290000 100000", 2.9, 3),
        ("20000 10000", 2.0, 2),
        ("1600000 100000", 16.0, 8),
        ("200000", 2.0, 2),
        ("0 100000", None, 8),
        ("100000 0", None, 8),
        ("-1 100000", None, 8),
        ("", None, 8),
        ("many 100000", None, 8),
    ],
)
def test_a_quota_of_version_2_limits_the_usable_cores(
    machine: Machine, text: str, quota: float | None, cores: int
) -> None:
    host = machine.cgroup2("/", {"cpu.max": text}).host()
    assert host.quota == (None if quota is None else pytest.approx(quota))
    assert host.usable_cores == cores


@pytest.mark.parametrize("tightest", ["", "a/", "a/b/", "a/b/c/"])
def test_the_smallest_quota_of_all_parents_counts(machine: Machine, tightest: str) -> None:
    files = {f"{level}cpu.max": "600000 100000" for level in ("", "a/", "a/b/", "a/b/c/")}
    files[f"{tightest}cpu.max"] = "300000 100000"
    assert machine.cgroup2("/a/b/c", files).host().quota == 3.0


def test_quotas_of_other_groups_do_not_count(machine: Machine) -> None:
    files = {"a/cpu.max": "max 100000", "b/cpu.max": "100000 100000", "a/x/cpu.max": "1 100000"}
    assert machine.cgroup2("/a", files).host().quota is None


def test_the_smaller_of_affinity_and_quota_counts(machine: Machine) -> None:
    machine.cgroup2("/", {"cpu.max": "300000 100000"})
    assert machine.affinity("0-5").host().usable_cores == 3
    assert machine.affinity("0-1,8-9").host().usable_cores == 2


# Version 1


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct", "cpuacct,cpu"])
@pytest.mark.parametrize(
    ("quota", "period", "cpus"), [(200000, 100000, 2.0), (75000, 50000, 1.5), (-1, 100000, None)]
)
def test_a_quota_of_version_1_is_a_share_of_its_period(
    machine: Machine, controllers: str, quota: int, period: int, cpus: float | None
) -> None:
    files = {"job/cpu.cfs_quota_us": quota, "job/cpu.cfs_period_us": period}
    assert machine.cgroup1(controllers, "/job", files).host().quota == cpus


def test_a_quota_of_a_parent_counts_in_version_1(machine: Machine) -> None:
    files = {
        "cpu.cfs_quota_us": -1,
        "a/cpu.cfs_quota_us": 150000,
        "a/cpu.cfs_period_us": 100000,
        "a/b/cpu.cfs_quota_us": 400000,
        "a/b/cpu.cfs_period_us": 100000,
    }
    assert machine.cgroup1("cpu,cpuacct", "/a/b", files).host().quota == 1.5


def test_the_default_period_is_100_milliseconds(machine: Machine) -> None:
    assert machine.cgroup1("cpu", "/", {"cpu.cfs_quota_us": 200000}).host().quota == 2.0


def test_each_hierarchy_of_version_1_has_its_own_path(machine: Machine) -> None:
    machine.cgroup1("memory", "/elsewhere")
    machine.cgroup1("cpuset", "/third")
    files = {"here/cpu.cfs_quota_us": 100000, "elsewhere/cpu.cfs_quota_us": 50000}
    assert machine.cgroup1("cpu", "/here", files).host().quota == 1.0


def test_a_quota_of_version_1_counts_beside_version_2(machine: Machine) -> None:
    """The "hybrid" layout of systemd has no controllers in version 2."""
    machine.cgroup2("/user.slice", mount=f"/{CGROUP}/unified")
    machine.cgroup1("name=systemd", "/user.slice", mount=f"/{CGROUP}/systemd")
    files = {"user.slice/cpu.cfs_quota_us": 250000, "user.slice/cpu.cfs_period_us": 100000}
    assert machine.cgroup1("cpu,cpuacct", "/user.slice", files).host().quota == 2.5


def test_the_smaller_quota_of_both_versions_counts(machine: Machine) -> None:
    machine.cgroup2("/", {"cpu.max": "200000 100000"}, mount=f"/{CGROUP}/unified")
    machine.cgroup1("cpu", "/", {"cpu.cfs_quota_us": 300000})
    assert machine.host().quota == 2.0


# Mounts


@pytest.mark.parametrize("mount", ["/cgroup2", "/mnt/a b/groups", "/dev/cgroup/v2"])
def test_version_2_is_found_in_an_unusual_place(machine: Machine, mount: str) -> None:
    host = machine.cgroup2("/a", {"a/cpu.max": "100000 100000"}, mount=mount).host()
    assert host.quota == 1.0


def test_version_1_is_found_in_an_unusual_place(machine: Machine) -> None:
    files = {"a/cpu.cfs_quota_us": 100000}
    assert machine.cgroup1("cpu", "/a", files, mount="/cgroup/processors").host().quota == 1.0


def test_version_2_is_found_without_mountinfo(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/a").write("a/unrelated", "")
    machine.write("proc/self/mounts", "proc /proc proc rw 0 0\nnone /groups cgroup2 rw 0 0")
    assert machine.write("groups/a/cpu.max", "300000 100000").host().quota == 3.0


def test_version_1_is_found_without_mountinfo(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:cpu,cpuacct:/a")
    machine.write("proc/mounts", "none /groups cgroup rw,nosuid,cpuacct,cpu 0 0")
    assert machine.write("groups/a/cpu.cfs_quota_us", 300000).host().quota == 3.0


@pytest.mark.parametrize("table", ["", "22 1 8:1 / / rw - ext4 /dev/sda1 rw"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cpu.max", "200000 100000"),
        ("job/cpu.max", "200000 100000"),
        ("unified/job/cpu.max", "200000 100000"),
        ("cpu/job/cpu.cfs_quota_us", "200000"),
        ("cpu,cpuacct/cpu.cfs_quota_us", "200000"),
        ("cpuacct,cpu/job/cpu.cfs_quota_us", "200000"),
    ],
)
def test_the_usual_places_are_read_if_no_mount_is_listed(
    machine: Machine, table: str, name: str, content: str
) -> None:
    """A dump of a machine may lack the mount table."""
    machine.write("proc/self/cgroup", "3:cpu,cpuacct:/job\n0::/job")
    if table:
        machine.write("proc/self/mountinfo", table)
    assert machine.write(f"{CGROUP}/{name}", content).host().quota == 2.0


def test_a_container_may_mount_only_its_own_group(machine: Machine) -> None:
    """Without a cgroup namespace the path of the group is still that of the host."""
    group = "/docker/0123abc"
    machine.cgroup2(group, {"cpu.max": "200000 100000"}, origin=group)
    assert machine.host().quota == 2.0


def test_a_group_may_be_below_the_mounted_one(machine: Machine) -> None:
    files = {"job/cpu.cfs_quota_us": 100000, "cpu.cfs_quota_us": 300000}
    machine.cgroup1("cpu,cpuacct", "/docker/0123abc/job", files, origin="/docker/0123abc")
    assert machine.host().quota == 1.0


def test_a_mount_of_a_group_with_a_similar_name_is_another_one(machine: Machine) -> None:
    files = {"cpu.max": "200000 100000", "456/cpu.max": "100000 100000"}
    assert machine.cgroup2("/docker/123456", files, origin="/docker/123").host().quota == 2.0


@pytest.mark.parametrize("path", ["/..", "/../../other", "/a/../../b", "/../a (deleted)"])
def test_nothing_outside_the_mount_point_is_read(machine: Machine, path: str) -> None:
    machine.write("sys/fs/other/cpu.max", "1000 100000").write("sys/b/cpu.max", "1000 100000")
    assert machine.cgroup2(path, {"cpu.max": "200000 100000"}).host().quota == 2.0


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("path", "own"), [("/", "pod/job"), ("/../x", "pod/x"), ("/in", "pod/a/in")]
)
def test_a_namespace_without_a_mount_of_its_own_shows_the_quotas(
    machine: Machine, version: int, path: str, own: str
) -> None:
    """After `unshare -C` the mount still shows the host's groups, with an origin above "/". The
    lists of processes say which one is this process's own."""
    quota = "cpu.max" if version == 2 else "cpu.cfs_quota_us"
    end = " 100000" if version == 2 else ""
    files: dict[str, str | int] = {
        "cgroup.procs": "1\n2",
        "other/cgroup.procs": "777",
        f"other/{quota}": f"50000{end}",
        "pod/cgroup.procs": "",
        f"pod/{quota}": f"150000{end}",
        "pod/a/cgroup.procs": "4213",
        f"{own}/cgroup.procs": "77\n421",
        f"{own}/{quota}": f"250000{end}",
    }
    machine.write("proc/self/status", "Name:\tpython3\nPid:\t421")
    if version == 2:
        machine.cgroup2(path, files, origin="/../..")
    else:
        machine.cgroup1("cpu", path, files, origin="/../..")
    assert machine.host().quota == 1.5


def test_the_parent_of_a_removed_group_counts(machine: Machine) -> None:
    machine.cgroup2("/a/gone (deleted)", {"a/cpu.max": "200000 100000"})
    assert machine.host().quota == 2.0


def test_a_groups_name_may_contain_colons(machine: Machine) -> None:
    files = {"docker:1:2/cpu.max": "200000 100000"}
    assert machine.cgroup2("/docker:1:2", files).host().quota == 2.0


def test_mounts_of_other_groups_do_not_count(machine: Machine) -> None:
    """The group of another container may be mounted before that of this process."""
    machine.cgroup2("/ours", {"cpu.max": "50000 100000"}, mount="/other", origin="/theirs")
    machine.cgroup2("/ours", {"ours/cpu.max": "200000 100000"})
    assert machine.host().quota == 2.0


@pytest.mark.parametrize("outer_first", [True, False])
def test_both_mounts_of_a_hierarchy_count(machine: Machine, outer_first: bool) -> None:
    """A monitoring container sees its own group, and the host's whole hierarchy elsewhere."""
    outer = {"pods/cpu.max": "100000 100000"}
    inner = {"cpu.max": "300000 100000"}
    if outer_first:
        machine.cgroup2("/pods/x", outer, mount="/host/cgroup")
    machine.cgroup2("/pods/x", inner, origin="/pods/x")
    if not outer_first:
        machine.cgroup2("/pods/x", outer, mount="/host/cgroup")
    assert machine.host().quota == 1.0


@pytest.mark.parametrize(
    "line", ["", "-", "a b c", "1 2 3 / /x - cgroup2", "1 2 0:1 / /x rw - ext4 none rw,cpu", " - "]
)
def test_broken_mount_lines_are_ignored(machine: Machine, line: str) -> None:
    machine.append("proc/self/mountinfo", line)
    assert machine.cgroup2("/", {"cpu.max": "200000 100000"}).host().quota == 2.0


def test_other_file_systems_with_the_option_cpu_are_ignored(machine: Machine) -> None:
    line = "40 25 0:40 / /tmp/x rw - tmpfs none rw,cpu"
    machine.append("proc/self/mountinfo", line).write("tmp/x/cpu.cfs_quota_us", 100000)
    assert machine.host().quota is None


# Limits on processes and threads


def tasks(machine: Machine, uid: int, *threads: int) -> Machine:
    """Processes of a user; the first one is this process, and one of somebody else's runs too."""
    for number, count in enumerate(threads):
        for folder in {f"proc/{100 + number}", *(("proc/self",) if number == 0 else ())}:
            text = f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nThreads:\t{count}"
            machine.write(f"{folder}/status", text)
    return machine.write("proc/99/status", "Name:\ty\nUid:\t7\t7\t7\t7\nThreads:\t50")


def limited(machine: Machine, most: str) -> Machine:
    head = "Limit                     Soft Limit           Hard Limit           Units"
    row = f"Max processes             {most:20} {most:20} processes"
    return machine.write("proc/self/limits", f"{head}\n{row}")


def test_the_users_limit_counts_the_threads_of_all_of_its_processes(machine: Machine) -> None:
    limited(tasks(machine, 1000, 1, 12), "40")
    assert read_task_limits(Root(str(machine.path))) == [("the user's limit (ulimit -u)", 40, 13)]
    assert read_task_limits(Root(str(limited(machine, "unlimited").path))) == []


def test_root_has_no_limit_but_the_root_of_a_user_namespace_does(machine: Machine) -> None:
    limited(tasks(machine, 0, 3), "40")
    assert read_task_limits(Root(str(machine.path))) == []
    machine.write("proc/self/uid_map", "         0          0 4294967295")
    assert read_task_limits(Root(str(machine.path))) == []
    machine.write("proc/self/uid_map", "         0       1000          1")
    assert [limit[1:] for limit in read_task_limits(Root(str(machine.path)))] == [(40, 3)]


@pytest.mark.parametrize("version", [1, 2])
def test_every_level_of_control_groups_may_limit_tasks(machine: Machine, version: int) -> None:
    if version == 2:
        machine.cgroup2("/a/b")
        base = CGROUP
    else:
        machine.cgroup1("pids", "/a/b")
        base = f"{CGROUP}/pids"
    for level, most, used in (("a/b", "max", 3), ("a", "20", 15)):
        machine.write(f"{base}/{level}/pids.max", most)
        machine.write(f"{base}/{level}/pids.current", str(used))
    assert read_task_limits(Root(str(machine.path))) == [
        (f"pids.max of the control group /{base}/a", 20, 15)
    ]
