"""Choose the number of threads, and on hybrid CPUs the cores that they run on."""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_tuning.console import command, counted
from bitnet_tuning.errors import UsageError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.openmp import THREAD_COUNTS, user_binding, user_threads, without_binding
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.machine.host import Crowding, Host
    from bitnet_tuning.machine.load import Neighbours

MOST_THREADS = 12
"""Default limit on threads for token generation. Each token reads all weights from memory, so the
memory's bandwidth limits the speed long before the cores of a large machine do."""

WORTHWHILE = 1.1
"""Factor by which slower cores must raise the expected speed before they are used."""

SHARED = 0.6
"""Speed of a thread beside a busy program on the other logical CPU of its core, relative to one
that has the core alone: two threads get 1.2 to 1.3 times the work of one done (Marr and others
2002, "Hyper-Threading Technology Architecture and Microarchitecture")."""

_MOST_SHARED = 0.75
"""Share of a CPU that others may use if a thread is to run there as well. Beside a program that
computes for 50 of 100 ms, two threads made 10 tokens/s and one 8.3; for all 100, 5.3 and 8.3."""

NOT_BOUND = "not bound to particular CPUs"
BY_OPENMP = "all (OpenMP binds each thread to a core)"
"""Beginnings of the reason if the plan chooses no CPUs; its variables may bind the threads."""

COSTLY = 2
"""Factor by which a limit or a variable of OpenMP must lower the number of threads for a run to
warn. bitnet.cpp made 21 tokens/s with 1 thread and 34 with 2, i2_s in the 2B shape on 2 CPUs."""

_OMP = "your OMP_NUM_THREADS"

ENGINE_THREADS = "LLAMA_ARG_THREADS"
"""llama.cpp's own variable for -t. Engines let it decide over OMP_NUM_THREADS, and so do plans."""


class Asked(NamedTuple):
    """A thread count that the user set, and with which flag or variable."""

    number: int
    by: str
    """``-t``, ``BITNET_THREADS``, ``LLAMA_ARG_THREADS`` or ``your OMP_NUM_THREADS``."""


def choose_threads(
    request: Request, host: Host, environ: Mapping[str, str], limit: int | None = None
) -> Plan:
    """Return a plan in which only the threads and their CPUs are decided. Precedence: flag,
    BITNET_THREADS, LLAMA_ARG_THREADS, the user's OMP_NUM_THREADS, computed. ``limit`` is
    OMP_THREAD_LIMIT. Raise UsageError as ``asked_threads`` does."""
    asked, batch = asked_threads(request.threads, environ), request.threads_batch
    if asked:
        count = asked.number
        reasons = {
            "threads": f"{count}: set by {asked.by}",
            "threads_batch": f"{count}: as for generation",
            "cpus": f"{NOT_BOUND}: they are chosen only together with the number of threads",
        }
        plan = Plan(Setting(count, count), reasons, _oversubscribed(count, host, asked.by))
    else:
        most = request.max_threads or MOST_THREADS
        plan = _computed(host, environ, min(most, limit or most), limit)
    if limit or (asked and asked.by == _OMP):
        plan = plan.updated(plan.setting, {}, _costly(asked, host, limit))
    if not batch:
        return plan
    setting = plan.setting._replace(threads_batch=batch)
    reasons = {"threads_batch": f"{batch}: set by --threads-batch"}
    if setting.cpus is not None and batch > plan.setting.threads_batch:
        setting = setting._replace(cpus=None)
        reasons["cpus"] = f"{NOT_BOUND}: --threads-batch asks for more threads than fast cores"
    return plan.updated(setting, reasons, _oversubscribed(batch, host, "--threads-batch"))


def _costly(asked: Asked | None, host: Host, limit: int | None) -> tuple[str, ...]:
    """Warn if OMP_THREAD_LIMIT, or an OMP_NUM_THREADS such as frameworks set, costs much speed."""
    named = {"OMP_THREAD_LIMIT": limit}
    if asked and asked.by == _OMP:
        named[THREAD_COUNTS[0]], asked = asked.number, None
    wanted = asked.number if asked else _computed(host, {}, MOST_THREADS).setting.threads
    return tuple(
        f"{name}={number} allows {counted(number, 'thread')} where {wanted} would run: generation "
        f"may take up to {wanted / number:.3g} times as long; `unset {name}` lifts that"
        for name, number in named.items()
        if number and COSTLY * number <= wanted
    )


def free_cores(host: Host, neighbours: Neighbours) -> int:
    """Return how many threads can run without waiting for other programs, at least 1."""
    cpus, cores = len(host.allowed), host.cores_in(None)
    free = cores - neighbours.cpus
    beside = min(cores, cpus - neighbours.cpus)
    if SHARED * beside > free:
        free = beside
    if host.quota is not None:
        free = min(free, host.quota - neighbours.group)
    return max(1, int(free + _MOST_SHARED))


