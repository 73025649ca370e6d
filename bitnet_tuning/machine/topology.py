"""Logical CPUs, physical cores and their kinds, packages, NUMA nodes and caches, from sysfs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

from bitnet_tuning.machine.root import MAX_CPU, Root, as_integer, as_size
from bitnet_tuning.namedtuple import NamedTuple

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"


class Core(NamedTuple):
    """A physical core: the online logical CPUs that share it."""

    cpus: frozenset[int]
    package: int
    speed: float = 1.0
    """Expected throughput against the fastest core of this host, in (0, 1]."""


class Node(NamedTuple):
    """A NUMA node; one without CPUs holds memory only."""

    id: int
    cpus: frozenset[int]
    free: int | None = None
    """Bytes of its memory that are free or inactive page cache; None where that is unknown,
    and on the only node, where the machine's own figures apply."""


class Topology(NamedTuple):
    online: frozenset[int]
    cores: tuple[Core, ...]
    nodes: tuple[Node, ...]
    complete: bool
    """Whether the kernel said which CPUs share a core; else each CPU counts as one."""


def cpus_of(cores: Iterable[Core]) -> frozenset[int]:
    return frozenset(cpu for core in cores for cpu in core.cpus)


def read_per_cpu(root: Root, cpus: frozenset[int], name: str) -> list[int]:
    """Return the numbers, from 0 on, in a file of each CPU's own folder."""
    found = (root.integer(f"{CPU}/cpu{cpu}/{name}") for cpu in sorted(cpus))
    return [value for value in found if value is not None and value >= 0]


def read_topology(root: Root) -> Topology:
    """Return what is online and how it hangs together. Never empty: a host has a CPU."""
    online = _online(root) or _listed_in_cpuinfo(root) or frozenset((0,))
    groups, complete = _sibling_groups(root, online)
    cores = tuple(Core(group, _package(root, min(group))) for group in groups)
    return Topology(online, cores, _nodes(root, online), complete)


def _online(root: Root) -> frozenset[int]:
    listed = root.cpus(f"{CPU}/online")
    if listed:
        return listed
    present = _numbered(root, CPU, "cpu")
    switched_on = [cpu for cpu in present if root.read(f"{CPU}/cpu{cpu}/online") != "0"]
    # Old kernels drop the topology folder of a CPU that is offline and say it nowhere else.
    described = [cpu for cpu in switched_on if root.exists(f"{CPU}/cpu{cpu}/topology")]
    return frozenset(described or switched_on)


def _numbered(root: Root, folder: str, prefix: str) -> list[int]:
    names = (name[len(prefix) :] for name in root.names(folder) if name.startswith(prefix))
    return _ids(names)


def _listed_in_cpuinfo(root: Root) -> frozenset[int]:
    """Parse ``processor : 3``, and on s390 ``processor 3: version = …``."""
    text = root.read("proc/cpuinfo", limit=1 << 24) or ""
    return frozenset(_ids(re.findall(r"^processor[ \t]*:?[ \t]*([0-9]+)[ \t]*(?:$|:)", text, re.M)))


def _ids(texts: Iterable[str]) -> list[int]:
    """Return the texts that are CPU or node ids, in ascending order."""
    numbers = (as_integer(text) for text in texts)
    return sorted(number for number in numbers if number is not None and 0 <= number < MAX_CPU)


def _sibling_groups(root: Root, online: frozenset[int]) -> tuple[list[frozenset[int]], bool]:
    """Return one group per core, and whether the kernel told which CPUs share a core.

    Neither (package, core_id) nor core_id tells cores apart: core ids repeat within a
    package on several machines; only sibling sets do not.
    """
    groups: list[frozenset[int]] = []
    grouped: set[int] = set()
    complete = True
    for cpu in sorted(online):
        if cpu in grouped:
            continue
        siblings = _siblings(root, cpu)
        complete &= siblings is not None
        group = frozenset(((siblings or frozenset()) & online) - grouped) | {cpu}
        groups.append(group)
        grouped |= group
    return groups, complete


def _siblings(root: Root, cpu: int) -> frozenset[int] | None:
    folder = f"{CPU}/cpu{cpu}/topology"
    return root.cpus(
        f"{folder}/thread_siblings_list",
        f"{folder}/core_cpus_list",
        f"{folder}/thread_siblings",
        f"{folder}/core_cpus",
    )


def _package(root: Root, cpu: int) -> int:
    """Return the package id, or (s390 and some virtual machines say -1) its lowest CPU."""
    folder = f"{CPU}/cpu{cpu}/topology"
    stated = root.integer(f"{folder}/physical_package_id")
    if stated is not None and stated >= 0:
        return stated
    together = root.cpus(
        f"{folder}/core_siblings_list", f"{folder}/package_cpus_list", f"{folder}/core_siblings"
    )
    return min(together) if together else 0


def _nodes(root: Root, online: frozenset[int]) -> tuple[Node, ...]:
    """Return the nodes with their online CPUs; one implicit node where the kernel has no node
    folder."""
    ids = _numbered(root, NODE, "node")
    nodes = []
    for node in ids:
        folder = f"{NODE}/node{node}"
        cpus = root.cpus(f"{folder}/cpulist", f"{folder}/cpumap") or frozenset()
        free = _node_free(root, node) if len(ids) > 1 else None
        nodes.append(Node(node, cpus & online, free))
    return tuple(nodes) if any(node.cpus for node in nodes) else (Node(0, online),)


