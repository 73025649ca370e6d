"""Compare what was observed of a running engine with what was planned; pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bitnet_tuning.console import MEBIBYTE, counted
from bitnet_tuning.engine.find import GOMP, LLVM
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.plan.memory import TUNABLES
from bitnet_tuning.plan.openmp import BINDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.process import Process
    from bitnet_tuning.machine.topology import Core
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Plan
    from bitnet_tuning.verify.running import Watched
    from bitnet_tuning.verify.selftest import Report


PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"

OUTPUT = "correct output"

NO_RUN = "the engine's run failed"

SURE_SHARE = 0.5
"""Share of the busiest thread's time that a thread beyond the plan must have to count: on a busy
machine a thread that hardly runs may wait as long as others compute."""

LOCKED_SHARE = 0.9
"""Least share of the model's file that is locked where locking acts: the header with the
vocabulary, 2 % of the files seen, is not."""

LOWEST_NICE = -20

_OWN_COUNT = re.compile(r"system_info: .*?\bn_threads = (\d+)(?: \(n_threads_batch = (\d+)\))?")


class Line(NamedTuple):
    """The outcome of one check."""

    name: str
    """Unique among the lines."""
    state: str
    reason: str
    """One sentence, with the remedy where there is one."""
    facts: Mapping[str, object] | None = None
    """The figures behind it, for programs; None where the reason says all."""


def detected(plan: Plan, by_itself: int, host: Host) -> Line:
    """Check the number of threads. ``by_itself`` is the one that the host alone leads to."""
    name, reason = "threads detected", plan.reasons["threads"]
    if plan.setting.threads != by_itself:
        reason = f"{reason} (the machine alone would have {by_itself})"
    if plan.setting.threads > len(host.allowed):
        cpus = counted(len(host.allowed), "CPU")
        return Line(name, FAIL, f"{reason}; that is more than the {cpus} that may be used")
    if host.quota is not None and plan.setting.threads > max(1.0, host.quota):
        cpus = counted(host.quota, "CPU")
        return Line(name, FAIL, f"{reason}; that is more than the quota of {cpus}")
    return Line(name, PASS, reason)


def environment(plan: Plan, watched: Watched) -> Line:
    """Check the variables of the process that computes."""
    name, process = "environment", watched.process
    if process is None:
        return _unseen(name, watched)
    if process.variables is None:
        return Line(name, SKIP, f"the environment of the engine's process {process.id} is hidden")
    env = plan.setting.variables
    wrong = _differences(env, process.variables)
    if wrong:
        return Line(
            name,
            FAIL,
            f"in the engine's process {process.id} {wrong}: look at what starts it, "
            f"{plan.command[0]}; a script there must pass its environment on",
        )
    if not env:
        return Line(name, PASS, f"nothing is to be set: {plan.reasons['env']}")
    shown = " ".join(f"{key}={text}" for key, text in env.items())
    return Line(name, PASS, f"{shown} in the engine's process {process.id}")


def _unseen(name: str, watched: Watched) -> Line:
    return Line(name, SKIP, NO_RUN if watched.failed else watched.problem or "nothing was seen")


def _differences(wanted: Mapping[str, str], seen: Mapping[str, str]) -> str:
    """Return what differs between the plan and the process; empty for nothing."""
    missing = [key for key in wanted if key not in seen]
    parts = [f"{key} is {text!r}" for key, text in seen.items() if wanted.get(key, text) != text]
    if missing:
        parts.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return "; ".join(parts)


def working(plan: Plan, watched: Watched) -> Line:
    """Count the threads that spent CPU time while tokens were generated."""
    name, workers = "working threads", watched.workers
    if watched.failed:
        return Line(name, FAIL, f"{NO_RUN}: {watched.problem}")
    if not workers:
        return _unseen(name, watched)
    planned, count, most = plan.setting.threads, len(workers), max(worker.ran for worker in workers)
    surely = sum(worker.ran >= SURE_SHARE * most for worker in workers)
    others = f", {len(watched.others)} idle" if watched.others else ""
    facts = {"working": count, "planned": planned, "shares": _shares(watched)}
    if surely > planned:
        seen = counted(surely, "thread")
        reason = f"{seen}, {planned} planned: something starts more of its own"
        return Line(name, FAIL, reason, facts)
    if count < planned:
        reason = f"{count} of {planned} threads{others}: {_why_fewer(watched)}"
        return Line(name, FAIL, reason, facts)
    return Line(name, PASS, f"{counted(planned, 'thread')}{others}", facts)


def _shares(watched: Watched) -> list[float]:
    """Return each thread's share of the time that the busiest one ran or waited for its CPU."""
    threads = (*watched.workers, *watched.others)
    return [round(thread.wanted / threads[0].wanted, 3) for thread in threads]


