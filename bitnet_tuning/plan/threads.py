"""How many threads, and on which CPUs; pure."""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_tuning.console import counted
from bitnet_tuning.errors import UsageError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.facts import Plan
from bitnet_tuning.plan.openmp import binds_itself, user_threads
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.plan.facts import Request


MOST_THREADS = 12
"""Default upper bound for token generation. It reads every weight once per token, so
memory bandwidth is spent long before cores are; more need --max-threads."""

WORTHWHILE = 1.1
"""Gain in expected speed that slower cores must bring before they are used."""


class Asked(NamedTuple):
    """A thread count that somebody set, and who."""

    number: int
    by: str


def choose_threads(request: Request, host: Host, environ: Mapping[str, str]) -> Plan:
    """Return a plan with the threads and their CPUs decided, and nothing else.

    Precedence: flag, BITNET_THREADS, the user's OMP_NUM_THREADS, computed. Raise UsageError
    for a BITNET_THREADS that is no positive number.
    """
    asked, batch = asked_threads(request.threads, environ), request.threads_batch
    if asked:
        count = asked.number
        reasons = {
            "threads": f"{count}, as {asked.by} says",
            "threads_batch": "as many as for generation, which you set",
            "cpus": "not bound: the number of threads is yours",
        }
        plan = Plan(Setting(count, count), reasons, _oversubscribed(count, host, asked.by))
    else:
        plan = _computed(host, environ, request.max_threads or MOST_THREADS)
    if not batch:
        return plan
    setting = plan.setting._replace(threads_batch=batch)
    reasons = {"threads_batch": f"{batch}, as --threads-batch says"}
    if setting.cpus is not None and batch > plan.setting.threads_batch:
        setting = setting._replace(cpus=None)
        reasons["cpus"] = "not bound: --threads-batch asks for more cores"
    return plan.updated(setting, reasons, _oversubscribed(batch, host, "--threads-batch"))


def asked_threads(threads: int | None, environ: Mapping[str, str]) -> Asked | None:
    """Return the thread count that somebody set; None where it is to be computed. Raise
    UsageError for a senseless BITNET_THREADS."""
    if threads:
        return Asked(threads, "-t")
    text = environ.get("BITNET_THREADS", "").strip()
    if text.strip("0"):
        if not text.isdecimal() or len(text) > 9 or int(text) > MOST_THREADS_ENGINE:
            raise UsageError(
                f"BITNET_THREADS is {text!r}, no number from 0 to {MOST_THREADS_ENGINE}",
                "correct or unset it",
            )
        return Asked(int(text), "BITNET_THREADS")
    users = user_threads(environ)
    return Asked(min(users, MOST_THREADS_ENGINE), "your OMP_NUM_THREADS") if users else None


def _oversubscribed(count: int, host: Host, by: str) -> tuple[str, ...]:
    """Warn where ``count`` threads cannot all run at once, or share cores."""
    cpus = len(host.allowed)
    if host.quota is not None and count > host.quota:
        limit = f"the quota of {counted(host.quota, 'CPU')}"
    elif count > cpus:
        limit = f"the {cpus} CPUs that this process may use"
    elif count > host.usable_cores:
        limit = f"the {host.usable_cores} physical cores that this process may use"
    else:
        return ()
    return (
        f"{by} asks for {count} threads, more than {limit}: "
        "threads wait for each other and generation slows down",
    )


def _computed(host: Host, environ: Mapping[str, str], most: int) -> Plan:
    usable = host.usable_cores
    speeds = sorted((core.speed for core in host.allowed_cores), reverse=True)
    count = best_count(speeds, min(usable, most))
    which = f"all {usable} usable cores" if usable > 1 else "the only usable core"
    reasons = {
        "threads": _why(host, count, most),
        "threads_batch": f"{which}: a prompt is bound by arithmetic, not by memory",
        "cpus": "not bound to CPUs here: all cores are of one kind",
    }
    plan = Plan(Setting(count, usable), reasons)
    if host.hybrid is None:
        return plan
    # One mask binds the whole process, so the prompt's threads stay with those that generate:
    # on a few chips a prompt would gain from the other cores, but an answer lasts longer.
    chosen = [core for core in host.allowed_cores if core.speed >= speeds[count - 1]]
    prompt = min(usable, len(chosen))
    setting = plan.setting._replace(threads_batch=prompt)
    if len(chosen) == len(host.allowed_cores):
        why = "not bound: every core is used"
    elif binds_itself(environ):
        why = "not bound: you chose places for the threads yourself"
    else:
        why = f"bound to the {len(chosen)} fastest cores, away from slower ones"
        cpus = frozenset(cpu for core in chosen for cpu in core.cpus) & host.allowed
        setting = setting._replace(cpus=cpus)
    kinds = f"{prompt}: all usable cores of the kinds that generate"
    return plan.updated(setting, {"threads_batch": kinds, "cpus": why})


def best_count(speeds: list[float], most: int) -> int:
    """Return how many of the fastest cores to use, at least 1.

    ggml gives every thread the same share of a step and waits for the last, so k
    cores do as much as k of the slowest among them: k * speeds[k - 1]. Fewer
    threads win unless more gain clearly. ``speeds`` descend.
    """
    best = 1
    for count in range(2, min(most, len(speeds)) + 1):
        gain = count * speeds[count - 1] / (best * speeds[best - 1])
        if gain >= (WORTHWHILE if speeds[count - 1] < speeds[best - 1] else 1.0):
            best = count
    return best


def _why(host: Host, count: int, most: int) -> str:
    cores = len(host.allowed_cores)
    parts = [f"{cores} of {len(host.cores)} physical cores may be used"]
    if not host.topology_known:
        parts = [f"{cores} CPUs may be used; which of them share a core is not known"]
    elif host.threads_per_core > 1:
        parts.append("a second thread on a core gains nothing")
    if host.quota is not None and host.quota_binds:
        parts.append(f"a quota of {counted(host.quota, 'CPU')} binds")
    if count == most < host.usable_cores:
        parts.append(f"at most {most} (--max-threads)")
    if host.hybrid is not None:
        parts.append(_why_hybrid(host, count))
    return f"{count}: {'; '.join(parts)}"


def _why_hybrid(host: Host, count: int) -> str:
    fast = sum(1 for core in host.allowed_cores if core.speed == 1.0)
    slow = len(host.allowed_cores) - fast
    if not fast or not slow:
        return "all of them are of one kind"
    kinds = f"{fast} performance and {slow} efficiency cores"
    if count <= fast:
        return f"of {kinds} only fast ones: every step waits for the slowest thread"
    return f"of {kinds} both: so few fast ones are beaten by all together"
