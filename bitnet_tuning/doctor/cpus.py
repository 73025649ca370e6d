"""Threads against cores, affinity, quota, SMT, kinds of cores, NUMA nodes; pure."""

from __future__ import annotations

from bitnet_tuning.console import counted
from bitnet_tuning.doctor.case import BENCHMARK, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.machine.warnings import QUOTA, THROTTLED_SHARE
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.openmp import THREAD_COUNTS, binds_itself, exported
from bitnet_tuning.plan.threads import Asked, asked_threads, choose_threads

_MEASURE_THREADS = f"{BENCHMARK} measures how many threads are best"


def _threads(case: Case) -> Finding:
    """Raise UsageError for a senseless BITNET_THREADS."""
    asked, wanted, computed = asked_threads(None, case.environ), case.wanted_threads, case.computed
    if asked is None:
        measured = wanted != computed.setting.threads
        reason = f"{wanted}, as measured" if measured else computed.reasons["threads"]
        return _exported(case, wanted) or good(reason)
    variable, quota = _variable(asked), case.host.quota
    remedy = f"unset {variable}, or set it to {wanted}"
    if asked.number > len(case.host.allowed) or (quota is not None and asked.number > quota):
        (warning,) = choose_threads(Request(), case.host, case.environ).warnings
        return bad(warning, remedy)
    if asked.number < wanted:
        worse = bad if 2 * asked.number <= wanted else warn
        threads = counted(asked.number, "thread")
        return worse(f"{variable} asks for {threads}, {wanted} suit this machine", remedy)
    return good(f"{asked.number}, as {variable} says")


def _variable(asked: Asked) -> str:
    return asked.by.removeprefix("your ")


def _exported(case: Case, wanted: int) -> Finding | None:
    """Warn of what bitnet-env.sh exported elsewhere and does not fit here."""
    count = case.environ.get(THREAD_COUNTS[0])
    if not exported(case.environ) or count in (str(wanted), str(case.computed.setting.threads)):
        return None
    return warn(
        f"bitnet-env.sh exported {count} threads, {wanted} suit this machine: these scripts "
        "compute the number again, other programs obey it",
        "source bitnet-env.sh again in this shell",
    )


def _affinity(case: Case) -> Finding:
    online, allowed = case.host.online, case.host.allowed
    if allowed == online:
        return good(f"all {len(online)} CPUs that are online may be used")
    return warn(
        f"only the CPUs {format_list(allowed)} may be used, {len(allowed)} of {len(online)}",
        f"taskset -cp {format_list(online)} $$ widens this shell; for a container: "
        "docker run --cpuset-cpus",
    )


def _quota(case: Case) -> Finding:
    host, warning = case.host, case.warning(QUOTA)
    if warning:
        return warn(f"{warning.cause}{_throttled(case)}", warning.remedy)
    if host.quota is None:
        return good("no CPU quota")
    return good(f"the quota of {host.quota:g} CPUs leaves all {len(host.allowed_cores)} cores")


def _throttled(case: Case) -> str:
    """Return how often the quota stopped threads since the control group was made."""
    worst = max(case.conditions.quota_throttling, key=lambda level: level.throttled, default=None)
    if worst is None or worst.throttled <= THROTTLED_SHARE * worst.periods:
        return ""
    return f" (so far in {worst.throttled} of {worst.periods} periods)"


def _smt(case: Case) -> Finding:
    host = case.host
    cores = len(host.allowed_cores)
    if not host.topology_known:
        return unknown(
            "the kernel does not say which CPUs share a core, so each counts as one",
            _MEASURE_THREADS,
        )
    try:
        asked = asked_threads(None, case.environ)
    except UsageError:  # reported by the check of threads
        asked = None
    if asked and cores < asked.number <= len(host.allowed):
        return warn(
            f"{asked.number} threads share {cores} cores, and a second thread on a core gains "
            "nothing",
            f"unset {_variable(asked)}, or set it to {cores}",
        )
    if host.threads_per_core == 1:
        return good("every core has one CPU")
    return good(f"up to {host.threads_per_core} CPUs share a core; one thread per core is used")


def _hybrid(case: Case) -> Finding:
    host, kinds = case.host, case.host.hybrid
    if kinds:
        text = (
            f"{kinds.performance_cores} performance and {kinds.efficiency_cores} efficiency cores"
        )
        if not (binds_itself(case.environ) and case.computed.setting.cpus):
            return good(f"{text}; {case.computed.reasons['cpus']}")
        return warn(
            f"{text}: your own binding keeps threads from being put on fast cores",
            "unset OMP_PROC_BIND OMP_PLACES GOMP_CPU_AFFINITY KMP_AFFINITY",
        )
    if host.wsl or "hypervisor" in host.isa:
        return unknown(
            "all cores look alike, but a virtual machine hides performance and efficiency cores",
            _MEASURE_THREADS,
        )
    return good("all cores are of one kind")


def _numa(case: Case) -> Finding:
    nodes = [node for node in case.host.nodes if node.cpus & case.host.allowed]
    if len(nodes) < 2:
        return good("one NUMA node has all CPUs that may be used")
    profile = case.known_profile
    if profile and profile.setting and profile.setting.numa:
        return good(f"{len(nodes)} NUMA nodes; --numa {profile.setting.numa} was measured as best")
    if profile:
        return good(f"{len(nodes)} NUMA nodes; no --numa setting was measured as faster")
    return warn(
        f"the CPUs belong to {len(nodes)} NUMA nodes: runs stay on one where they fit, but whether "
        "that is best here was not measured",
        f"{BENCHMARK} tries the other ways; numactl, where installed, places memory as well",
    )


def _numa_balancing(case: Case) -> Finding | None:
    if case.numa_balancing is None or len(case.host.nodes) < 2:
        return None
    if case.numa_balancing:
        return warn(
            "the kernel moves pages between NUMA nodes by itself, which costs speed",
            "echo 0 | sudo tee /proc/sys/kernel/numa_balancing",
        )
    return good("the kernel leaves pages where they are")


CHECKS: tuple[Check, ...] = (
    ("threads", _threads, "measured elsewhere, on one CPU: 2 threads 1.3 tokens/s, 1 thread 8.6"),
    ("affinity", _affinity, "sched_setaffinity(2): the mask that this process has"),
    ("CPU quota", _quota, "measured elsewhere, quota of 1: 2 threads 10.2 tokens/s, 1 thread 18"),
    ("SMT", _smt, "kernel: CPU topology; generation is bound by memory, not by arithmetic"),
    ("hybrid cores", _hybrid, "ggml: every thread gets the same share and waits for the last"),
    ("NUMA", _numa, "llama.cpp: --numa distribute spreads threads over all nodes"),
    ("NUMA balancing", _numa_balancing, "ggml's own warning: observed to impair performance"),
)
