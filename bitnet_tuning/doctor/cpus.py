"""Checks of threads, affinity, CPU quota, SMT, kinds of cores and NUMA nodes."""

from __future__ import annotations

from bitnet_tuning.console import counted
from bitnet_tuning.doctor.case import BENCHMARK, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.machine.warnings import QUOTA, THROTTLED_SHARE
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.openmp import THREAD_COUNTS, exported, invalid_count, user_binding
from bitnet_tuning.plan.threads import asked_threads, choose_threads, crowding_reason

_OMP_COUNT = THREAD_COUNTS[0]
_MEASURE_THREADS = f"measure how many threads are best: {BENCHMARK}"


def _threads(case: Case) -> Finding:
    # A malformed BITNET_THREADS raises UsageError, which `examine` turns into a finding.
    asked, wanted, computed = asked_threads(None, case.environ), case.wanted_threads, case.computed
    if invalid := invalid_count(case.environ):
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
    count = case.environ.get(_OMP_COUNT)
    if not exported(case.environ) or count in (str(wanted), str(case.computed.setting.threads)):
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
        return unknown(
            f"the {hider} does not show which CPUs share a physical core, so each counts as a core",
            _MEASURE_THREADS,
        )
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
    host, kinds = case.host, case.host.hybrid
    if kinds:
        fast, slow = kinds.performance_cores, kinds.efficiency_cores
        text = f"{fast} performance and {slow} efficiency cores"
        if not (user_binding(case.environ) and case.computed.setting.cpus):
            return good(f"{text}; {case.computed.reasons['cpus']}")
        return warn(
            f"{text}: you bind threads yourself, so they are not placed on the performance cores",
            "unset OMP_PROC_BIND OMP_PLACES GOMP_CPU_AFFINITY KMP_AFFINITY",
        )
    if host.wsl or "hypervisor" in host.isa:
        return unknown(
            "all cores look alike, but a virtual machine may hide that some are efficiency cores",
            _MEASURE_THREADS,
        )
    return good("all cores are of one kind")


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
        f"measure it: {BENCHMARK}; install numactl so that memory can be placed, too",
    )


def _numa_balancing(case: Case) -> Finding | None:
    if case.numa_balancing is None or len(case.host.nodes) < 2:
        return None
    if case.numa_balancing:
        return warn(
            "the kernel moves pages between NUMA nodes automatically, which costs speed",
            "echo 0 | sudo tee /proc/sys/kernel/numa_balancing",
        )
    return good("the kernel leaves pages on their NUMA node")


CHECKS: tuple[Check, ...] = (
    ("threads", _threads, "measured on one CPU: 1 thread 8.6 tokens/s, 2 threads 1.3 tokens/s"),
    ("affinity", _affinity, "sched_getaffinity(2): the CPUs that this process may use"),
    ("CPU quota", _quota, "measured with 1 CPU: 1 thread 18 tokens/s, 2 threads 10.2 tokens/s"),
    ("crowded host", _crowding, "the demo model's speed with one and more threads, just measured"),
    ("SMT", _smt, "kernel: CPU topology; token generation waits for memory, not for arithmetic"),
    ("hybrid cores", _hybrid, "ggml: threads get equal shares of a step and wait for the last"),
    ("NUMA", _numa, "llama.cpp: --numa distribute spreads threads over all nodes"),
    ("NUMA balancing", _numa_balancing, "ggml's own warning: observed to impair performance"),
)
