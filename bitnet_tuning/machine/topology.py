"""Read CPUs, cores and their kinds, packages, NUMA nodes and caches from sysfs, whose files are
documented in ABI/stable/sysfs-devices-system-cpu of the Linux kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from bitnet_tuning.machine.root import MAX_CPU, Root, as_integer, as_size
from bitnet_tuning.namedtuple import NamedTuple

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"


class Core(NamedTuple):
    """A physical core with at least one online logical CPU."""

    cpus: frozenset[int]
    """Ids of the online CPUs that share the core."""
    package: int
    speed: float = 1.0
    """Expected speed relative to the fastest core of the machine, above 0 and at most 1."""


class Node(NamedTuple):
    """A NUMA node. A node without CPUs has memory only."""

    id: int
    cpus: frozenset[int]
    """Ids of the online CPUs of the node."""
    free: int | None = None
    """Bytes of free memory and inactive page cache; None if unknown, and for a single node."""


class Topology(NamedTuple):
    """The CPUs that are online, and how cores and NUMA nodes contain them."""

    online: frozenset[int]
    cores: tuple[Core, ...]
    nodes: tuple[Node, ...]
    complete: bool
    """False if the kernel does not tell which CPUs share a core; each then counts as a core."""


def cpus_of(cores: Iterable[Core]) -> frozenset[int]:
    return frozenset(cpu for core in cores for cpu in core.cpus)


def read_per_cpu(root: Root, cpus: frozenset[int], name: str) -> list[int]:
    """Return the numbers that are not negative in the file ``name`` of each CPU's folder."""
    found = (root.integer(f"{CPU}/cpu{cpu}/{name}") for cpu in sorted(cpus))
    return [value for value in found if value is not None and value >= 0]


def read_topology(root: Root, mask: frozenset[int] = frozenset()) -> Topology:
    """Return the topology of the machine. It has at least one CPU, whatever can be read. ``mask``
    is the affinity mask of this process, or empty if unknown."""
    online = _online(root)
    # lxcfs writes a list of online CPUs that only has the right length. The mask of a running
    # process has no other CPUs than online ones (sched_getaffinity(2)); a recorded one may have
    # possible CPUs, which have no topology.
    hidden = {cpu for cpu in mask - online if root.live or _is_running(root, cpu)}
    online = mask & (online | hidden) if hidden else online
    groups, complete = _sibling_groups(root, online)
    if hidden:
        # Managers of such containers move them to other CPUs as load changes (limits.cpu of LXD),
        # so it does not last which CPUs share a core.
        groups, complete = [frozenset((cpu,)) for cpu in sorted(online)], False
    cores = tuple(Core(group, _package(root, min(group))) for group in groups)
    return Topology(online, cores, _nodes(root, online), complete)


def _online(root: Root) -> frozenset[int]:
    if listed := root.cpus(f"{CPU}/online"):
        return listed
    present = _numbered(root, CPU, "cpu")
    running = [cpu for cpu in present if _is_running(root, cpu)]
    running = running or [cpu for cpu in present if root.read(f"{CPU}/cpu{cpu}/online") != "0"]
    if running:
        return frozenset(running)
    # Lines are "processor : 3", and on s390 "processor 3: version = …".
    text = root.read("proc/cpuinfo", limit=1 << 24) or ""
    found = re.findall(r"^processor[ \t]*:?[ \t]*([0-9]+)[ \t]*(?:$|:)", text, re.M)
    return frozenset(_ids(found) or (0,))


def _is_running(root: Root, cpu: int) -> bool:
    # Old kernels show that a CPU is offline only by removing its topology folder.
    folder = f"{CPU}/cpu{cpu}"
    return root.read(f"{folder}/online") != "0" and root.exists(f"{folder}/topology")


def _numbered(root: Root, folder: str, prefix: str) -> list[int]:
    return _ids(name[len(prefix) :] for name in root.names(folder) if name.startswith(prefix))


def _ids(texts: Iterable[str]) -> list[int]:
    numbers = (as_integer(text) for text in texts)
    return sorted(number for number in numbers if number is not None and 0 <= number < MAX_CPU)


def _sibling_groups(root: Root, online: frozenset[int]) -> tuple[list[frozenset[int]], bool]:
    """Return the CPUs of each core, and whether the kernel tells which CPUs share a core."""
    # Sibling sets identify cores; core_id repeats within a package on several machines.
    groups: list[frozenset[int]] = []
    grouped: set[int] = set()
    complete = True
    for cpu in sorted(online):
        if cpu in grouped:
            continue
        # Linux 5.3 introduced core_cpus as the new name of thread_siblings.
        names = ("thread_siblings_list", "core_cpus_list", "thread_siblings", "core_cpus")
        siblings = root.cpus(*(f"{CPU}/cpu{cpu}/topology/{name}" for name in names))
        complete &= siblings is not None
        group = frozenset(((siblings or frozenset()) & online) - grouped) | {cpu}
        groups.append(group)
        grouped |= group
    return groups, complete


