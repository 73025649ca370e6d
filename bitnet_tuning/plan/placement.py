"""Choose the CPUs of the threads and the NUMA nodes of the memory. The engine's own ``--numa``
(ggml_numa_init in ggml's source) counts every node folder in sysfs, even of nodes without CPUs. It
lets each thread run on all CPUs of its node, whatever the affinity mask allows, and stops reading a
mapped model ahead. So a plan uses it only if every node has CPUs, all of which may be used."""

from __future__ import annotations

from bitnet_tuning.console import counted, size_text
from bitnet_tuning.engine.find import NONE
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.machine.topology import Node, cpus_of
from bitnet_tuning.plan.command import obeys, read_by_engine
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.memory import Need
from bitnet_tuning.plan.openmp import ACTIVE, in_chats, user_binding, user_waiting
from bitnet_tuning.plan.threads import NOT_BOUND, asked_threads, unplaceable

DISTRIBUTE, ISOLATE, NUMACTL = "distribute", "isolate", "numactl"

NODE_SHARE = 0.8
"""Largest share of a node's free memory for a run that stays on the node."""

ONE_NODE = 100_000_000
"""Size in bytes up to which a model stays on one node, even if the node has fewer cores than the
plan has threads. One channel of DDR4-2666 (2666 million transfers of 8 bytes a second) reads so
much in 5 ms, so that the memory of a second node could save only little."""

_MOSTLY = 0.9
"""Share of a model's cached pages on one node from which on the model counts as being there."""


def choose_placement(plan: Plan, request: Request, facts: Facts, need: Need) -> Plan:
    """Return the plan with threads and memory placed on NUMA nodes. If they fit on one node, the
    prompt gets no more threads than the node has cores."""
    host, setting = facts.host, plan.setting
    nodes = usable_nodes(host)
    if len(nodes) < 2:
        (only,) = nodes or host.nodes[:1]
        reason = f"nothing to choose: this process may use only NUMA node {only.id}"
        return _not_placed(plan, reason, _misplaced(facts, frozenset((only.id,))))
    if "numa" in read_by_engine(facts.environ):
        return _not_placed(plan, "no node is chosen")
    if binding := user_binding(facts.environ):
        return _not_placed(plan, f"no node is chosen: you bind the threads yourself with {binding}")
    if setting.cpus is not None:
        return _not_placed(plan, "no node is chosen: the threads are bound to the fastest cores")
    is_asked = bool(request.threads_batch or asked_threads(request.threads, facts.environ))
    together = max(setting.threads, setting.threads_batch if is_asked else 1)
    flags = facts.engine.flags_for(request.chat)
    if facts.model.size <= ONE_NODE and not is_asked:
        together = min(together, max(host.cores_in(node.cpus & host.allowed) for node in nodes))
    node = _node_for(facts, together, need, nodes)
    if node is not None:
        return _on_one(plan, facts, node, flags)
    return _on_all(plan, facts, need, flags, is_asked)


def _not_placed(plan: Plan, reason: str, warnings: tuple[str, ...] = ()) -> Plan:
    return plan.updated(plan.setting, {"numa": reason}, warnings)


def usable_nodes(host: Host) -> tuple[Node, ...]:
    """Return the nodes of which this process may use the memory and at least one CPU."""
    return tuple(
        node
        for node in host.nodes
        if node.cpus & host.allowed and (host.mems is None or node.id in host.mems)
    )


def _node_for(facts: Facts, count: int, need: Need, nodes: tuple[Node, ...]) -> Node | None:
    """Return a node with enough cores for ``count`` threads and enough memory, or None. Prefer the
    one with most of the model in its page cache, then the one with most free memory."""
    cached = facts.cached or {}

    def holds(node: Node) -> bool:
        room = node.free is None or need.total <= NODE_SHARE * node.free
        # A model that is in the node's page cache needs no more of its free memory.
        there = _share(cached, node.id) >= _MOSTLY
        rest = need.cache + need.buffers
        room = room or (there and rest <= NODE_SHARE * (node.free or 0))
        return room and count <= facts.host.cores_in(node.cpus & facts.host.allowed)

    def rank(node: Node) -> tuple[float, int, int]:
        return _share(cached, node.id), node.free or 0, -node.id

    return max(filter(holds, nodes), key=rank, default=None)