def _why_fewer(watched: Watched) -> str:
    """Return a reason. Both variables outrank what a program asks for: OpenMP's rules on how
    many threads a parallel region gets (thread-limit-var, dyn-var)."""
    variables = (watched.process and watched.process.variables) or {}
    limit = variables.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) <= len(watched.workers):
        return f"OMP_THREAD_LIMIT={limit} allows no more, whatever -t says; unset it"
    if variables.get("OMP_DYNAMIC", "").lower() in ("true", "1"):
        return "OMP_DYNAMIC lets the runtime choose fewer; unset it"
    return "the engine makes less of -t, or other programs keep the CPUs busy"


def places(plan: Plan, watched: Watched, host: Host, runtime: str | None) -> Line:
    """Check the CPUs that working threads may use. ``runtime`` is the engine's OpenMP."""
    name, workers = "threads' CPUs", watched.workers[: plan.setting.threads]
    if not workers:
        return _unseen(name, watched)
    masks = [worker.cpus for worker in workers if worker.cpus is not None]
    if len(masks) < len(workers):
        return Line(name, SKIP, "the kernel does not say which CPUs a thread may use")
    facts = {"cpus": [format_list(mask) for mask in masks]}
    wrong = _misplaced(plan, watched, masks, host, runtime)
    if wrong:
        return Line(name, FAIL, wrong, facts)
    shown = ", ".join(format_list(mask) for mask in sorted(set(masks), key=sorted))
    own = len(set(masks)) == len(masks) > 1
    return Line(name, PASS, f"{'each its own: ' if own else ''}{shown}", facts)


def _misplaced(
    plan: Plan, watched: Watched, masks: list[frozenset[int]], host: Host, runtime: str | None
) -> str | None:
    permitted = plan.setting.cpus or host.allowed
    every = frozenset[int]().union(*masks)
    if every - permitted:
        return f"they may use {format_list(every)}, planned are {format_list(permitted)} only"
    left_out = crowded(masks, host.cores, permitted)
    if left_out:
        return (
            f"{left_out} of {counted(len(masks), 'thread')} cannot have a core of its own on CPUs "
            f"{format_list(every)}, though {format_list(permitted)} may be used: look for "
            "taskset, numactl or GOMP_CPU_AFFINITY"
        )
    if _should_bind(plan, watched, host, runtime) and any(_spans(mask, host) for mask in masks):
        return "OMP_PROC_BIND=true does not act: a thread may still move from core to core"
    return None


def _should_bind(plan: Plan, watched: Watched, host: Host, runtime: str | None) -> bool:
    """Return whether the runtime is to bind threads. It does so in a parallel region, which one
    thread alone does not open."""
    return (
        runtime in (GOMP, LLVM)
        and BINDING.items() <= plan.setting.variables.items()
        and len(watched.workers) > 1
        and host.topology_known
    )


def _spans(mask: frozenset[int], host: Host) -> bool:
    """Return whether the mask has CPUs of several cores."""
    return sum(1 for core in host.cores if core.cpus & mask) > 1


def asks_huge(plan: Plan) -> bool:
    """Return whether the plan asks for huge pages, for which glibc asks the kernel."""
    return "hugetlb" in plan.setting.variables.get(TUNABLES, "")


def wanted_nodes(plan: Plan) -> frozenset[int] | None:
    """Return the NUMA nodes on which memory is to lie; None where the plan names none."""
    node = plan.setting.node
    return plan.setting.interleave if node is None else frozenset((node,))


def kernel(
    plan: Plan, watched: Watched, model_size: int, niceness: int, lockable: int | None
) -> Iterator[Line]:
    """Yield a line for each thing that the plan asks of the kernel besides the CPUs.

    ``niceness`` is the launcher's; ``lockable`` bytes it may lock in memory, None for no
    limit, or where that is not known.
    """
    process, loaded = watched.process, _is_loaded(watched, model_size)
    nodes = wanted_nodes(plan)
    asked: list[tuple[str, Callable[[Process], tuple[str, str]]]] = []
    if plan.setting.nice:
        wanted = max(LOWEST_NICE, niceness + plan.setting.nice)
        asked.append(("priority", lambda process: _priority(process, wanted)))
    if plan.setting.mlock:
        asked.append(
            ("locked memory", lambda process: _locked(process, model_size, loaded, lockable))
        )
    if asks_huge(plan):
        asked.append(("huge pages", lambda process: _huge(process, loaded)))
    if nodes is not None:
        asked.append(("memory nodes", lambda process: _memory_nodes(process, nodes)))
    for name, judge in asked:
        yield _unseen(name, watched) if process is None else Line(name, *judge(process))


def _priority(process: Process, wanted: int) -> tuple[str, str]:
    found = (thread.niceness for thread in process.threads)
    seen = sorted({value for value in found if value is not None})
    shown = ", ".join(map(str, seen))
    if not seen:
        return SKIP, "the kernel does not say how nice a thread is"
    if seen[-1] <= wanted:
        return PASS, f"niceness {shown}"
    return FAIL, (
        f"niceness {shown} instead of {wanted}: the kernel did not grant it, or a script around "
        "the engine changes it"
    )


