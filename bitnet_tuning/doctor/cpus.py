"""Checks of threads, affinity, CPU quota, SMT, kinds of cores, NUMA nodes and OpenMP variables."""

from __future__ import annotations

import re

from bitnet_tuning.console import counted
from bitnet_tuning.doctor.case import MEASURE, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.engine.find import GOMP, LLVM, NONE
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.root import format_list, parse_list
from bitnet_tuning.machine.warnings import QUOTA, THROTTLED_SHARE
from bitnet_tuning.plan import openmp
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.threads import asked_threads, choose_threads, crowding_reason

_OMP_COUNT = openmp.THREAD_COUNTS[0]


def _threads(case: Case) -> Finding:
    # A malformed BITNET_THREADS raises UsageError, which `examine` turns into a finding.
    asked, wanted, computed = asked_threads(None, case.environ), case.wanted_threads, case.computed
    if invalid := openmp.invalid_count(case.environ):
        text = f"{_OMP_COUNT}={invalid} is not a positive whole number"
        return bad(f"{text}: OpenMP runtimes ignore it or abort", f"unset {_OMP_COUNT}")
    if asked is None:
        measured = wanted != computed.setting.threads
        reason = f"{wanted}, as measured" if measured else computed.reasons["threads"]
        return _exported(case, wanted) or good(reason)
    variable = asked.by.removeprefix("your ")
    remedy = f"unset {variable}, or set it to {wanted}"
    if asked.number > len(case.host.allowed) or case.host.exceeds_quota(asked.number):
        (warning,) = choose_threads(Request(), case.host, case.environ).warnings
        return bad(warning, remedy)
    if asked.number < wanted:
        worse = bad if 2 * asked.number <= wanted else warn
        threads = counted(asked.number, "thread")
        return worse(f"{variable} asks for {threads}, but {wanted} suit this machine", remedy)
    return good(f"{asked.number}, set by {variable}")


def _exported(case: Case, wanted: int) -> Finding | None:
    """Warn of a count that bitnet-env.sh exported where other limits hold; None if it fits."""
    count, computed = case.environ.get(_OMP_COUNT), case.computed.setting.threads
    if not openmp.exported(case.environ) or count in (str(wanted), str(computed)):
        return None
    return warn(
        f"bitnet-env.sh exported {count} as number of threads, but {wanted} suit this machine: "
        "bitnet-tuning computes the number anew, other programs obey the exported one",
        "source bitnet-env.sh again in this shell",
    )


def _affinity(case: Case) -> Finding:
    online, allowed = case.host.online, case.host.allowed
    if allowed == online:
        return good(f"all online CPUs may be used ({len(online)})")
    return warn(
        f"{len(allowed)} of {len(online)} online CPUs may be used: {format_list(allowed)}",
        f"allow all CPUs in this shell: taskset -cp {format_list(online)} $$; for a container: "
        f"docker run --cpuset-cpus {format_list(online)}",
    )


def _quota(case: Case) -> Finding:
    host, warning = case.host, case.warning(QUOTA)
    if warning:
        levels, text = case.conditions.quota_throttling, warning.cause
        worst = max(levels, key=lambda level: level.throttled, default=None)
        if worst and worst.throttled > THROTTLED_SHARE * worst.periods:
            text += f" (so far it did in {worst.throttled} of {worst.periods} periods)"
        return warn(text, warning.remedy)
    if host.quota is None:
        return good("no CPU quota")
    cores = counted(len(host.allowed_cores), "physical core")
    return good(f"the quota of {counted(host.quota, 'CPU')} is enough for {cores}")


def _crowding(case: Case) -> Finding | None:
    found = case.host.crowded
    return found and warn(
        f"{crowding_reason(found)}: {counted(case.host.usable_cores, 'thread')} at most will run",
        "give the virtual machine only as many CPUs as its host can run at once, or move it to a "
        "host that is less busy, and run this check again",
    )


