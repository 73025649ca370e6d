"""On which CPUs the threads run and on which NUMA nodes the memory lies; pure.

What the engine's own ``--numa`` does is known from ggml's source (ggml_numa_init): it counts
every node folder, those without CPUs too, gives each thread all CPUs of its node whatever the
affinity mask says, and no longer reads a mapped model ahead. So it is asked for only where
every node has CPUs and all of them may be used.
"""

from __future__ import annotations

from bitnet_tuning.console import MEBIBYTE
from bitnet_tuning.engine.binary import NONE
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.memory import Need
from bitnet_tuning.plan.openmp import ACTIVE, binds_itself, waits_by_user

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.topology import Core, Node
    from bitnet_tuning.plan.facts import Facts
    from bitnet_tuning.plan.threads import Threads


DISTRIBUTE, ISOLATE, NUMACTL = "distribute", "isolate", "numactl"

NODE_SHARE = 0.8
"""Of a node's free memory, which a run that is to stay there may take."""

_MOSTLY = 0.9
"""Share of a model's cached pages from which on they count as lying on one node."""


def choose_placement(
    facts: Facts, threads: Threads, need: Need, flags: frozenset[str]
) -> Placement:
    """For the threads that were chosen; on several nodes fewer may serve the prompt."""
    host = facts.host
    stay = Placement(threads.cpus, threads.prompt)
    nodes = usable_nodes(host)
    if len(host.nodes) < 2:
        return stay._replace(reason="one NUMA node: nothing to do")
    if len(nodes) < 2:
        (only,) = nodes or host.nodes[:1]
        return stay._replace(
            reason=f"all that may be used is on NUMA node {only.id}: nothing to do",
            warnings=_misplaced(facts, frozenset((only.id,))),
        )
    if binds_itself(facts.environ):
        return stay._replace(reason="left alone: you chose places for the threads yourself")
    if threads.cpus is not None:
        return stay._replace(reason="left alone: the threads are bound to the fastest cores")
    node = _node_for(facts, threads, need, nodes)
    if node is not None:
        return _on_one(facts, threads, node, flags)
    return _on_all(facts, threads, need, nodes, flags)


def usable_nodes(host: Host) -> tuple[Node, ...]:
    """Those with CPUs and memory that this process may use."""
    return tuple(
        node
        for node in host.nodes
        if node.cpus & host.allowed and (host.mems is None or node.id in host.mems)
    )


def cores_on(host: Host, node: Node) -> list[Core]:
    return [core for core in host.allowed_cores if core.cpus & node.cpus]


def _node_for(facts: Facts, threads: Threads, need: Need, nodes: tuple[Node, ...]) -> Node | None:
    """A node that holds all; the one whose page cache has the model first, then the one
    with most free memory."""
    cached = facts.cached or {}
    count = max(threads.generation, threads.prompt if threads.prompt_asked else 1)

    def holds(node: Node) -> bool:
        room = node.free is None or need.total <= NODE_SHARE * node.free
        # What lies there already takes no more room.
        there = _share(cached, node.id) >= _MOSTLY
        rest = need.cache + need.buffers
        room = room or (there and rest <= NODE_SHARE * (node.free or 0))
        return room and count <= len(cores_on(facts.host, node))

    fitting = [node for node in nodes if holds(node)]
    return max(
        fitting, key=lambda node: (_share(cached, node.id), node.free or 0, -node.id), default=None
    )


def _share(cached: dict[int, int], node: int) -> float:
    total = sum(cached.values())
    return cached.get(node, 0) / total if total else 0.0


def _on_one(facts: Facts, threads: Threads, node: Node, flags: frozenset[str]) -> Placement:
    host = facts.host
    cores = cores_on(host, node)
    why = f"threads and model fit on node {node.id} ({len(cores)} cores, {_free(node)})"
    numa = None
    if facts.numactl:
        why += "; its memory is taken first, through numactl"
    elif "--numa" in flags and node.cpus <= host.allowed:
        numa = ISOLATE
        why += "; no numactl that may act: affinity and the engine's own --numa isolate"
    else:
        why += "; no numactl that may act: affinity alone, memory is taken where threads run"
    return Placement(
        cpus=node.cpus & host.allowed,
        prompt_threads=threads.prompt if threads.prompt_asked else min(threads.prompt, len(cores)),
        node=node.id if facts.numactl else None,
        numa=numa,
        reason=why,
        cpus_reason=f"bound to NUMA node {node.id}",
        warnings=_misplaced(facts, frozenset((node.id,))),
    )


def _on_all(
    facts: Facts,
    threads: Threads,
    need: Need,
    nodes: tuple[Node, ...],
    flags: frozenset[str],
) -> Placement:
    """Spread over the nodes, by the engine where its way respects the limits here."""
    host = facts.host
    largest = max(len(cores_on(host, node)) for node in nodes)
    why = (
        f"{threads.generation} threads and {-(-need.total // MEBIBYTE)} MiB do not fit on one of "
        f"{len(nodes)} nodes (at most {largest} cores, {', '.join(map(_free, nodes))})"
    )
    ids = frozenset(node.id for node in nodes)
    stay = Placement(threads.cpus, threads.prompt, warnings=_misplaced(facts, ids, spread=True))
    if "--numa" in flags and all_usable(host, nodes):
        return stay._replace(numa=DISTRIBUTE, reason=f"{why}: --numa distribute spreads them")
    limits = "some nodes have no CPUs, or none that may be used"
    if "--numa" not in flags:
        limits = "the engine has no --numa"
    if facts.numactl:
        return stay._replace(
            interleave=ids,
            numa=NUMACTL if "--numa" in flags else None,
            cpus=frozenset().union(*(node.cpus for node in nodes)) & host.allowed,
            cpus_reason=f"bound to NUMA nodes {format_list(ids)}",
            reason=f"{why}; {limits}: numactl interleaves memory over nodes {format_list(ids)}",
        )
    return stay._replace(
        reason=f"{why}; {limits}, and there is no numactl that may act: left alone"
    )


