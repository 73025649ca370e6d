"""Do the optimisations act? What was seen of a running engine against what was planned;
pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bitnet_tuning.engine.binary import GOMP, LLVM
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.plan.openmp import BINDING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.topology import Core
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Plan
    from bitnet_tuning.verify.running import Watched, Work
    from bitnet_tuning.verify.selftest import Report


PASS, FAIL, SKIP = "PASS", "FAIL", "SKIP"

OUTPUT = "correct output"

NO_RUN = "the engine's run failed"

SURE_SHARE = 0.5
"""Of the time that the busiest thread ran, which one thread too many must have to be held
against anybody: on a busy machine a thread that hardly runs may wait as long as others
compute."""

_OWN_COUNT = re.compile(r"system_info: .*?\bn_threads = (\d+)(?: \(n_threads_batch = (\d+)\))?")


class Line(NamedTuple):
    """One answer."""

    name: str
    """What was asked; unique among the lines."""
    state: str
    reason: str
    """One sentence, with the remedy where there is one."""
    facts: Mapping[str, object] | None = None
    """The figures behind it, for programs; None where the reason says all."""


def detected(plan: Plan, by_itself: int, host: Host) -> Line:
    """``by_itself`` is the number of threads that the host alone leads to."""
    name, reason = "threads detected", plan.reasons["threads"]
    if plan.threads != by_itself:
        reason = f"{reason} (the machine alone would have {by_itself})"
    cpus = len(host.allowed)
    if plan.threads > cpus:
        return Line(name, FAIL, f"{reason}; that is more than the {_cpus(cpus)} that may be used")
    if host.quota is not None and plan.threads > max(1.0, host.quota):
        return Line(name, FAIL, f"{reason}; that is more than the quota of {_cpus(host.quota)}")
    return Line(name, PASS, reason)


def environment(plan: Plan, watched: Watched) -> Line:
    """The variables as the process has them that computes."""
    name, work = "environment", watched.work
    if work is None:
        return _unseen(name, watched)
    wrong = _differences(plan, work)
    if wrong:
        return Line(
            name,
            FAIL,
            f"in the engine's process {work.process} {wrong}: look at what starts it, "
            f"{plan.command[0]}; a script there must pass its environment on",
        )
    if not plan.env:
        return Line(name, PASS, f"nothing is to be set: {plan.reasons['env']}")
    shown = " ".join(f"{key}={text}" for key, text in plan.env.items())
    return Line(name, PASS, f"{shown} in the engine's process {work.process}")


def _unseen(name: str, watched: Watched) -> Line:
    return Line(name, SKIP, NO_RUN if watched.failed else watched.problem or "nothing was seen")


def _differences(plan: Plan, work: Work) -> str:
    """What the process has otherwise than planned; empty where that is nothing."""
    missing = [key for key in plan.env if key not in work.variables]
    parts = [
        f"{key} is {text!r}" for key, text in work.variables.items() if _differs(plan, key, text)
    ]
    if missing:
        parts.append(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")
    return "; ".join(parts)


def _differs(plan: Plan, key: str, text: str) -> bool:
    return plan.env.get(key, text) != text


def working(plan: Plan, watched: Watched) -> Line:
    """Threads that spent CPU time while tokens were generated, whatever was asked for."""
    name, work = "working threads", watched.work
    if watched.failed:
        return Line(name, FAIL, f"{NO_RUN}: {watched.problem}")
    if work is None:
        return _unseen(name, watched)
    count, most = len(work.workers), max(worker.ran for worker in work.workers)
    surely = sum(worker.ran >= SURE_SHARE * most for worker in work.workers)
    others = f", {len(work.others)} idle" if work.others else ""
    facts = {"working": count, "planned": plan.threads, "shares": _shares(work)}
    if surely > plan.threads:
        reason = f"{_threads(surely)}, {plan.threads} planned: something starts more of its own"
        return Line(name, FAIL, reason, facts)
    if count < plan.threads:
        reason = f"{count} of {plan.threads} threads{others}: {_why_fewer(work)}"
        return Line(name, FAIL, reason, facts)
    return Line(name, PASS, f"{_threads(plan.threads)}{others}", facts)


def _shares(work: Work) -> list[float]:
    """Of the time for which the busiest thread ran or waited for its CPU."""
    threads = (*work.workers, *work.others)
    return [round(thread.wanted / threads[0].wanted, 3) for thread in threads]


def _why_fewer(work: Work) -> str:
    """Both variables outrank what a program asks for: OpenMP's rules on how many threads a
    parallel region gets (thread-limit-var, dyn-var)."""
    limit = work.variables.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) <= len(work.workers):
        return f"OMP_THREAD_LIMIT={limit} allows no more, whatever -t says; unset it"
    if work.variables.get("OMP_DYNAMIC", "").lower() in ("true", "1"):
        return "OMP_DYNAMIC lets the runtime choose fewer; unset it"
    return "the engine makes less of -t, or other programs keep the CPUs busy"


def places(plan: Plan, watched: Watched, host: Host, runtime: str | None) -> Line:
    """The CPUs on which the threads that work may run. ``runtime`` is the engine's OpenMP."""
    name, work = "threads' CPUs", watched.work
    if work is None:
        return _unseen(name, watched)
    workers = work.workers[: plan.threads]
    masks = [worker.cpus for worker in workers if worker.cpus is not None]
    if len(masks) < len(workers):
        return Line(name, SKIP, "the kernel does not say which CPUs a thread may use")
    facts = {"cpus": [format_list(mask) for mask in masks]}
    wrong = _misplaced(plan, work, masks, host, runtime)
    if wrong:
        return Line(name, FAIL, wrong, facts)
    shown = ", ".join(format_list(mask) for mask in sorted(set(masks), key=sorted))
    own = len(set(masks)) == len(masks) > 1
    return Line(name, PASS, f"{'each its own: ' if own else ''}{shown}", facts)


