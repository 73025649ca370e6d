"""Compare what was observed of a running engine with its plan. Nothing here reads the system."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bitnet_tuning.console import counted, size_text
from bitnet_tuning.engine.find import GOMP, LLVM, Engine
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.process import Process
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.machine.topology import Core
from bitnet_tuning.model.types import I2_S, ModelFile, gain_text, is_wide, slim_advice
from bitnet_tuning.plan.facts import Plan
from bitnet_tuning.plan.memory import TUNABLES
from bitnet_tuning.plan.openmp import BINDING
from bitnet_tuning.verify.running import Watched
from bitnet_tuning.verify.selftest import Report

PASS, FAIL, SKIP, HINT = "PASS", "FAIL", "SKIP", "HINT"
"""States of a line: skipped is what cannot be told, and a hint names what would be faster."""

EMBEDDING = "embedding"
"""Name of the line about the type of the embedding, or of the speed with a smaller one."""

OUTPUT = "correct output"
"""Name of the line about the engine's texts."""

NO_RUN = "the engine's run failed"
"""Reason of a line for which a run that failed shows nothing."""

SURE_SHARE = 0.5
"""Share of the busiest thread's CPU time from which a thread surely computes. On a busy machine a
thread that hardly runs may wait for a CPU as long as others compute."""

LOCKED_SHARE = 0.9
"""Share of the model's file that is locked at least where locking works: the header with the
vocabulary, 2 % of the files seen, is not locked."""

LOWEST_NICE = -20
"""Lowest niceness that Linux has (setpriority(2))."""

OWN_COUNT = re.compile(r"system_info: .*?\bn_threads = (\d+)(?: \(n_threads_batch = (\d+)\))?")


class Line(NamedTuple):
    """The outcome of one check."""

    name: str
    """Unique among the lines."""
    state: str
    reason: str
    """What was found, and the remedy where there is one."""
    facts: Mapping[str, object] | None = None
    """The figures behind the reason, for programs; None where there are no others."""


def detected(plan: Plan, computed: int, host: Host) -> Line:
    """Check the planned number of threads; ``computed`` is what the host alone leads to."""
    name, reason = "threads detected", plan.reasons["threads"]
    if plan.setting.threads != computed:
        reason = f"{reason} (computed for this machine: {computed})"
    over = host.quota is not None and host.exceeds_quota(plan.setting.threads)
    if over or plan.setting.threads > len(host.allowed):
        most = counted(host.quota if over and host.quota else len(host.allowed), "CPU")
        return Line(name, FAIL, f"only {most} may be used; plan fewer threads than {reason}")
    return Line(name, PASS, reason)


def environment(plan: Plan, watched: Watched) -> Line:
    """Check the environment variables of the process that computes."""
    name, process = "environment", watched.process
    if process is None:
        return _unseen(name, watched)
    if process.variables is None:
        return Line(name, SKIP, f"the environment of process {process.id} cannot be read")
    env = plan.setting.variables
    if wrong := _differences(env, process.variables):
        remedy = f"{plan.command[0]} must pass its environment on to the engine"
        return Line(name, FAIL, f"in the engine's process {process.id} {wrong}; {remedy}")
    if not env:
        return Line(name, PASS, f"no variable is needed: {plan.reasons['env']}")
    shown = " ".join(f"{key}={text}" for key, text in env.items())
    return Line(name, PASS, f"the engine's process {process.id} has {shown}")


def _unseen(name: str, watched: Watched) -> Line:
    why = watched.problem or "the engine ended before it could be observed"
    return Line(name, SKIP, NO_RUN if watched.failed else why)


def _differences(wanted: Mapping[str, str], seen: Mapping[str, str]) -> str:
    """Return how the process differs from the plan; empty if it does not."""
    missing = [key for key in wanted if key not in seen]
    other = {key: text for key, text in seen.items() if wanted.get(key, text) != text}
    parts = [f"{key} is {text or 'empty'}" for key, text in other.items()]
    if missing:
        parts.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return "; ".join(parts)


def working(plan: Plan, watched: Watched) -> Line:
    """Check how many threads computed while tokens were generated."""
    name, workers = "working threads", watched.workers
    if watched.failed:
        return Line(name, FAIL, f"{NO_RUN}: {watched.problem}")
    if not workers:
        return _unseen(name, watched)
    planned, count, most = plan.setting.threads, len(workers), max(worker.ran for worker in workers)
    surely = sum(worker.ran >= SURE_SHARE * most for worker in workers)
    if surely > planned:
        why = f"look for a thread count in what starts the engine; {planned} are planned"
        return Line(name, FAIL, f"{counted(surely, 'thread')} computing: {why}")
    if count < planned:
        return Line(name, FAIL, f"{_why_fewer(watched)} ({count} of {planned} threads compute)")
    return Line(name, PASS, f"{counted(planned, 'thread')} computing, as planned")