def _package(root: Root, cpu: int) -> int:
    folder = f"{CPU}/cpu{cpu}/topology"
    # s390 and some virtual machines have -1 here; the lowest CPU of the package then replaces it.
    stated = root.integer(f"{folder}/physical_package_id")
    if stated is not None and stated >= 0:
        return stated
    together = root.cpus(
        f"{folder}/core_siblings_list", f"{folder}/package_cpus_list", f"{folder}/core_siblings"
    )
    return min(together) if together else 0


def _nodes(root: Root, online: frozenset[int]) -> tuple[Node, ...]:
    """Return the NUMA nodes; a single node with all CPUs if the kernel shows no node."""
    ids = _numbered(root, NODE, "node")
    nodes: list[Node] = []
    for node in ids:
        folder = f"{NODE}/node{node}"
        cpus = (root.cpus(f"{folder}/cpulist", f"{folder}/cpumap") or frozenset()) & online
        stated = root.numbers(f"{folder}/meminfo") if len(ids) > 1 else {}
        free = stated.get(f"Node {node} MemFree")
        if free is not None:  # The kernel reclaims inactive file pages when memory gets short.
            free += stated.get(f"Node {node} Inactive(file)", 0)
        twin = next((index for index, each in enumerate(nodes) if cpus and each.cpus == cpus), None)
        if twin is None:
            nodes.append(Node(node, cpus, free))
        else:
            # Parts of a node that the kernel option numa=fake split, as Raspberry Pi OS does.
            other = nodes[twin].free
            both = None if free is None or other is None else free + other
            nodes[twin] = nodes[twin]._replace(free=both)
    return tuple(nodes) if any(node.cpus for node in nodes) else (Node(0, online),)


APART = 1.2
"""Least ratio of the speeds of two kinds of cores. One kind differs by up to 1.09 (Ryzen 7950X3D:
5.7, 5.25 GHz), two by at least 1.25 (Core Ultra 155U: 4.8, 3.8 GHz; GB10: capacity 997, 731)."""

INTEL_EFFICIENCY_SHARE = 0.5
"""Work per clock cycle of an Intel efficiency core on 256-bit integer code, relative to a
performance core: its vector units are 128 bits wide (Intel Optimization Manual)."""

INTEL_EFFICIENCY_SPEED = 0.4
"""Speed of an Intel efficiency core relative to a performance core where the kernel shows no
frequencies: ``INTEL_EFFICIENCY_SHARE`` times a typical clock ratio of 0.8."""

ARM_EFFICIENCY_SPEED = 0.25
"""Speed of an ARM efficiency core relative to a performance core where the kernel shows no
capacities: on an RK3588, 4 Cortex-A76 generate twice as fast as all 8 cores."""

_ARM = "0x41"
_ARM_EFFICIENCY_PARTS = ("0xc05", "0xc07", "0xd03", "0xd04", "0xd05", "0xd46", "0xd80", "0xd8f")
"""Part numbers of ARM's own efficiency cores: Cortex-A5, A7, A53, A35, A55, A510, A520 and A320
(arch/arm64/include/asm/cputype.h in Linux, sys-utils/lscpu-arm.c in util-linux)."""


class Hybrid(NamedTuple):
    """The performance cores and efficiency cores of a hybrid machine."""

    performance_cores: int
    efficiency_cores: int
    performance_cpus: frozenset[int]
    efficiency_cpus: frozenset[int]


def read_kinds(
    root: Root, cores: tuple[Core, ...], vendor: str | None
) -> tuple[Hybrid | None, tuple[Core, ...]]:
    """Return the two kinds of ``cores``, or None if there is one, and the cores with their speeds,
    from the kernel's lists of Intel's kinds, else the scheduler's capacities of ARM cores
    (scheduler/sched-capacity.rst), else their part numbers, else maximum frequencies."""
    frequencies = _per_core(root, cores, "cpufreq/cpuinfo_max_freq")
    capacities = _per_core(root, cores, "cpu_capacity")
    # perf names Intel's kinds so (tools/perf/Documentation/intel-hybrid.txt).
    online = cpus_of(cores)
    files = (f"sys/devices/cpu_{kind}/cpus" for kind in ("core", "atom", "lowpower"))
    fast, atom, low_power = (root.cpus(file) or frozenset[int]() for file in files)
    if (slow := (atom | low_power) & online - fast) and fast & online:
        return split_kinds(cores, _intel_speeds(cores, slow, frequencies), slow)
    if slow := _slower_kind(cores, capacities):
        return split_kinds(cores, capacities, slow)
    if not vendor and (slow := _arm_efficiency_cpus(root, cores)):
        speeds = [ARM_EFFICIENCY_SPEED if core.cpus & slow else 1.0 for core in cores]
        return split_kinds(cores, speeds, slow)
    if slow := _slower_kind(cores, frequencies):
        if vendor == "GenuineIntel":
            frequencies = _intel_speeds(cores, slow, frequencies)
        return split_kinds(cores, frequencies, slow)
    return None, cores