def make_way(
    plan: Plan, request: Request, host: Host, neighbours: Neighbours, environ: Mapping[str, str]
) -> Plan:
    """Return the plan with threads only for the CPUs that other programs leave free, and not bound
    to cores, one of which they may be using. Thread counts that the user set stay as they are."""
    # A thread that waits for a CPU holds up all others at every step: 2 threads on 2 CPUs made 15
    # tokens/s beside one busy program, 1 thread 21.
    setting, free = plan.setting, free_cores(host, neighbours)
    if max(setting.threads, setting.threads_batch) <= free:
        return plan
    number = max(1, round(max(neighbours.cpus, neighbours.group)))
    busy = f"{number} of {counted(len(host.allowed), 'CPU')} {'is' if number == 1 else 'are'} busy"
    busy += " with other programs"
    busy += f" ({', '.join(neighbours.programs)})" if neighbours.programs else ""
    if asked_threads(request.threads, environ):
        # Two threads on two CPUs, one of them busy, made 6.0 tokens/s bound to cores and 0.2 not,
        # with libgomp; with LLVM's OpenMP it made no difference.
        text = f"{busy}: some of the {setting.threads} threads that you set hold up the others"
        return plan.updated(setting, {}, (text,) if setting.threads > free else ())
    threads = min(setting.threads, free)
    batch = request.threads_batch or min(setting.threads_batch, free)
    variables = without_binding(setting.variables, environ)
    variables |= dict.fromkeys(variables.keys() & set(THREAD_COUNTS), str(threads))
    changed = setting._replace(threads=threads, threads_batch=batch)
    changed = changed._replace(env=tuple(sorted(variables.items())))
    warnings, reasons = [], {}
    if threads < setting.threads:
        used = f"using {counted(threads, 'thread')} instead of {setting.threads}"
        warnings.append(f"{busy}: {used} (-t {setting.threads} insists)")
        reasons["threads"] = f"{threads}: {busy}; else {plan.reasons['threads']}"
    if batch < setting.threads_batch:
        reasons["threads_batch"] = f"{batch}: other programs leave no more CPUs free"
    if variables.keys() != setting.variables.keys():
        fewer = f"; but for {counted(threads, 'thread')}, not bound: a core may be busy"
        reasons["env"] = plan.reasons["env"] + fewer
    return plan.updated(changed, reasons, warnings)


def asked_threads(threads: int | None, environ: Mapping[str, str]) -> Asked | None:
    """Return the thread count that the user set with a flag of value ``threads`` or a variable, or
    None. Raise UsageError if the variable that decides is no number up to MOST_THREADS_ENGINE."""
    if threads:
        return Asked(threads, "-t")
    for name in ("BITNET_THREADS", ENGINE_THREADS):
        text = environ.get(name, "").strip()
        if not text.strip("0") or (name, text) == (ENGINE_THREADS, "-1"):  # llama.cpp's default
            continue
        if not text.isdecimal() or len(text) > 9 or int(text) > MOST_THREADS_ENGINE:
            must = f"must be a whole number from 0 to {MOST_THREADS_ENGINE}"
            remedy = f"set it to such a number (0 chooses automatically), or `unset {name}`"
            raise UsageError(f"{name} is {text!r}: it {must}", remedy)
        return Asked(int(text), name)
    users = user_threads(environ)
    return Asked(min(users, MOST_THREADS_ENGINE), _OMP) if users else None


def _oversubscribed(count: int, host: Host, by: str) -> tuple[str, ...]:
    """Warn if ``count`` threads exceed the CPU quota, the allowed CPUs or their cores."""
    cpus = len(host.allowed)
    if host.quota is not None and host.exceeds_quota(count):
        limit = f"the CPU quota of {counted(host.quota, 'CPU')} allows"
    elif count > cpus:
        limit = f"the {counted(cpus, 'CPU')} that this process may use"
    elif host.crowded and count > host.usable_cores:
        limit = f"the {host.usable_cores} that this virtual machine was seen to run well"
    elif count > host.usable_cores:
        limit = f"the {counted(host.usable_cores, 'physical core')} that this process may use"
    else:
        return ()
    slow = "threads will wait for each other, and generation slows down"
    return (f"{by} asks for {count} threads, more than {limit}: {slow}",)


