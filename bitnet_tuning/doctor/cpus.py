"""Threads against cores, affinity, quota, SMT, kinds of cores, NUMA nodes; pure."""

from __future__ import annotations

from bitnet_tuning.doctor.case import Case, Knob, Verdict, bad, good, unknown, warn
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.machine.warnings import QUOTA, THROTTLED_SHARE
from bitnet_tuning.plan.openmp import THREAD_COUNTS, binds_itself, exported
from bitnet_tuning.plan.threads import Asked, asked_threads, choose_threads

BENCHMARK = "python3 benchmark_optimized.py"


def _threads(case: Case) -> Verdict:
    """Raises UsageError for a senseless BITNET_THREADS."""
    asked = asked_threads(None, case.environ)
    wanted = case.wanted_threads
    if asked is None:
        return _exported(case, wanted) or good(_reason(case, wanted))
    variable = asked.by.removeprefix("your ")
    text = f"{variable} asks for {_threads_of(asked.number)}, {wanted} suit this machine"
    remedy = f"unset {variable}, or set it to {wanted}"
    if _exceeds(asked, case):
        (warning,) = choose_threads(case.host, case.environ, None, None, None).warnings
        return bad(warning, remedy)
    if asked.number < wanted:
        return (bad if 2 * asked.number <= wanted else warn)(text, remedy)
    return good(f"{asked.number}, as {variable} says")


def _threads_of(count: int) -> str:
    return f"{count} thread{'' if count == 1 else 's'}"


def _sensible(case: Case) -> Asked | None:
    """Whatever else is asked for is for one check to report."""
    try:
        return asked_threads(None, case.environ)
    except UsageError:
        return None


def _exceeds(asked: Asked, case: Case) -> bool:
    """Whether not all threads can run at once."""
    quota = case.host.quota
    return asked.number > len(case.host.allowed) or (quota is not None and asked.number > quota)


def _reason(case: Case, wanted: int) -> str:
    computed = case.computed
    return computed.reason if wanted == computed.generation else f"{wanted}, as was measured"


def _exported(case: Case, wanted: int) -> Verdict | None:
    """What bitnet-env.sh exported elsewhere does not fit here."""
    count = case.environ.get(THREAD_COUNTS[0])
    if not exported(case.environ) or count in (str(wanted), str(case.computed.generation)):
        return None
    return warn(
        f"bitnet-env.sh exported {count} threads, {wanted} suit this machine: these scripts "
        "compute anew, other programs obey it",
        "source bitnet-env.sh again in this shell",
    )


def _affinity(case: Case) -> Verdict:
    online, allowed = case.host.online, case.host.allowed
    if allowed == online:
        return good(f"all {len(online)} CPUs that are online may be used")
    return warn(
        f"only the CPUs {format_list(allowed)} may be used, {len(allowed)} of {len(online)}",
        f"taskset -cp {format_list(online)} $$ widens this shell; for a container: "
        "docker run --cpuset-cpus",
    )


def _quota(case: Case) -> Verdict:
    host = case.host
    said = case.warning(QUOTA)
    if said:
        return warn(f"{said.cause}{_throttled(case)}", said.remedy)
    if host.quota is None:
        return good("no CPU quota")
    return good(f"the quota of {host.quota:g} CPUs leaves all {len(host.allowed_cores)} cores")


def _throttled(case: Case) -> str:
    """How often, since the control group was made."""
    worst = max(case.conditions.quota_throttling, key=lambda level: level.throttled, default=None)
    if worst is None or worst.throttled <= THROTTLED_SHARE * worst.periods:
        return ""
    return f" (so far in {worst.throttled} of {worst.periods} periods)"


def _smt(case: Case) -> Verdict:
    host = case.host
    cores, cpus = len(host.allowed_cores), len(host.allowed)
    if not host.topology_known:
        return unknown(
            "the kernel does not say which CPUs share a core, so each counts as one",
            f"{BENCHMARK} measures how many threads are best",
        )
    asked = _sensible(case)
    if asked and cores < asked.number <= cpus:
        return warn(
            f"{asked.number} threads share {cores} cores, and a second thread on a core gains "
            "nothing",
            f"unset {asked.by.removeprefix('your ')}, or set it to {cores}",
        )
    if host.threads_per_core == 1:
        return good("every core has one CPU")
    return good(f"up to {host.threads_per_core} CPUs share a core; one thread per core is used")


def _hybrid(case: Case) -> Verdict:
    kinds = case.host.hybrid
    if kinds is None:
        return _one_kind(case)
    text = f"{kinds.performance_cores} performance and {kinds.efficiency_cores} efficiency cores"
    if binds_itself(case.environ) and case.computed.cpus:
        return warn(
            f"{text}: your own binding keeps threads from being put on fast cores",
            "unset OMP_PROC_BIND OMP_PLACES GOMP_CPU_AFFINITY KMP_AFFINITY",
        )
    return good(f"{text}; {case.computed.cpus_reason}")


def _one_kind(case: Case) -> Verdict:
    if case.host.wsl or "hypervisor" in case.host.isa:
        return unknown(
            "all cores look alike, but a virtual machine hides performance and efficiency cores",
            f"{BENCHMARK} measures how many threads are best",
        )
    return good("all cores are of one kind")


def _numa(case: Case) -> Verdict:
    nodes = [node for node in case.host.nodes if node.cpus & case.host.allowed]
    if len(nodes) < 2:
        return good("one NUMA node has all CPUs that may be used")
    profile = case.known_profile
    numa = profile.setting.numa if profile and profile.setting else None
    if numa:
        return good(f"{len(nodes)} NUMA nodes; --numa {numa} was measured as best")
    if profile:
        return good(f"{len(nodes)} NUMA nodes; nothing faster was measured than no --numa")
    return warn(
        f"the CPUs belong to {len(nodes)} NUMA nodes: runs stay on one where they fit, but whether "
        "that is best here was not measured",
        f"{BENCHMARK} tries the other ways; numactl, where installed, places memory as well",
    )


def _numa_balancing(case: Case) -> Verdict | None:
    """Only where there is more than one node to move pages between."""
    if case.numa_balancing is None or len(case.host.nodes) < 2:
        return None
    if case.numa_balancing:
        return warn(
            "the kernel moves pages between NUMA nodes by itself, which costs speed",
            "echo 0 | sudo tee /proc/sys/kernel/numa_balancing",
        )
    return good("the kernel leaves pages where they are")


KNOBS = (
    Knob(
        "threads",
        _threads,
        "measured: 2 threads on one CPU 1.3 tokens/s, 1 thread 8.6; fewer than cores wait "
        "for arithmetic",
    ),
    Knob("affinity", _affinity, "sched_setaffinity(2): the mask that this process has"),
    Knob(
        "CPU quota",
        _quota,
        "measured: 2 threads in a quota of one CPU 10.2 tokens/s, 1 thread 18.0",
    ),
    Knob("SMT", _smt, "kernel: CPU topology; generation is bound by memory, not by arithmetic"),
    Knob("hybrid cores", _hybrid, "ggml: every thread gets the same share and waits for the last"),
    Knob("NUMA", _numa, "llama.cpp: --numa distribute spreads threads over all nodes"),
    Knob(
        "NUMA balancing",
        _numa_balancing,
        "ggml's own warning: observed to impair performance",
    ),
)