def _why_fewer(watched: Watched) -> str:
    # Both variables limit what a program asks for: see thread-limit-var and dyn-var in the OpenMP
    # specification, "Determining the Number of Threads for a parallel Region".
    variables = (watched.process and watched.process.variables) or {}
    limit = variables.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) <= len(watched.workers):
        return f"OMP_THREAD_LIMIT={limit} allows no more threads, whatever -t says; unset it"
    if variables.get("OMP_DYNAMIC", "").lower() in ("true", "1"):
        return "OMP_DYNAMIC lets the OpenMP runtime use fewer; unset OMP_DYNAMIC"
    return "the engine uses fewer threads than -t says, or other programs keep the CPUs busy"


def places(plan: Plan, watched: Watched, host: Host, runtime: str | None) -> Line:
    """Check which CPUs the working threads may use. ``runtime`` is the engine's OpenMP runtime."""
    name, workers = "threads' CPUs", watched.workers[: plan.setting.threads]
    if not workers:
        return _unseen(name, watched)
    masks = [worker.cpus for worker in workers if worker.cpus is not None]
    if len(masks) < len(workers):
        return Line(name, SKIP, "the kernel does not show which CPUs a thread may use")
    if wrong := _misplaced(plan, watched, masks, host, runtime):
        return Line(name, FAIL, wrong)
    different = sorted(set(masks), key=sorted)
    shown = " | ".join(map(format_list, different))
    own = "each thread keeps to its own: " if len(different) == len(masks) > 1 else ""
    return Line(name, PASS, f"{own}{'CPU' if shown.isdecimal() else 'CPUs'} {shown}")


def _misplaced(
    plan: Plan, watched: Watched, masks: list[frozenset[int]], host: Host, runtime: str | None
) -> str | None:
    permitted = plan.setting.cpus or host.allowed
    every = frozenset[int]().union(*masks)
    if every - permitted:
        return (
            f"the threads may use CPUs {format_list(every)}, but the plan allows only "
            f"{format_list(permitted)}: look for taskset in what starts the engine"
        )
    if left_out := _crowded(masks, host.cores, permitted):
        return (
            f"{left_out} of {counted(len(masks), 'thread')} must share a core with others on CPUs "
            f"{format_list(every)}, though {format_list(permitted)} may be used: look for "
            "taskset, numactl or GOMP_CPU_AFFINITY in what starts the engine"
        )
    # A runtime binds threads when a parallel region starts, and one thread alone starts none.
    binds = runtime in (GOMP, LLVM) and BINDING.items() <= plan.setting.variables.items()
    moves = any(host.cores_in(mask) > 1 for mask in masks) and host.topology_known
    if binds and moves and len(watched.workers) > 1:
        return "OMP_PROC_BIND=true has no effect: a thread may still move from core to core"
    return None


def asks_huge(plan: Plan) -> bool:
    """Return whether the plan asks for huge pages, by the GLIBC_TUNABLES variable."""
    return "hugetlb" in plan.setting.variables.get(TUNABLES, "")


def wanted_nodes(plan: Plan) -> frozenset[int] | None:
    """Return the NUMA nodes on which the plan places memory; None if it places none."""
    node = plan.setting.node
    return plan.setting.interleave if node is None else frozenset((node,))


def kernel(
    plan: Plan, watched: Watched, model_size: int, niceness: int, lockable: int | None
) -> Iterator[Line]:
    """Yield a line for priority, locked memory, huge pages and NUMA nodes, where the plan asks the
    kernel for them. ``model_size`` is in bytes, ``niceness`` is the launcher's own, and
    ``lockable`` the number of bytes that it may lock in memory: None if unlimited or unknown."""
    process = watched.process
    loaded = watched.steady and process is not None and (process.resident or -1) >= model_size
    nodes = wanted_nodes(plan)

    def judged(name: str, judge: Callable[..., tuple[str, str]], *values: object) -> Line:
        return _unseen(name, watched) if process is None else Line(name, *judge(process, *values))

    if plan.setting.nice:
        wanted = max(LOWEST_NICE, niceness + plan.setting.nice)
        yield judged("priority", _priority, wanted)
    if plan.setting.mlock:
        yield judged("locked memory", _locked, model_size, loaded, lockable)
    if asks_huge(plan):
        yield judged("huge pages", _huge, loaded)
    if nodes is not None:
        yield judged("memory nodes", _memory_nodes, nodes)


def _priority(process: Process, wanted: int) -> tuple[str, str]:
    found = (thread.niceness for thread in process.threads)
    seen = sorted({value for value in found if value is not None})
    shown = ", ".join(map(str, seen))
    if not seen:
        return SKIP, "the kernel does not show the niceness of a thread"
    if seen[-1] <= wanted:
        return PASS, f"niceness {shown}"
    return FAIL, (
        f"niceness {shown} instead of {wanted}: the kernel refused it, or a script that starts the "
        "engine changes it"
    )


def _locked(
    process: Process, model_size: int, loaded: bool, lockable: int | None
) -> tuple[str, str]:
    if process.locked is None:
        return SKIP, "the kernel does not show how much memory is locked"
    reason = f"{size_text(process.locked)} of the model's {size_text(model_size)} are locked"
    if process.locked >= LOCKED_SHARE * model_size:
        return PASS, reason
    if not loaded:
        return SKIP, f"{reason}; the engine may have been observed before the model was loaded"
    limit = "" if lockable is None else f"; the limit is {size_text(lockable)} (ulimit -l)"
    return FAIL, f"{reason}{limit}"


