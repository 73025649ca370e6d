"""Logical CPUs, physical cores, packages and NUMA nodes, from sysfs."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bitnet_tuning.cpulist import MAX_CPU
from bitnet_tuning.host.root import Root, as_integer
from bitnet_tuning.records import NamedTuple

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
    """Bytes of its memory that are free or hold file pages nobody used lately; None where
    not known, and on the only node: there the machine's own figures say it."""


class Topology(NamedTuple):
    online: frozenset[int]
    cores: tuple[Core, ...]
    nodes: tuple[Node, ...]
    complete: bool
    """Whether the kernel said which CPUs share a core; else each CPU counts as one."""


def read_topology(root: Root) -> Topology:
    """What is online and how it hangs together. Never empty: a host has a CPU."""
    online = _online(root) or _listed_in_cpuinfo(root) or frozenset((0,))
    groups, complete = _sibling_groups(root, online)
    packages = _package_of(root, groups)
    cores = tuple(Core(group, packages[group]) for group in groups)
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
    """``processor : 3``, and on s390 ``processor 3: version = …``."""
    text = root.read("proc/cpuinfo", limit=1 << 24) or ""
    return frozenset(_ids(re.findall(r"^processor[ \t]*:?[ \t]*([0-9]+)[ \t]*(?:$|:)", text, re.M)))


def _ids(texts: Iterable[str]) -> list[int]:
    """Those that are ids, in ascending order."""
    numbers = (as_integer(text) for text in texts)
    return sorted(number for number in numbers if number is not None and 0 <= number < MAX_CPU)


def _sibling_groups(root: Root, online: frozenset[int]) -> tuple[list[frozenset[int]], bool]:
    """One group per core. Neither (package, core_id) nor core_id tells cores apart:
    core ids repeat within a package on several machines; only sibling sets do not.
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
    return root.cpus_of(
        f"{folder}/thread_siblings_list",
        f"{folder}/core_cpus_list",
        f"{folder}/thread_siblings",
        f"{folder}/core_cpus",
    )


def _package_of(root: Root, groups: list[frozenset[int]]) -> dict[frozenset[int], int]:
    return {group: _package(root, min(group)) for group in groups}


def _package(root: Root, cpu: int) -> int:
    """The package id, or (s390 and some virtual machines say -1) the lowest CPU in it."""
    folder = f"{CPU}/cpu{cpu}/topology"
    stated = root.integer(f"{folder}/physical_package_id")
    if stated is not None and stated >= 0:
        return stated
    together = root.cpus_of(
        f"{folder}/core_siblings_list", f"{folder}/package_cpus_list", f"{folder}/core_siblings"
    )
    return min(together) if together else 0


def _nodes(root: Root, online: frozenset[int]) -> tuple[Node, ...]:
    """Nodes with their online CPUs; one implicit node where the kernel has no node folder."""
    ids = _numbered(root, NODE, "node")
    nodes = tuple(Node(node, _node_cpus(root, node) & online) for node in ids)
    if not any(node.cpus for node in nodes):
        return (Node(0, online),)
    if len(nodes) < 2:
        return nodes
    return tuple(node._replace(free=_node_free(root, node.id)) for node in nodes)


def _node_free(root: Root, node: int) -> int | None:
    """``Node 0 MemFree:  123 kB``. Inactive file pages give way before a process dies."""
    kilobytes: dict[str, int | None] = {}
    for line in (root.read(f"{NODE}/node{node}/meminfo") or "").splitlines():
        key, _, value = line.partition(":")
        kilobytes[key.rpartition(" ")[2]] = as_integer(value.removesuffix("kB").strip())
    free = kilobytes.get("MemFree")
    return None if free is None else 1024 * (free + (kilobytes.get("Inactive(file)") or 0))


def _node_cpus(root: Root, node: int) -> frozenset[int]:
    return root.cpus_of(f"{NODE}/node{node}/cpulist", f"{NODE}/node{node}/cpumap") or frozenset()