def _computed(host: Host, environ: Mapping[str, str], most: int, limit: int | None = None) -> Plan:
    usable = min(host.usable_cores, limit or host.usable_cores)
    speeds = sorted((core.speed for core in host.allowed_cores), reverse=True)
    speeds = [1.0] * len(host.allowed) if host.cores_hidden else speeds
    count = _best_count(speeds, min(usable, most))
    which = "all usable cores, since arithmetic limits prompts, not memory bandwidth"
    which = which if usable > 1 else "the only usable core"
    which = which if usable == host.usable_cores else "as many as your OMP_THREAD_LIMIT allows"
    reasons = {
        "threads": _threads_reason(host, count, most, limit),
        "threads_batch": f"{usable}: {which}",
        "cpus": f"{NOT_BOUND}: all usable cores are of one kind",
    }
    plan = Plan(Setting(count, usable), reasons)
    if host.hybrid is None:
        return plan
    # One affinity mask applies to the whole process, so the prompt's threads stay on these cores.
    # On a few chips prompts would gain from the others, but an answer takes longer than its prompt.
    chosen = [core for core in host.allowed_cores if core.speed >= speeds[count - 1]]
    prompt = min(usable, len(chosen))
    setting = plan.setting._replace(threads_batch=prompt)
    cpus_reason = unplaceable(host, environ)
    if len(chosen) == len(host.allowed_cores):
        cpus_reason = f"{NOT_BOUND}: all usable cores are used"
    elif cpus_reason is None:
        cpus_reason = f"bound to the {len(chosen)} fastest cores: slower ones would hold them up"
        cpus = frozenset(cpu for core in chosen for cpu in core.cpus) & host.allowed
        setting = setting._replace(cpus=cpus)
    batch_reason = f"{prompt}: all usable cores of the kinds that generate"
    return plan.updated(setting, {"threads_batch": batch_reason, "cpus": cpus_reason})


def unplaceable(host: Host, environ: Mapping[str, str]) -> str | None:
    """Return why a plan cannot choose the CPUs of the threads; None if it can."""
    if binding := user_binding(environ):
        return f"{NOT_BOUND}: you bind the threads yourself with {binding}"
    is_linux = host.system == "linux"
    return None if is_linux else f"{NOT_BOUND}: programs are started on chosen CPUs on Linux only"


def _best_count(speeds: list[float], most: int) -> int:
    """Return how many of the fastest cores to use: at least 1, at most ``most``. ``speeds`` are
    those of single cores, the fastest first."""
    # ggml gives every thread an equal share of a step and waits for the last one, so k cores do the
    # work of k times the slowest of them. Slower cores join only if that grows by WORTHWHILE.
    best = 1
    for count in range(2, min(most, len(speeds)) + 1):
        gain = count * speeds[count - 1] / (best * speeds[best - 1])
        if gain >= (WORTHWHILE if speeds[count - 1] < speeds[best - 1] else 1.0):
            best = count
    return best


def _threads_reason(host: Host, count: int, most: int, limit: int | None) -> str:
    cores = len(host.allowed_cores)
    parts = [f"this process may use {cores} of {counted(len(host.cores), 'physical core')}"]
    if not host.topology_known:
        parts = [f"this process may use {counted(cores, 'CPU')}"]
        parts.append("which of them share a core is unknown")
    elif host.cores_hidden:
        told = f"but Windows told that there are {host.windows_cores} cores (Win32_Processor)"
        parts = [
            f"this process may use {counted(len(host.allowed), 'CPU')}",
            "the hypervisor hides which of them are performance or efficiency cores or share one, "
            f"{told if host.windows_cores else 'so each counts as a core'}; "
            f"{command('bench')} measures what is fastest",
        ]
    elif host.threads_per_core > 1:
        parts.append("one thread per core, since a second one gains nothing")
    if host.quota is not None and host.quota_binds:
        parts.append(f"the CPU quota allows {counted(host.quota, 'CPU')}")
    if count == most < host.usable_cores:
        by = "your OMP_THREAD_LIMIT" if most == limit else "--max-threads changes the limit"
        parts.append(f"limited to {most} ({by})")
    if host.crowded and count == host.crowded.threads:
        parts.append(crowding_reason(host.crowded))
    if host.hybrid is not None:
        parts.append(_hybrid_reason(host, count))
    return f"{count}: {'; '.join(parts)}"


def crowding_reason(found: Crowding) -> str:
    """Return what the trial of a crowded virtual machine showed, and when."""
    ran = f"{counted(found.planned, 'thread')} ran the demo model at least {found.slowdown:.3g}"
    why = "so the hypervisor does not run all CPUs at once"
    return f"{ran} times slower than one on {found.tried[:10]}, {why}"


def _hybrid_reason(host: Host, count: int) -> str:
    fast = sum(1 for core in host.allowed_cores if core.speed == 1.0)
    slow = len(host.allowed_cores) - fast
    if not fast or not slow:
        return "all of these cores are of one kind"
    kinds = f"{fast} performance and {slow} efficiency cores"
    if count <= fast:
        return f"of {kinds} only the fast ones, since every step waits for its slowest thread"
    return f"of {kinds} the fastest {count}: together they outrun the performance cores alone"