def _smt(case: Case) -> Finding:
    host = case.host
    cores = len(host.allowed_cores)
    if host.cores_hidden or not host.topology_known:
        hider = "hypervisor" if host.cores_hidden else "kernel"
        text = f"the {hider} does not show which CPUs share a physical core"
        if case.profile:
            return good(f"{text}, but a tuning measured which threads are fastest")
        advice = f"measure how many threads are best: {MEASURE}"
        return unknown(f"{text}, so each counts as a core", advice)
    try:
        asked = asked_threads(None, case.environ)
    except UsageError:  # the check of threads reports it
        asked = None
    if asked and cores < asked.number <= len(host.allowed):
        return warn(
            f"{asked.number} threads share {cores} physical cores, and a second thread on a core "
            "gains nothing",
            f"unset {asked.by.removeprefix('your ')}, or set it to {cores}",
        )
    if host.threads_per_core == 1:
        return good("every physical core has one CPU")
    return good(f"up to {host.threads_per_core} CPUs share a physical core, which gets one thread")


def _hybrid(case: Case) -> Finding:
    if kinds := case.host.hybrid:
        fast, slow = kinds.performance_cores, kinds.efficiency_cores
        text = f"{fast} performance and {slow} efficiency cores"
        if not (openmp.user_binding(case.environ) and case.computed.setting.cpus):
            return good(f"{text}; {case.computed.reasons['cpus']}")
        what = f"{text}: you bind threads yourself, so they are not placed on the performance cores"
        return warn(what, "unset OMP_PROC_BIND OMP_PLACES GOMP_CPU_AFFINITY KMP_AFFINITY")
    return good("all cores look alike")


def _numa(case: Case) -> Finding:
    nodes = [node for node in case.host.nodes if node.cpus & case.host.allowed]
    if len(nodes) < 2:
        return good("one NUMA node has all CPUs that may be used")
    if profile := case.profile:
        numa = profile.setting and profile.setting.numa
        found = f"--numa {numa} was measured as best" if numa else "no --numa setting was faster"
        return good(f"{len(nodes)} NUMA nodes; {found}")
    return warn(
        f"the CPUs belong to {len(nodes)} NUMA nodes: a run stays on one node if it fits there, "
        "but whether that is fastest here was not measured",
        f"measure it: {MEASURE}; install numactl so that memory can be placed, too",
    )


def _numa_balancing(case: Case) -> Finding | None:
    if case.numa_balancing is None or len(case.host.nodes) < 2:
        return None
    if case.numa_balancing:
        text = "the kernel moves pages between NUMA nodes automatically, which costs speed"
        return warn(text, "echo 0 | sudo tee /proc/sys/kernel/numa_balancing")
    return good("the kernel leaves pages on their NUMA node")


_PREFIXES = ("OMP_", "GOMP_", "KMP_")
_NOT_READ = {GOMP: ("KMP_",), LLVM: ("GOMP_SPINCOUNT",), NONE: _PREFIXES}
"""Prefixes of the variables that each OpenMP runtime does not read."""

_ZERO = re.compile(r"0+(ms|us|s)?", re.IGNORECASE | re.ASCII)


def _reads(case: Case, name: str) -> bool:
    """Return whether the engine's runtime reads the variable; an unknown one is assumed to."""
    runtime = case.known_engine.openmp if case.known_engine else None
    return not name.startswith(_NOT_READ.get(runtime or "", ()))


def _value(case: Case, name: str) -> str:
    """Return the variable's value; empty if it is unset or the engine does not read it."""
    return case.environ.get(name, "").strip() if _reads(case, name) else ""


def _waiting(case: Case) -> Finding:
    spinning = ("KMP_BLOCKTIME", "GOMP_SPINCOUNT")
    names = [name for name in spinning if _ZERO.fullmatch(_value(case, name))]
    if _value(case, "OMP_WAIT_POLICY").lower() == "passive":
        names.insert(0, "OMP_WAIT_POLICY")
    if not names:
        return good("threads stay awake while they wait for each other")
    shown = ", ".join(f"{name}={_value(case, name)}" for name in names)
    text = f"{shown} makes threads sleep whenever they wait for each other"
    if case.host.quota_binds:
        remedy = f"measure it, with and without the variable: {MEASURE}"
        return unknown(f"{text}, which may help under a CPU quota", remedy)
    return bad(text, f"unset {' '.join(names)}")