def _misplaced(
    plan: Plan, work: Work, masks: list[frozenset[int]], host: Host, runtime: str | None
) -> str | None:
    permitted = plan.cpus or host.allowed
    every = frozenset[int]().union(*masks)
    if every - permitted:
        return f"they may use {format_list(every)}, planned are {format_list(permitted)} only"
    left_out = crowded(masks, host.cores, permitted)
    if left_out:
        return (
            f"{left_out} of {_threads(len(masks))} cannot have a core of its own on CPUs "
            f"{format_list(every)}, though {format_list(permitted)} may be used: look for "
            "taskset, numactl or GOMP_CPU_AFFINITY"
        )
    if _should_bind(plan, work, host, runtime) and any(_spans(mask, host) for mask in masks):
        return "OMP_PROC_BIND=true does not act: a thread may still move from core to core"
    return None


def _should_bind(plan: Plan, work: Work, host: Host, runtime: str | None) -> bool:
    """One thread alone opens no parallel region, in which runtimes bind."""
    return (
        runtime in (GOMP, LLVM)
        and BINDING.items() <= plan.env.items()
        and len(work.workers) > 1
        and host.topology_known
    )


def _spans(mask: frozenset[int], host: Host) -> bool:
    """Whether it has CPUs of several cores."""
    return sum(1 for core in host.cores if core.cpus & mask) > 1


def own_count(plan: Plan, watched: Watched) -> Line:
    """What the engine itself says, which is what it was asked for."""
    name = "engine's n_threads"
    found = _OWN_COUNT.search(watched.log)
    if found is None:
        return Line(name, SKIP, NO_RUN if watched.failed else "the engine does not print it")
    said = {"n_threads": int(found[1]), "n_threads_batch": int(found[2] or found[1])}
    planned = {"n_threads": plan.threads, "n_threads_batch": plan.threads_batch}
    if not found[2]:
        planned["n_threads_batch"] = plan.threads
    if said == planned:
        return Line(name, PASS, _counts(said))
    reason = f"{_counts(said)}, planned are {planned['n_threads']} and {planned['n_threads_batch']}"
    return Line(name, FAIL, reason)


def _counts(said: Mapping[str, int]) -> str:
    return f"{said['n_threads']}, and {said['n_threads_batch']} for prompts"


def output(report: Report, problem: str | None) -> Line:
    """``problem`` is what is wrong with the words of a remembered setting."""
    passed = sum(result.passed for result in report.results)
    if not report.passed:
        return Line(OUTPUT, FAIL, f"the self-test fails: {report.cause}")
    if problem:
        return Line(OUTPUT, FAIL, f"with the remembered setting {problem}")
    return Line(OUTPUT, PASS, f"the self-test's {passed} texts are right")


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


def _threads(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _cpus(count: float) -> str:
    return f"{count:g} CPU{'' if count == 1 else 's'}"


def crowded(
    masks: Sequence[frozenset[int]], cores: Sequence[Core], permitted: frozenset[int]
) -> int:
    """How many threads must share a core although another one is permitted. Threads may use
    the CPUs of their ``masks``; more threads than permitted cores have to share anyway."""
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
    """Finds a core for the thread; whoever has it moves on where he can (Kuhn's algorithm
    for bipartite matching). ``taken`` says which thread has a core."""
    for index, cpus in enumerate(cores):
        if index in tried or not cpus & masks[thread]:
            continue
        tried.add(index)
        if index not in taken or _house(taken[index], masks, cores, taken, tried):
            taken[index] = thread
            return True
    return False
