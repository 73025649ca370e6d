"""On which CPUs the threads run and on which NUMA nodes the memory lies; pure.

What the engine's own ``--numa`` does is known from ggml's source (ggml_numa_init): it counts
every node folder, those without CPUs too, gives each thread all CPUs of its node whatever the
affinity mask says, and no longer reads a mapped model ahead. So it is asked for only where
every node has CPUs and all of them may be used.
"""

from __future__ import annotations

from bitnet_tuning.console import MEBIBYTE
from bitnet_tuning.engine.find import NONE
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.plan.command import obeys
from bitnet_tuning.plan.memory import Need
from bitnet_tuning.plan.openmp import ACTIVE, binds_itself, waits_by_user
from bitnet_tuning.plan.threads import asked_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.topology import Core, Node
    from bitnet_tuning.plan.facts import Facts, Plan, Request


DISTRIBUTE, ISOLATE, NUMACTL = "distribute", "isolate", "numactl"

NODE_SHARE = 0.8
"""Of a node's free memory, which a run that is to stay there may take."""

_MOSTLY = 0.9
"""Share of a model's cached pages from which on they count as lying on one node."""


def choose_placement(plan: Plan, request: Request, facts: Facts, need: Need) -> Plan:
    """Return the plan with its threads and memory placed on NUMA nodes. Where they stay on one
    node, fewer threads may serve the prompt."""
    host, setting = facts.host, plan.setting
    nodes = usable_nodes(host)
    if len(nodes) < 2:
        (only,) = nodes or host.nodes[:1]
        why = f"all that may be used is on NUMA node {only.id}: nothing to do"
        return _left_alone(plan, why, _misplaced(facts, frozenset((only.id,))))
    if binds_itself(facts.environ):
        return _left_alone(plan, "left alone: you chose places for the threads yourself")
    if setting.cpus is not None:
        return _left_alone(plan, "left alone: the threads are bound to the fastest cores")
    is_asked = bool(request.threads_batch or asked_threads(request.threads, facts.environ))
    together = max(setting.threads, setting.threads_batch if is_asked else 1)
    flags = facts.engine.flags_for(request.chat)
    node = _node_for(facts, together, need, nodes)
    if node is not None:
        return _on_one(plan, facts, node, flags)
    return _on_all(plan, facts, need, nodes, flags)


def _left_alone(plan: Plan, why: str, warnings: tuple[str, ...] = ()) -> Plan:
    return plan.updated(plan.setting, {"numa": why}, warnings)


def usable_nodes(host: Host) -> tuple[Node, ...]:
    """Return the nodes with CPUs and memory that this process may use."""
    return tuple(
        node
        for node in host.nodes
        if node.cpus & host.allowed and (host.mems is None or node.id in host.mems)
    )


def cores_on(host: Host, node: Node) -> list[Core]:
    return [core for core in host.allowed_cores if core.cpus & node.cpus]


def _node_for(facts: Facts, count: int, need: Need, nodes: tuple[Node, ...]) -> Node | None:
    """Return a node with room for ``count`` threads and all memory; the one whose page cache
    has the model first, then the one with most free memory."""
    cached = facts.cached or {}

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


def _on_one(plan: Plan, facts: Facts, node: Node, flags: frozenset[str]) -> Plan:
    host, setting = facts.host, plan.setting
    cores = len(cores_on(host, node))
    why = f"threads and model fit on node {node.id} ({cores} cores, {_free(node)})"
    setting = setting._replace(cpus=node.cpus & host.allowed)
    if facts.numactl:
        setting = setting._replace(node=node.id)
        why += "; its memory is taken first, through numactl"
    elif obeys("numa", flags) and node.cpus <= host.allowed:
        setting = setting._replace(numa=ISOLATE)
        why += "; no numactl that may act: affinity and the engine's own --numa isolate"
    else:
        why += "; no numactl that may act: affinity alone, memory is taken where threads run"
    reasons = {"cpus": f"bound to NUMA node {node.id}", "numa": why}
    # Never less than the user asked for: only a node with as many cores is taken then.
    if cores < setting.threads_batch:
        setting = setting._replace(threads_batch=cores)
        reasons["threads_batch"] = f"{cores}: the cores of the node that generates"
    return plan.updated(setting, reasons, _misplaced(facts, frozenset((node.id,))))


