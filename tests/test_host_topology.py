"""Logical CPUs, physical cores, packages and NUMA nodes of fake machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.topology import Node
from tests.machines import CPU, NODE, Machine, x86_entries


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def core_sets(host: Host) -> set[frozenset[int]]:
    return {core.cpus for core in host.cores}


def test_a_core_is_a_set_of_siblings(machine: Machine) -> None:
    host = machine.regular(cores=4, threads=2).host()
    assert core_sets(host) == {frozenset((core, core + 4)) for core in range(4)}
    assert (host.packages, host.threads_per_core, host.usable_cores) == (1, 2, 4)
    assert host.topology_known


def test_siblings_may_have_neighbouring_ids(machine: Machine) -> None:
    host = machine.cores([[0, 1], [2, 3]]).host()
    assert core_sets(host) == {frozenset((0, 1)), frozenset((2, 3))}


def test_core_ids_may_repeat_in_a_package(machine: Machine) -> None:
    """Two dies in one package both count their cores from 0."""
    host = machine.cores([[0], [1], [2], [3]], core_ids=[0, 1, 0, 1]).host()
    assert len(host.cores) == 4


def test_core_ids_that_differ_do_not_split_siblings(machine: Machine) -> None:
    machine.cores([[0, 1]]).write(f"{CPU}/cpu1/topology/core_id", 7)
    assert len(machine.host().cores) == 1


def test_packages_may_have_the_same_core_ids(machine: Machine) -> None:
    host = machine.regular(cores=8, threads=2, packages=2, node_per_package=True).host()
    assert (len(host.cores), host.packages, len(host.online)) == (16, 2, 32)
    assert [node.id for node in host.nodes] == [0, 1]
    assert host.nodes[1].cpus == frozenset((*range(8, 16), *range(24, 32)))


@pytest.mark.parametrize("threads", [4, 8])
def test_a_core_may_have_more_than_two_cpus(machine: Machine, threads: int) -> None:
    groups = [list(range(core * threads, (core + 1) * threads)) for core in range(3)]
    host = machine.cores(groups).host()
    assert (len(host.cores), host.threads_per_core) == (3, threads)


def test_cores_may_have_different_numbers_of_cpus(machine: Machine) -> None:
    host = machine.cores([[0, 1], [2], [3, 4, 5, 6]]).host()
    assert (len(host.cores), host.threads_per_core) == (3, 4)


@pytest.mark.parametrize("new_names", [False, True])
@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("end", [b"", b"\n", b"\n\0", b"\0"])
def test_every_form_of_sibling_file_is_read(
    machine: Machine, masks: bool, new_names: bool, end: bytes
) -> None:
    groups = [[0, 70], [1, 71]]
    host = machine.cores(groups, masks=masks, new_names=new_names, end=end).host()
    assert core_sets(host) == {frozenset(group) for group in groups}
    assert host.topology_known


def test_the_mask_replaces_a_broken_list(machine: Machine) -> None:
    machine.cores([[0, 1], [2, 3]], masks=True)
    for cpu in range(4):
        machine.write(f"{CPU}/cpu{cpu}/topology/thread_siblings_list", "?")
    assert len(machine.host().cores) == 2


@pytest.mark.parametrize(("count", "masks"), [(65, True), (129, False)])
def test_a_machine_may_have_hundreds_of_cpus(machine: Machine, count: int, masks: bool) -> None:
    groups = [[core, core + count] for core in range(count)]
    host = machine.cores(groups, masks=masks).node(0, range(2 * count), mask=masks).host()
    assert (len(host.online), len(host.cores)) == (2 * count, count)
    assert host.nodes[0].cpus == frozenset(range(2 * count))
    assert host.usable_cores == count


def test_ids_may_have_gaps(machine: Machine) -> None:
    host = machine.cores([[0, 1, 2, 3], [88, 89, 90, 91]]).host()
    assert host.online == frozenset((0, 1, 2, 3, 88, 89, 90, 91))
    assert len(host.cores) == 2


def test_cpu_0_may_be_offline(machine: Machine) -> None:
    host = machine.cores([[0, 2], [1, 3]]).node(0, range(4)).offline(0).host()
    assert core_sets(host) == {frozenset((2,)), frozenset((1, 3))}
    assert host.allowed == {1, 2, 3}
    assert host.nodes[0].cpus == {1, 2, 3}


def test_a_core_without_an_online_cpu_does_not_count(machine: Machine) -> None:
    host = machine.regular(cores=4, threads=2).offline(1, 5, 2).host()
    assert host.online == {0, 3, 4, 6, 7}
    assert len(host.cores) == 3


def test_offline_siblings_are_ignored(machine: Machine) -> None:
    machine.cores([[0, 1], [2, 3]]).write(f"{CPU}/online", "0,2-3")
    assert core_sets(machine.host()) == {frozenset((0,)), frozenset((2, 3))}


def test_each_cpus_own_file_replaces_a_missing_online_file(machine: Machine) -> None:
    """CPU 0 has no such file on machines where it cannot be taken offline."""
    machine.regular(cores=4).remove(f"{CPU}/online")
    machine.per_cpu("online", {1: 1, 2: 0, 3: 1})
    assert machine.host().online == {0, 1, 3}


def test_a_cpu_without_a_topology_folder_is_offline_if_no_file_says_so(machine: Machine) -> None:
    machine.regular(cores=4).offline(3).remove(f"{CPU}/online").remove(f"{CPU}/cpu3/online")
    assert machine.host().online == {0, 1, 2}


def test_other_folders_beside_those_of_cpus_are_ignored(machine: Machine) -> None:
    machine.regular(cores=2).remove(f"{CPU}/online")
    for name in ("cpufreq", "cpuidle", "cpu", "cpux1", "power"):
        (machine.path / CPU / name).mkdir()
    assert machine.host().online == {0, 1}


def test_without_topology_folders_each_cpu_is_a_core(machine: Machine) -> None:
    host = machine.bare_cpus(range(6)).host()
    assert (len(host.cores), host.packages, host.threads_per_core) == (6, 1, 1)
    assert not host.topology_known


def test_a_missing_sibling_file_leaves_the_topology_unknown(machine: Machine) -> None:
    machine.cores([[0, 1], [2, 3]]).remove(f"{CPU}/cpu3/topology/thread_siblings_list")
    assert machine.host().topology_known  # CPU 2 tells who its sibling is
    machine.remove(f"{CPU}/cpu2/topology/thread_siblings_list")
    assert not machine.host().topology_known
    assert len(machine.host().cores) == 3


def test_cpuinfo_alone_gives_the_cpus(machine: Machine) -> None:
    host = machine.cpuinfo(x86_entries(3)).host()
    assert host.online == {0, 1, 2}
    assert len(host.cores) == 3
    assert not host.topology_known


def test_the_cpuinfo_of_s390_alone_gives_the_cpus(machine: Machine) -> None:
    lines = [f"processor {cpu}: version = FF,  identification = 0{cpu}" for cpu in range(4)]
    host = machine.cpuinfo(["vendor_id       : IBM/S390\n# processors    : 4", *lines]).host()
    assert host.online == {0, 1, 2, 3}


def test_an_empty_folder_is_a_machine_with_one_cpu(machine: Machine) -> None:
    host = machine.host()
    assert host.online == host.allowed == {0}
    assert (len(host.cores), host.packages, host.usable_cores) == (1, 1, 1)
    assert host.nodes == (Node(0, frozenset((0,))),)
    assert (host.hybrid, host.quota, host.governor, host.wsl) == (None, None, None, None)
    assert (host.memory.total, host.memory.available, host.isa) == (None, None, ())


def test_a_package_id_may_be_large(machine: Machine) -> None:
    host = machine.cores([[0], [1]], package=36).host()
    assert host.packages == 1
    assert {core.package for core in host.cores} == {36}


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("core_siblings_list", "0-1", "2-3"),
        ("core_siblings", "3", "c"),
        ("package_cpus_list", "0-1", "2-3"),
    ],
)
def test_the_cpus_of_a_package_replace_its_id_of_minus_one(
    machine: Machine, name: str, first: str, second: str
) -> None:
    """s390 and some virtual machines show -1."""
    machine.cores([[cpu] for cpu in range(4)], package=-1)
    for cpu in range(4):
        machine.write(f"{CPU}/cpu{cpu}/topology/{name}", first if cpu < 2 else second)
    assert machine.host().packages == 2


def test_package_ids_of_minus_one_alone_are_one_package(machine: Machine) -> None:
    assert machine.cores([[0], [1]], package=-1).host().packages == 1


def test_without_node_folders_there_is_one_node(machine: Machine) -> None:
    host = machine.regular(cores=3).host()
    assert host.nodes == (Node(0, frozenset(range(3))),)


def test_nodes_may_have_no_cpus(machine: Machine) -> None:
    machine.regular(cores=4).node(0, [0, 1]).node(1, [2, 3]).node(8).node(255)
    nodes = {node.id: node.cpus for node in machine.host().nodes}
    assert nodes == {0: {0, 1}, 1: {2, 3}, 8: frozenset(), 255: frozenset()}


def test_nodes_may_have_masks_and_offline_cpus(machine: Machine) -> None:
    machine.regular(cores=4).node(0, [0, 1], mask=True).node(3, [2, 3, 9], mask=True)
    assert {node.id: node.cpus for node in machine.host().nodes} == {0: {0, 1}, 3: {2, 3}}


def test_other_files_beside_nodes_are_ignored(machine: Machine) -> None:
    machine.regular(cores=2).node(0, [0, 1]).write(f"{NODE}/possible", "0").write(
        f"{NODE}/nodes/x", "1"
    )
    assert [node.id for node in machine.host().nodes] == [0]


NONSENSE = [
    b"",
    b"\n",
    b"\0",
    b"?",
    b"-1\n",
    b"\xff\xfe\x00\x80",
    b"0-\n",
    b"9" * 30 + b"\n",
    b"9" * 400 + b"\n",
    b"9" * 5000 + b"\n",
    "\u0663 \u00b2".encode(),
    b"nan inf\n",
    b"a: b: c - d\n" * 5,
    b"max\n",
    b"0 0\n",
    b"1e9\n",
]

FILES = [
    f"{CPU}/online",
    *(
        f"{CPU}/cpu{cpu}/{name}"
        for cpu in range(4)
        for name in (
            "topology/thread_siblings_list",
            "topology/thread_siblings",
            "topology/core_cpus_list",
            "topology/core_siblings_list",
            "topology/physical_package_id",
            "topology/core_id",
            "online",
            "cpu_capacity",
            "cpufreq/cpuinfo_max_freq",
            "cpufreq/scaling_governor",
        )
    ),
    f"{NODE}/node0/cpulist",
    f"{NODE}/node0/cpumap",
    "sys/devices/cpu_core/cpus",
    "sys/devices/cpu_atom/cpus",
    "sys/devices/cpu_lowpower/cpus",
    "sys/fs/cgroup/cgroup.controllers",
    *(
        f"sys/fs/cgroup/{name}"
        for name in (
            "cpu.max",
            "memory.max",
            "memory.high",
            "memory.current",
            "memory.stat",
            "cpu/cpu.cfs_quota_us",
            "cpu/cpu.cfs_period_us",
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
        )
    ),
    "proc/cpuinfo",
    "proc/meminfo",
    "proc/self/status",
    "proc/self/cgroup",
    "proc/self/mountinfo",
    "proc/self/mounts",
    "proc/version",
    "proc/sys/kernel/osrelease",
]


def check_plausible(host: Host) -> None:
    """Check what is true of every machine without kinds of cores."""
    assert host.online
    assert host.allowed
    assert host.allowed <= host.online
    assert frozenset().union(*(core.cpus for core in host.cores)) == host.online
    assert sum(len(core.cpus) for core in host.cores) == len(host.online)
    assert all(node.cpus <= host.online for node in host.nodes)
    assert 1 <= host.usable_cores <= len(host.cores)
    assert all(0 < core.speed <= 1 for core in host.cores)
    assert host.quota is None or host.quota > 0
    assert host.hybrid is None
    for size in host.memory:
        assert size is None or 0 <= size < 1 << 64


@pytest.mark.parametrize("content", NONSENSE, ids=lambda content: repr(content[:12]))
def test_a_host_is_plausible_whatever_the_files_contain(machine: Machine, content: bytes) -> None:
    for name in FILES:
        machine.write(name, content)
    check_plausible(machine.host())


@pytest.mark.parametrize("content", NONSENSE, ids=lambda content: repr(content[:12]))
def test_a_host_is_plausible_whatever_the_values_are(machine: Machine, content: bytes) -> None:
    """Mount tables and keys are valid, so that the values are read."""
    machine.regular(cores=4)
    for name in FILES:
        if not name.startswith("proc") and name != f"{CPU}/online":
            machine.write(name, content)
    text = content.decode("utf-8", "replace").strip()
    machine.cgroup2("/").cgroup1("cpu").cgroup1("memory")
    machine.write("proc/meminfo", f"MemTotal: {text} kB\nMemAvailable: {text} kB\nMemFree: {text}")
    machine.write("proc/cpuinfo", f"processor : {text}\nflags : {text}")
    for name in ("cpu.max", "memory.max"):
        machine.write(f"sys/fs/cgroup/{name}", f"{text} {text}")
    machine.write("sys/fs/cgroup/memory.stat", f"inactive_file {text}")
    host = machine.host()
    check_plausible(host)
    assert host.online == {0, 1, 2, 3}


@pytest.mark.parametrize("number", ["9" * 9, "9" * 30, "9" * 5000])
def test_a_huge_cpu_number_is_ignored(machine: Machine, number: str) -> None:
    assert machine.cpuinfo([f"processor\t: {number}"]).host().online == {0}


def test_folders_in_place_of_files_are_ignored(machine: Machine) -> None:
    for name in FILES:
        if name not in ("sys/fs/cgroup/memory", "sys/fs/cgroup/cpu"):
            (machine.path / name).mkdir(parents=True, exist_ok=True)
    check_plausible(machine.host())


def test_contradictory_siblings_give_a_plausible_host(machine: Machine) -> None:
    machine.cores([[0], [1], [2], [3]])
    for cpu, siblings in enumerate(("0-3", "1", "2-3", "9")):
        machine.write(f"{CPU}/cpu{cpu}/topology/thread_siblings_list", siblings)
    check_plausible(machine.host())


def test_the_affinity_mask_outranks_the_list_of_lxcfs(machine: Machine) -> None:
    machine.regular(16, threads=2).write(f"{CPU}/online", "0-5")
    host = machine.affinity("2,9,13,22,25,30").host()
    assert host.online == host.allowed == {2, 9, 13, 22, 25, 30}
    assert (host.usable_cores, host.topology_known) == (6, False)


def test_possible_cpus_in_a_recorded_mask_are_not_online(machine: Machine) -> None:
    machine.regular(4).offline(3)
    host = machine.affinity("0-239").host()
    assert host.online == host.allowed == {0, 1, 2}
    assert host.topology_known


def test_nodes_with_the_same_cpus_are_one(machine: Machine) -> None:
    machine.regular(4)
    for number in range(8):
        machine.node(number, range(4))
        machine.write(
            f"sys/devices/system/node/node{number}/meminfo", f"Node {number} MemFree: 1024 kB"
        )
    (node,) = machine.host().nodes
    assert (node.id, node.cpus, node.free) == (0, frozenset(range(4)), 8 << 20)