def _share(cached: dict[int, int], node: int) -> float:
    total = sum(cached.values())
    return cached.get(node, 0) / total if total else 0.0


_NO_NUMACTL = "numactl is not installed or not permitted"


def _on_one(plan: Plan, facts: Facts, node: Node, flags: frozenset[str]) -> Plan:
    host, setting = facts.host, plan.setting
    cores = host.cores_in(node.cpus & host.allowed)
    why = f"threads and memory fit on NUMA node {node.id} ({counted(cores, 'core')}, {_free(node)})"
    setting = setting._replace(cpus=node.cpus & host.allowed)
    if facts.numactl:
        setting = setting._replace(node=node.id)
        why += "; numactl prefers its memory"
    elif obeys("numa", flags) and node.cpus <= host.allowed:
        setting = setting._replace(numa=ISOLATE)
        why += f"; {_NO_NUMACTL}: affinity and the engine's --numa isolate keep them there"
    else:
        # Linux allocates a page on the node of the CPU that touches it first (numa(7)).
        why += f"; {_NO_NUMACTL}: affinity keeps the threads there, and so new memory"
    reasons = {"cpus": f"bound to NUMA node {node.id}", "numa": why}
    if cores < setting.threads:
        setting = setting._replace(threads=cores)
        reasons["threads"] = (
            f"{cores}: all usable cores of NUMA node {node.id}; for a model of "
            f"{size_text(facts.model.size)} the memory of one node is fast enough"
        )
    # If the user set the number of threads for prompts, the node has at least as many cores.
    if cores < setting.threads_batch:
        setting = setting._replace(threads_batch=cores)
        reasons["threads_batch"] = f"{cores}: all usable cores of NUMA node {node.id}"
    return plan.updated(setting, reasons, _misplaced(facts, frozenset((node.id,))))


def _on_all(plan: Plan, facts: Facts, need: Need, flags: frozenset[str], is_asked: bool) -> Plan:
    """Spread threads and memory over all nodes, with the engine's own --numa where possible.
    ``is_asked`` says that the user set the threads for prompts."""
    nodes = usable_nodes(facts.host)
    host, setting = facts.host, plan.setting
    largest = max(host.cores_in(node.cpus & host.allowed) for node in nodes)
    ids = frozenset(node.id for node in nodes)
    reasons = {}
    why = (
        f"{counted(setting.threads, 'thread')} and {size_text(need.total)} do not fit on any of "
        f"{len(nodes)} NUMA nodes (at most {counted(largest, 'core')}; "
        f"{', '.join(map(_free, nodes))})"
    )
    has_flag = obeys("numa", flags)
    if has_flag and all_usable(host, nodes):
        setting = setting._replace(numa=DISTRIBUTE)
        why += "; the engine's --numa distribute spreads them over all nodes"
    else:
        no_cpus = "--numa would use nodes without CPUs, or CPUs that this process may not use"
        why += f"; {no_cpus if has_flag else 'the engine has no --numa'}"
        if facts.numactl:
            cpus = frozenset().union(*(node.cpus for node in nodes)) & host.allowed
            numa = NUMACTL if has_flag else None
            setting = setting._replace(interleave=ids, numa=numa, cpus=cpus)
            reasons["cpus"] = f"bound to NUMA nodes {format_list(ids)}"
            cores = host.cores_in(cpus)
            if cores < setting.threads_batch and not is_asked:
                setting = setting._replace(threads_batch=cores)
                reasons["threads_batch"] = f"{cores}: all usable cores of these nodes"
            why += f"; numactl interleaves the memory over nodes {format_list(ids)}"
        else:
            why += f"; {_NO_NUMACTL}, so nothing is placed"
    return plan.updated(setting, {**reasons, "numa": why}, _misplaced(facts, ids, spread=True))


def all_usable(host: Host, nodes: tuple[Node, ...]) -> bool:
    """Return whether every node has CPUs and memory, and this process may use all of it."""
    return len(nodes) == len(host.nodes) and all(node.cpus <= host.allowed for node in nodes)