def _on_all(
    plan: Plan, facts: Facts, need: Need, nodes: tuple[Node, ...], flags: frozenset[str]
) -> Plan:
    """Spread over the nodes, by the engine where its way respects the limits here."""
    host, setting = facts.host, plan.setting
    largest = max(len(cores_on(host, node)) for node in nodes)
    ids = frozenset(node.id for node in nodes)
    reasons = {}
    why = (
        f"{setting.threads} threads and {-(-need.total // MEBIBYTE)} MiB do not fit on one of "
        f"{len(nodes)} nodes (at most {largest} cores, {', '.join(map(_free, nodes))})"
    )
    has_flag = obeys("numa", flags)
    if has_flag and all_usable(host, nodes):
        setting = setting._replace(numa=DISTRIBUTE)
        why += ": --numa distribute spreads them"
    else:
        no_cpus = "some nodes have no CPUs, or none that may be used"
        why += f"; {no_cpus if has_flag else 'the engine has no --numa'}"
        if facts.numactl:
            setting = setting._replace(
                interleave=ids,
                numa=NUMACTL if has_flag else None,
                cpus=frozenset().union(*(node.cpus for node in nodes)) & host.allowed,
            )
            reasons["cpus"] = f"bound to NUMA nodes {format_list(ids)}"
            why += f": numactl interleaves memory over nodes {format_list(ids)}"
        else:
            why += ", and there is no numactl that may act: left alone"
    return plan.updated(setting, {**reasons, "numa": why}, _misplaced(facts, ids, spread=True))


def all_usable(host: Host, nodes: tuple[Node, ...]) -> bool:
    """Return whether each node has CPUs and memory, all of it usable."""
    return len(nodes) == len(host.nodes) and all(node.cpus <= host.allowed for node in nodes)


def _misplaced(facts: Facts, wanted: frozenset[int], spread: bool = False) -> tuple[str, ...]:
    """Warn where the page cache holds the model elsewhere: a mapped model stays there."""
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
    """Return the CPUs of so many allowed cores, the fastest first, those of one node together."""
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


def choose_boost(plan: Plan, facts: Facts, flags: frozenset[str]) -> Plan:
    """Return the plan with what performance mode adds: priority, eager waiting, fixed CPUs."""
    lowest = facts.privileges.lowest_nice if facts.privileges else 0
    nice, said, warnings = 0, "ordinary priority", []
    if lowest <= PERFORMANCE_NICE:
        nice, said = PERFORMANCE_NICE, f"niceness {PERFORMANCE_NICE:+d} where the kernel grants it"
    else:
        warnings.append("priority is not raised: that needs root or a nice limit (ulimit -e)")
    threads = max(plan.setting.threads, plan.setting.threads_batch)
    waiting, poll, why = _waiting(facts, threads, flags)
    reasons = {"performance": f"{said}; {why}"}
    setting = plan.setting._replace(nice=nice, poll=poll).with_env(waiting)
    if setting.cpus is None and setting.numa is None:
        cpus, reasons["cpus"] = _affinity(facts, threads)
        setting = setting._replace(cpus=cpus)
    return plan.updated(setting, reasons, warnings)


def _waiting(
    facts: Facts, threads: int, flags: frozenset[str]
) -> tuple[dict[str, str], int | None, str]:
    """Return variables, the level of --poll, and why. Spinning threads use up a quota, and keep
    each other from CPUs that they share."""
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
    if runtime == NONE and obeys("poll", flags):
        return {}, EAGER_POLL, f"--poll {EAGER_POLL}: threads spin while they wait"
    return {}, None, "how threads wait is left to the engine: its runtime is not known"


def _affinity(facts: Facts, threads: int) -> tuple[frozenset[int] | None, str]:
    host = facts.host
    if binds_itself(facts.environ):
        return None, "not bound: you chose places for the threads yourself"
    if host.quota_binds:
        return None, "not bound: others under a quota might be bound to the same CPUs"
    cores = len(host.allowed_cores)
    which = f"the {threads} chosen cores" if threads < cores else "the cores that may be used"
    return chosen_cores(host, threads), f"bound to {which} (performance mode)"