def _limit(case: Case) -> Finding:
    text, limit = _value(case, "OMP_THREAD_LIMIT"), openmp.thread_limit(None, case.environ)
    wanted = max(case.wanted_threads, case.computed.setting.threads_batch)
    if not text:
        return good("OMP_THREAD_LIMIT is not set")
    if limit is None:
        return unknown(f"OMP_THREAD_LIMIT={text} is not a number", "unset OMP_THREAD_LIMIT")
    if limit < wanted:
        text = f"OMP_THREAD_LIMIT={text} overrides even -t; {wanted} threads suit this machine"
        return bad(text, "unset OMP_THREAD_LIMIT")
    return good(f"OMP_THREAD_LIMIT={text} allows the {wanted} threads that suit this machine")


def _dynamic(case: Case) -> Finding:
    if _value(case, "OMP_DYNAMIC").lower() not in ("true", "1", "yes"):
        return good("OpenMP does not change the number of threads")
    what = "OMP_DYNAMIC lets OpenMP run fewer threads than -t says while the machine is busy"
    return bad(what, "unset OMP_DYNAMIC")


def _binding(case: Case) -> Finding:
    bound = _value(case, "OMP_PROC_BIND").lower()
    if bound.split(",")[0] in ("master", "primary"):
        what = f"OMP_PROC_BIND={bound} makes all threads share the CPUs of the first one"
        return bad(what, "unset OMP_PROC_BIND")
    listed, threads = _value(case, "GOMP_CPU_AFFINITY"), case.wanted_threads
    try:
        cpus = parse_list(listed.replace(" ", ","))  # such as 0 3 4-7
    except ValueError:
        cpus = frozenset()
    if cpus and len(cpus) < threads:
        named = f"names {counted(len(cpus), 'CPU')} for {threads} threads"
        return bad(f"GOMP_CPU_AFFINITY={listed} {named}", "unset GOMP_CPU_AFFINITY")
    if yours := [name for name in openmp.BINDING_BY_USER if openmp.user_set(case.environ, name)]:
        return good(f"you bind threads yourself: {', '.join(yours)}")
    return good("you set no variable that binds threads")


def _ignored(case: Case) -> Finding | None:
    runtime = case.known_engine.openmp if case.known_engine else None
    if runtime is None:
        return None
    names = [
        name
        for name in sorted(case.environ)
        if name.startswith(_PREFIXES)
        and not _reads(case, name)
        and openmp.user_set(case.environ, name)
        and name != "OMP_NUM_THREADS"  # the launchers read it themselves
    ]
    if not names:
        return good("the engine reads all OpenMP variables that are set")
    reader = "the engine, built without OpenMP," if runtime == NONE else runtime
    return warn(f"{reader} does not read {', '.join(names)}", f"unset {' '.join(names)}")


CHECKS: tuple[Check, ...] = (
    ("threads", _threads, "measured on one CPU: 1 thread 8.6 tokens/s, 2 threads 1.3 tokens/s"),
    ("affinity", _affinity, "sched_getaffinity(2): the CPUs that this process may use"),
    ("CPU quota", _quota, "measured with 1 CPU: 1 thread 18 tokens/s, 2 threads 10.2 tokens/s"),
    ("crowded host", _crowding, "the demo model's speed with one and more threads, just measured"),
    ("SMT", _smt, "kernel: CPU topology; token generation waits for memory, not for arithmetic"),
    ("hybrid cores", _hybrid, "ggml: threads get equal shares of a step and wait for the last"),
    ("NUMA", _numa, "llama.cpp: --numa distribute spreads threads over all nodes"),
    ("NUMA balancing", _numa_balancing, "ggml's own warning: observed to impair performance"),
    ("waiting", _waiting, "measured with libomp: 24.7 tokens/s, with KMP_BLOCKTIME=0 8.8 tokens/s"),
    ("thread limit", _limit, "OpenMP specification, OMP_THREAD_LIMIT; measured with ggml"),
    ("dynamic threads", _dynamic, "OpenMP specification, OMP_DYNAMIC; measured with ggml"),
    ("binding", _binding, "OpenMP specification; measured: on one CPU, 1 s became more than 40 s"),
    ("ignored variables", _ignored, "the manuals of libgomp and of LLVM's OpenMP runtime"),
)