def _huge(process: Process, loaded: bool) -> tuple[str, str]:
    if process.huge is None:
        return SKIP, "the kernel does not show how much memory is in huge pages"
    if process.huge:
        return PASS, f"{size_text(process.huge)} are in huge pages"
    if not loaded:
        return SKIP, "no huge page was in use; the model may not have been loaded yet"
    return FAIL, (
        "no memory is in huge pages: the C library ignores GLIBC_TUNABLES, or free memory is too "
        "fragmented"
    )


def _memory_nodes(process: Process, wanted: frozenset[int]) -> tuple[str, str]:
    # Most of the memory is enough: pages of the model that were cached before stay where they are.
    if not process.nodes:
        return SKIP, "the kernel does not show on which NUMA nodes memory lies"
    inside = sum(size for node, size in process.nodes.items() if node in wanted)
    shown = ", ".join(
        f"node {node}: {size_text(process.nodes[node])}" for node in sorted(process.nodes)
    )
    if inside > sum(process.nodes.values()) / 2:
        return PASS, shown
    return FAIL, (
        f"{shown}; the plan asks for node {format_list(wanted)}: it is full, or the page cache "
        "holds the model on another node"
    )


def own_count(plan: Plan, watched: Watched) -> Line:
    """Check the number of threads in the engine's log, which is the one it was asked for."""
    name = "engine's n_threads"
    found = OWN_COUNT.search(watched.log)
    if found is None:
        why = NO_RUN if watched.failed else "the engine's log does not state n_threads"
        return Line(name, SKIP, why)
    threads, batch = int(found[1]), int(found[2] or found[1])
    # An engine that prints one number uses it for prompts, too.
    planned = plan.setting.threads, plan.setting.threads_batch if found[2] else plan.setting.threads
    said = f"its log says {threads} for generation and {batch} for prompts"
    if (threads, batch) == planned:
        return Line(name, PASS, f"{said}, as planned")
    why = f"{planned[0]} and {planned[1]} are planned: look for -t in what starts the engine"
    return Line(name, FAIL, f"{said}, but {why}")


def output(report: Report, problem: str | None) -> Line:
    """Check the engine's texts. ``problem`` is what is wrong with the greedy text of the planned
    setting, as the rest of a sentence; None for nothing."""
    if report.passed is None:
        return Line(OUTPUT, SKIP, f"the self-test is {report.cause}")
    if not report.passed:
        count = f"{len(report.results) - report.right} of {len(report.results)}"
        return Line(OUTPUT, FAIL, f"{report.diagnosis} ({count} known texts come out wrong)")
    if problem:
        return Line(OUTPUT, FAIL, f"with the planned setting: {problem}")
    reason = f"{counted(report.right, 'known text')} of the demo model came out right"
    return Line(OUTPUT, PASS, reason)


def quantization(engine: Engine, model: ModelFile) -> Line:
    name, kind = "i2_s model", model.quantization
    if kind == I2_S:
        weights = sum(share.weights for share in model.types)
        ternary = sum(share.weights for share in model.types if share.name == I2_S)
        share = f"{ternary / max(1, weights):.0%} of the weights"
        return Line(name, PASS, f"{share} are in bitnet.cpp's fast format")
    if engine.i2_s is False:
        what = "the embedded engine" if engine.embedded else "mainline llama.cpp"
        return Line(name, SKIP, f"the model is {kind}; {what} has no i2_s kernels")
    remedy = "convert it: python3 setup_env.py -md MODEL_FOLDER -q i2_s"
    why = f"the model is {kind}, but bitnet.cpp has fast kernels for i2_s only; {remedy}"
    return Line(name, FAIL, why)


def embedding(model: ModelFile) -> Iterator[Line]:
    """Yield a line on the embedding of a model without a slim copy, if it has an embedding."""
    cost = gain_text(model)
    if is_wide(model):
        yield Line(EMBEDDING, HINT, f"{cost}; {slim_advice(model, ())}")
    elif cost:
        yield Line(EMBEDDING, PASS, cost)


def _crowded(
    masks: Sequence[frozenset[int]], cores: Sequence[Core], permitted: frozenset[int]
) -> int:
    """Return how many threads must share a core although the ``permitted`` CPUs have another one.
    ``masks`` are the CPUs that each thread may use. Threads in excess of the permitted cores do not
    count: they have to share a core anyway."""
    free = [core.cpus for core in cores if core.cpus & permitted]
    most = min(len(masks), len(free))
    housed = 0
    # The narrowest masks choose first. That houses as many threads as possible where masks are
    # nested or disjoint, as those of OpenMP's places and of control groups are.
    for mask in sorted(masks, key=len):
        core = next((cpus for cpus in free if cpus & mask), None)
        if core is not None:
            free.remove(core)
            housed += 1
    return most - housed