def _locked(
    process: Process, model_size: int, loaded: bool, lockable: int | None
) -> tuple[str, str]:
    if process.locked is None:
        return SKIP, "the kernel does not say how much memory is locked"
    reason = f"{_size(process.locked)} of the model's {_size(model_size)}"
    if process.locked >= LOCKED_SHARE * model_size:
        return PASS, reason
    if not loaded:
        return SKIP, f"{reason}, perhaps seen before the model was loaded"
    limit = "" if lockable is None else f"; the limit is {_size(lockable)} (ulimit -l)"
    return FAIL, f"{reason}{limit}"


def _huge(process: Process, loaded: bool) -> tuple[str, str]:
    if process.huge is None:
        return SKIP, "the kernel does not say how much memory is in huge pages"
    if process.huge:
        return PASS, f"{_size(process.huge)} in huge pages"
    if not loaded:
        return SKIP, "none seen, perhaps because the model was not loaded yet"
    return FAIL, (
        "no memory is in huge pages: the C library ignores its tunable, or no free memory is in "
        "one piece"
    )


def _memory_nodes(process: Process, wanted: frozenset[int]) -> tuple[str, str]:
    """Accept most of the memory on the ``wanted`` nodes: what other programs had read of the
    model before stays where it was."""
    if not process.nodes:
        return SKIP, "the kernel does not say on which NUMA nodes memory lies"
    inside = sum(size for node, size in process.nodes.items() if node in wanted)
    shown = ", ".join(f"node {node}: {_size(size)}" for node, size in sorted(process.nodes.items()))
    if inside > sum(process.nodes.values()) / 2:
        return PASS, shown
    return FAIL, (
        f"{shown}, planned are {format_list(wanted)}: the nodes are full, or the page cache held "
        "the model elsewhere"
    )


def _is_loaded(watched: Watched, model_size: int) -> bool:
    """Return whether the model surely was in memory. A small one takes less than a program
    has at its start."""
    resident = watched.process and watched.process.resident
    return watched.steady and resident is not None and resident >= model_size


def own_count(plan: Plan, watched: Watched) -> Line:
    """Check the engine's own line on threads, which tells what it was asked for."""
    name = "engine's n_threads"
    found = _OWN_COUNT.search(watched.log)
    if found is None:
        return Line(name, SKIP, NO_RUN if watched.failed else "the engine does not print it")
    threads, batch = int(found[1]), int(found[2] or found[1])
    # An engine that prints one number has no other for prompts.
    planned = plan.setting.threads, plan.setting.threads_batch if found[2] else plan.setting.threads
    said = f"{threads}, and {batch} for prompts"
    if (threads, batch) == planned:
        return Line(name, PASS, said)
    return Line(name, FAIL, f"{said}, planned are {planned[0]} and {planned[1]}")


def output(report: Report, problem: str | None) -> Line:
    """Check the self-test. ``problem`` is what is wrong with the text of the plan's setting."""
    if not report.passed:
        return Line(OUTPUT, FAIL, f"the self-test fails: {report.diagnosis}")
    if problem:
        return Line(OUTPUT, FAIL, f"with the setting of the plan {problem}")
    return Line(OUTPUT, PASS, f"the self-test's {report.right} texts are right")


def quantization(engine: Engine, model: ModelFile) -> Line:
    name, kind = "i2_s model", model.quantization
    if kind == I2_S:
        weights = sum(share.weights for share in model.types)
        ternary = sum(share.weights for share in model.types if share.name == I2_S)
        return Line(name, PASS, f"{ternary / max(1, weights):.0%} of the weights are i2_s")
    if engine.i2_s is False:
        what = "the embedded engine" if engine.embedded else "this engine, mainline llama.cpp,"
        return Line(name, SKIP, f"the model is {kind}: {what} has no i2_s kernels")
    return Line(
        name,
        FAIL,
        f"the model is {kind}; bitnet.cpp's kernels are for i2_s: "
        "python3 setup_env.py -md MODEL_FOLDER -q i2_s",
    )


def _size(size: int) -> str:
    return f"{size / MEBIBYTE:.0f} MiB"


def crowded(
    masks: Sequence[frozenset[int]], cores: Sequence[Core], permitted: frozenset[int]
) -> int:
    """Return how many threads must share a core although another one is permitted. Threads may
    use the CPUs of their ``masks``; more threads than permitted cores have to share anyway."""
    usable = [core.cpus for core in cores if core.cpus & permitted]
    taken: dict[int, int] = {}
    housed = sum(_house(thread, masks, usable, taken, set()) for thread in range(len(masks)))
    return min(len(masks), len(usable)) - housed


def _house(
    thread: int,
    masks: Sequence[frozenset[int]],
    cores: Sequence[frozenset[int]],
    taken: dict[int, int],
    tried: set[int],
) -> bool:
    """Return whether the thread gets a core; a thread that has it moves on if it can (Kuhn's
    algorithm for bipartite matching). ``taken`` maps a core to its thread."""
    for index, cpus in enumerate(cores):
        if index in tried or not cpus & masks[thread]:
            continue
        tried.add(index)
        if index not in taken or _house(taken[index], masks, cores, taken, tried):
            taken[index] = thread
            return True
    return False