def _arm_efficiency_cpus(root: Root, cores: tuple[Core, ...]) -> frozenset[int]:
    """Return the CPUs of ARM's efficiency cores; empty if all cores are of one kind."""
    maker, slow, cpu = "", set[int](), -1
    for key, value in root.pairs("proc/cpuinfo", limit=1 << 20):
        if key == "processor":
            cpu = as_integer(value) or 0
        elif key == "CPU implementer":
            maker = value
        elif key == "CPU part" and maker == _ARM and value in _ARM_EFFICIENCY_PARTS:
            slow.add(cpu)
    online = cpus_of(cores)
    return frozenset(slow & online) if online - slow else frozenset()


def _per_core(root: Root, cores: tuple[Core, ...], name: str) -> list[float]:
    """Return the largest value among the CPUs of each core; empty if any core has none."""
    figures = [float(max(read_per_cpu(root, core.cpus, name), default=0)) for core in cores]
    return figures if all(figures) else []


def _slower_kind(cores: tuple[Core, ...], values: list[float]) -> frozenset[int]:
    """Return the CPUs of the cores whose ``values`` are clearly lower than the highest ones."""
    # Values also differ a little within a kind, so look for the first large gap from the top.
    ranked = sorted(set(values), reverse=True)
    top = next((below for above, below in pairwise(ranked) if above / below >= APART), 0.0)
    return cpus_of(core for core, value in zip(cores, values, strict=False) if value <= top)


def _intel_speeds(
    cores: tuple[Core, ...], slow: frozenset[int], frequencies: list[float]
) -> list[float]:
    share = INTEL_EFFICIENCY_SHARE if frequencies else INTEL_EFFICIENCY_SPEED
    pairs = zip(cores, frequencies or [1.0] * len(cores), strict=True)
    return [hertz * (share if core.cpus & slow else 1.0) for core, hertz in pairs]


def split_kinds(
    cores: tuple[Core, ...], speeds: list[float], slow: frozenset[int]
) -> tuple[Hybrid, tuple[Core, ...]]:
    """Return the two kinds of ``cores`` and the cores with their speeds relative to the
    fastest one. ``slow`` are the CPUs of the efficiency cores."""
    top = max(speeds)
    # All performance cores count as equally fast, including those with a higher turbo clock.
    rated = tuple(
        core._replace(speed=speed / top if core.cpus & slow else 1.0)
        for core, speed in zip(cores, speeds, strict=True)
    )
    efficient = sum(1 for core in cores if core.cpus & slow)
    return Hybrid(len(cores) - efficient, efficient, cpus_of(cores) - slow, slow), rated


def read_last_level_caches(root: Root, cpus: frozenset[int]) -> tuple[int, ...]:
    """Return the size in bytes of each last-level data cache of ``cpus``, largest first; empty
    if the kernel shows none, as on many ARM boards."""
    found: dict[tuple[int, ...], int] = {}
    for cpu in sorted(cpus):
        folder = f"{CPU}/cpu{cpu}/cache"
        names = (name for name in root.names(folder) if name.startswith("index"))
        caches = (_cache(root, cpu, f"{folder}/{name}") for name in names)
        _, size, sharing = max(caches, default=(0, 0, ()))
        if size:
            found[sharing] = size
    return tuple(sorted(found.values(), reverse=True))


def _cache(root: Root, cpu: int, folder: str) -> tuple[int, int, tuple[int, ...]]:
    """Return a cache's level, its size in bytes (0 if it holds no data) and its CPUs."""
    level, size = root.integer(f"{folder}/level"), as_size(root.read(f"{folder}/size"))
    if root.read(f"{folder}/type") == "Instruction" or level is None or size is None:
        return 0, 0, (cpu,)
    sharing = root.cpus(f"{folder}/shared_cpu_list", f"{folder}/shared_cpu_map") or {cpu}
    return level, size, tuple(sorted(sharing))