def _node_free(root: Root, node: int) -> int | None:
    """Return free memory with inactive file pages, which give way before a process dies."""
    stated = root.numbers(f"{NODE}/node{node}/meminfo")
    free = stated.get(f"Node {node} MemFree")
    return None if free is None else free + stated.get(f"Node {node} Inactive(file)", 0)


APART = 1.2
"""Smallest ratio of neighbouring speeds that makes them two kinds of core.

Favoured cores of one kind differ by up to 1.09 (Ryzen 7950X3D: 5.7 and 5.25 GHz);
kinds by at least 1.25 (Core Ultra 155U: 4.8 and 3.8 GHz; GB10: capacities 997 and 731).
"""

INTEL_EFFICIENCY_SHARE = 0.5
"""Work per clock of an Intel efficiency core on 256-bit integer code, against a
performance core: its vector units are 128 bits wide (Intel Optimization Manual)."""

INTEL_EFFICIENCY_SPEED = 0.4
"""The same with a typical clock ratio of 0.8, for hosts that show no frequencies."""


class Hybrid(NamedTuple):
    """How a processor with two kinds of cores splits."""

    performance_cores: int
    efficiency_cores: int
    performance_cpus: frozenset[int]
    efficiency_cpus: frozenset[int]


def read_kinds(
    root: Root, cores: tuple[Core, ...], vendor: str | None
) -> tuple[Hybrid | None, tuple[Core, ...]]:
    """Return the split into kinds, or None, and the cores with their speeds filled in.

    Sources are the kernel's own lists on Intel, else the scheduler's capacities on ARM, else
    maximum frequencies.
    """
    frequencies = _per_core(root, cores, "cpufreq/cpuinfo_max_freq")
    listed = _intel_efficiency_cpus(root, cores)
    if listed:
        return _split(cores, _intel_speeds(cores, listed, frequencies), listed)
    capacities = _per_core(root, cores, "cpu_capacity")
    slow = _slower_kind(cores, capacities)
    if capacities and slow:
        return _split(cores, capacities, slow)
    slow = _slower_kind(cores, frequencies)
    if not frequencies or not slow:
        return None, cores
    is_intel = vendor == "GenuineIntel"
    return _split(cores, _intel_speeds(cores, slow, frequencies) if is_intel else frequencies, slow)


def _intel_efficiency_cpus(root: Root, cores: tuple[Core, ...]) -> frozenset[int]:
    """Return the CPUs of cpu_atom and cpu_lowpower, where both these and cpu_core have some
    online."""
    online = cpus_of(cores)
    fast = root.cpus("sys/devices/cpu_core/cpus") or frozenset()
    atom = root.cpus("sys/devices/cpu_atom/cpus") or frozenset()
    low_power = root.cpus("sys/devices/cpu_lowpower/cpus") or frozenset()
    slow = (atom | low_power) & online - fast
    return slow if fast & online else frozenset()


def _per_core(root: Root, cores: tuple[Core, ...], name: str) -> list[float]:
    """Return one figure per core (the largest of its CPUs), or nothing where any core has
    none: a missing figure must not pass for a slow core."""
    figures = [float(max(read_per_cpu(root, core.cpus, name), default=0)) for core in cores]
    return figures if all(figures) else []


def _slower_kind(cores: tuple[Core, ...], values: list[float]) -> frozenset[int]:
    """Return the CPUs below the first clear gap from the top. Capacities differ from CPU to
    CPU within a kind, so distinct values alone do not make a kind."""
    ranked = sorted(set(values), reverse=True)
    for above, below in pairwise(ranked):
        if above / below >= APART:
            return cpus_of(
                core for core, value in zip(cores, values, strict=True) if value <= below
            )
    return frozenset()


def _intel_speeds(
    cores: tuple[Core, ...], slow: frozenset[int], frequencies: list[float]
) -> list[float]:
    if not frequencies:
        return [INTEL_EFFICIENCY_SPEED if core.cpus & slow else 1.0 for core in cores]
    return [
        hertz * (INTEL_EFFICIENCY_SHARE if core.cpus & slow else 1.0)
        for core, hertz in zip(cores, frequencies, strict=True)
    ]


def _split(
    cores: tuple[Core, ...], speeds: list[float], slow: frozenset[int]
) -> tuple[Hybrid, tuple[Core, ...]]:
    """Rate the cores against the fastest. All cores of the fast kind count as equally fast:
    favoured cores are not a kind."""
    top = max(speeds)
    rated = tuple(
        core._replace(speed=speed / top if core.cpus & slow else 1.0)
        for core, speed in zip(cores, speeds, strict=True)
    )
    efficient = [core for core in cores if core.cpus & slow]
    performance = len(cores) - len(efficient)
    return Hybrid(performance, len(efficient), cpus_of(cores) - slow, slow), rated


def read_last_level_caches(root: Root, cpus: frozenset[int]) -> tuple[int, ...]:
    """Return the bytes of each last-level data cache that ``cpus`` use, largest first; empty
    where the kernel does not tell, as on many ARM boards."""
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
    """Return level, bytes and the CPUs that share a cache; 0 bytes if it holds no data."""
    level, size = root.integer(f"{folder}/level"), as_size(root.read(f"{folder}/size"))
    if root.read(f"{folder}/type") == "Instruction" or level is None or size is None:
        return 0, 0, (cpu,)
    sharing = root.cpus(f"{folder}/shared_cpu_list", f"{folder}/shared_cpu_map") or {cpu}
    return level, size, tuple(sorted(sharing))