def _misplaced(facts: Facts, wanted: frozenset[int], spread: bool = False) -> tuple[str, ...]:
    """Warn if the page cache holds the model on other nodes, where a mapped model stays."""
    cached = facts.cached or {}
    total = sum(cached.values())
    inside = sum(pages for node, pages in cached.items() if node in wanted)
    lopsided = spread and max(cached.values(), default=0) >= _MOSTLY * total
    if not total or (inside >= total / 2 and not lopsided):
        return ()
    held = format_list(frozenset(cached))
    return (
        f"the page cache holds the model on NUMA node {held}, not on {format_list(wanted)}, which "
        "slows down reading it. Drop it from the cache before the next start: "
        f"dd if='{facts.model.path}' iflag=nocache count=0 status=none "
        "(or drop all files: echo 1 | sudo tee /proc/sys/vm/drop_caches)",
    )


def _free(node: Node) -> str:
    return "free memory unknown" if node.free is None else f"{size_text(node.free)} free"


PERFORMANCE_NICE = -5
"""Niceness in performance mode: ahead of ordinary programs, but not of all others."""

EAGER_POLL = 100
"""Level of the engine's --poll at which waiting threads never sleep."""


def choose_boost(plan: Plan, request: Request, facts: Facts) -> Plan:
    """Return the plan with what performance mode adds: priority, spinning threads, fixed CPUs."""
    lowest = facts.privileges.lowest_nice if facts.privileges else 0
    nice, priority, warnings = 0, "normal priority", []
    if lowest <= PERFORMANCE_NICE:
        nice, priority = PERFORMANCE_NICE, f"niceness {PERFORMANCE_NICE}, if the kernel permits it"
    else:
        warnings.append("priority is not raised: that needs root or a nice limit (ulimit -e)")
    threads = max(plan.setting.threads, plan.setting.threads_batch)
    waiting, poll, why = _waiting(facts, threads, request.chat)
    reasons = {"performance": f"{priority}; {why}"}
    setting = plan.setting._replace(nice=nice, poll=poll).with_env(waiting)
    if setting.cpus is None and setting.numa is None:
        cpus, reasons["cpus"] = _affinity(facts, threads)
        setting = setting._replace(cpus=cpus)
    return plan.updated(setting, reasons, warnings)


def _waiting(facts: Facts, threads: int, chat: bool) -> tuple[dict[str, str], int | None, str]:
    """Return the variables and the level of --poll that make waiting threads spin, and why. Threads
    that spin use up a CPU quota, and take CPUs from threads that have work to do."""
    host, runtime = facts.host, facts.engine.openmp
    if chosen := user_waiting(facts.environ):
        return {}, None, f"threads wait as you set it: {chosen}"
    if host.quota_stops(threads):
        return {}, None, "threads may sleep while they wait: spinning would use up the CPU quota"
    if threads > len(host.allowed):
        return {}, None, "threads may sleep while they wait: there are more threads than CPUs"
    if runtime in ACTIVE:
        variables = dict([ACTIVE[runtime]])
        variables = in_chats(variables) if chat else variables
        ((name, value),) = variables.items()
        until = ", but not while you type" if chat else ""
        return variables, None, f"{name}={value} lets threads spin while they wait{until}"
    if runtime == NONE and obeys("poll", facts.engine.flags_for(chat)):
        return {}, EAGER_POLL, f"--poll {EAGER_POLL} lets threads spin while they wait"
    reason = "how threads wait is left to the engine: no variable or flag is known that changes it"
    return {}, None, reason


def _affinity(facts: Facts, threads: int) -> tuple[frozenset[int] | None, str]:
    """Return the CPUs of as many allowed cores as ``threads``, the fastest, and those of one node
    together; None if they cannot be chosen. Return the reason, too."""
    host = facts.host
    if reason := unplaceable(host, facts.environ):
        return None, reason
    if host.quota_binds:
        return None, f"{NOT_BOUND}: other containers with a quota might be bound to the same CPUs"
    home = {cpu: node.id for node in host.nodes for cpu in node.cpus}
    ranked = sorted(
        host.allowed_cores,
        key=lambda core: (-core.speed, home.get(min(core.cpus), 0), min(core.cpus)),
    )[:threads]
    reason = f"bound to {counted(len(ranked), 'core')} (performance mode)"
    return cpus_of(ranked) & host.allowed, reason