def all_usable(host: Host, nodes: tuple[Node, ...]) -> bool:
    """Whether each node has CPUs and memory, all of it usable."""
    return len(nodes) == len(host.nodes) and all(node.cpus <= host.allowed for node in nodes)


def _misplaced(facts: Facts, wanted: frozenset[int], spread: bool = False) -> tuple[str, ...]:
    """A warning where the page cache holds the model elsewhere: a mapped model stays there."""
    cached = facts.cached or {}
    total = sum(cached.values())
    inside = sum(pages for node, pages in cached.items() if node in wanted)
    lopsided = spread and max(cached.values(), default=0) >= _MOSTLY * total
    if not total or (inside >= total / 2 and not lopsided):
        return ()
    return (
        f"the page cache holds the model on NUMA node {format_list(frozenset(cached))}, not on "
        f"{format_list(wanted)}: other nodes read it from afar. Drop it, and the next start reads "
        f"it anew: dd if='{facts.model.path}' iflag=nocache count=0 status=none "
        "(or, for all files: echo 1 | sudo tee /proc/sys/vm/drop_caches)",
    )


def _free(node: Node) -> str:
    return "memory not known" if node.free is None else f"{node.free // MEBIBYTE} MiB free"


def chosen_cores(host: Host, count: int) -> frozenset[int]:
    """The CPUs of so many allowed cores, the fastest first, those of one node together."""
    home = {cpu: node.id for node in host.nodes for cpu in node.cpus}
    ranked = sorted(
        host.allowed_cores,
        key=lambda core: (-core.speed, home.get(min(core.cpus), 0), min(core.cpus)),
    )
    return frozenset().union(*(core.cpus for core in ranked[:count])) & host.allowed


PERFORMANCE_NICE = -5
"""Niceness asked for in performance mode: before ordinary work, behind the kernel's own."""

EAGER_POLL = 100
"""The highest level of --poll: threads never sleep while they wait."""


def choose_boost(facts: Facts, threads: int, placement: Placement, flags: frozenset[str]) -> Boost:
    """``threads`` is the largest number that runs at once."""
    nice, said, warnings = _priority(facts)
    waiting, poll, why = _waiting(facts, threads, flags)
    cpus, cpus_reason = _affinity(facts, threads, placement)
    return Boost(nice, waiting, poll, cpus, f"{said}; {why}", cpus_reason, warnings)


def _priority(facts: Facts) -> tuple[int, str, tuple[str, ...]]:
    lowest = facts.privileges.lowest_nice if facts.privileges else 0
    if lowest <= PERFORMANCE_NICE:
        return PERFORMANCE_NICE, f"niceness {PERFORMANCE_NICE:+d} where the kernel grants it", ()
    warning = "priority is not raised: that needs root or a nice limit (ulimit -e)"
    return 0, "ordinary priority", (warning,)


def _waiting(
    facts: Facts, threads: int, flags: frozenset[str]
) -> tuple[dict[str, str], int | None, str]:
    """Spinning threads use up a quota, and keep each other from CPUs that they share."""
    host, runtime = facts.host, facts.engine.openmp
    chosen = waits_by_user(facts.environ)
    if chosen:
        return {}, None, f"how threads wait is yours: you set {', '.join(chosen)}"
    if host.quota_stops(threads):
        return {}, None, "threads may sleep while they wait: spinning would use up the CPU quota"
    if threads > len(host.allowed):
        return {}, None, "threads may sleep while they wait: they are more than the CPUs"
    if runtime in ACTIVE:
        name, value = ACTIVE[runtime]
        return {name: value}, None, f"{name}={value}: threads spin while they wait"
    if runtime == NONE and "--poll" in flags:
        return {}, EAGER_POLL, f"--poll {EAGER_POLL}: threads spin while they wait"
    return {}, None, "how threads wait is left to the engine: its runtime is not known"


def _affinity(
    facts: Facts, threads: int, placement: Placement
) -> tuple[frozenset[int] | None, str]:
    host = facts.host
    if placement.cpus is not None or placement.numa is not None:
        return None, ""
    if binds_itself(facts.environ):
        return None, "not bound: you chose places for the threads yourself"
    if host.quota_binds:
        return None, "not bound: others under a quota might be bound to the same CPUs"
    cores = len(host.allowed_cores)
    which = f"the {threads} chosen cores" if threads < cores else "the cores that may be used"
    return chosen_cores(host, threads), f"bound to {which} (performance mode)"


class Placement(NamedTuple):
    """On which CPUs the threads run and on which NUMA nodes the memory lies."""

    cpus: frozenset[int] | None
    """To bind the engine to."""
    prompt_threads: int
    reason: str = ""
    node: int | None = None
    """Whose memory is taken first (numactl --preferred)."""
    interleave: frozenset[int] | None = None
    """Nodes over which memory is spread page by page (numactl --interleave)."""
    numa: str | None = None
    """The engine's own flag."""
    cpus_reason: str | None = None
    """Why these CPUs, where the nodes decide it."""
    warnings: tuple[str, ...] = ()


class Boost(NamedTuple):
    """What performance mode adds."""

    nice: int
    env: dict[str, str]
    """How threads wait."""
    poll: int | None
    cpus: frozenset[int] | None
    """To bind the engine to; None where it stays as planned."""
    reason: str
    cpus_reason: str = ""
    warnings: tuple[str, ...] = ()
