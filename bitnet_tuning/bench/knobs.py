"""List the settings worth measuring: thread counts that suit this machine, and knobs that the
engine obeys on it.

docs/architecture.md lists the places where a knob is described."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil

from bitnet_tuning.bench.comparison import FILES, PERFORMANCE, UPSTREAM, Seconds, Sizes
from bitnet_tuning.bench.statistics import RESOLUTION
from bitnet_tuning.console import counted
from bitnet_tuning.engine.find import GOMP, LLVM, NONE
from bitnet_tuning.model.types import output_matrix
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan import memory
from bitnet_tuning.plan.command import flash_takes_value, obeys
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.openmp import BINDING, user_binding, user_waiting
from bitnet_tuning.plan.placement import DISTRIBUTE, ISOLATE, all_usable, usable_nodes
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE, Change, Setting, Threads
from bitnet_tuning.plan.setting import UPSTREAM as UPSTREAM_SETTING
from bitnet_tuning.store.codec import LATER, Annotated, Positive, Via

QUICK, FULL = "quick", "full"

MODES = (UPSTREAM, "optimized", PERFORMANCE)
"""Values of --modes: what bitnet.cpp's own launcher does; the plan and the search that starts from
it; performance mode. (Older results have ``default`` for the first.)"""

UNLOCKED = "performance mode is measured without a locked model: this llama-bench cannot lock it"

FEW_CORES = 4
"""Number of usable cores up to which every thread count is tried."""

FLAGS = {
    "mmap": ("-mmp", "-lm"),
    "mlock": ("-lm",),
    "flash": ("-fa",),
    "ubatch": ("-ub",),
    "poll": ("--poll",),
    "numa": ("--numa",),
}
"""Flags of llama-bench for each field of a setting: it obeys the field if it has one of them."""

COMPUTING = ("flash", "ubatch")
"""Fields that change how a prompt is computed, so that only a long prompt shows a mistake."""


class Knob(NamedTuple):
    """A knob other than the number of threads, and the values to try besides the default's."""

    name: str
    changes: tuple[Change, ...]


_FIXED = Via(dict[str, Setting], lambda named: tuple(named.items()), dict)
_CHANGES = dict[str, tuple[Change, ...]]
_KNOBS = Via(_CHANGES, lambda named: tuple(Knob(*each) for each in named.items()), dict)


class Space(NamedTuple):
    """All settings that may be measured."""

    default: Setting
    fixed: Annotated[tuple[tuple[str, Setting], ...], _FIXED]
    """Settings that are measured and shown but cannot win."""
    threads: tuple[Change, ...]
    knobs: Annotated[tuple[Knob, ...], _KNOBS]


class Assignment(NamedTuple):
    """The options of a tuning."""

    budget: Seconds
    effort: Annotated[str, {"enum": [QUICK, "normal", FULL]}]
    objective: Objective
    threads: tuple[Threads, ...] | None
    """The only thread counts to try; None for those that suit the machine."""
    modes: tuple[str, ...] | None
    """The only modes to measure; None for all."""
    sizes: Sizes | None
    """Tokens and samples of each run; None until the engine's speed is known."""
    remember: Annotated[bool, LATER] = True
    resolution: Annotated[Positive, LATER] = RESOLUTION
    """Share by which speeds may differ and count as equal."""
    extended: Annotated[tuple[tuple[Seconds, Seconds], ...], LATER] = ()
    """When more time was given: the seconds spent by then, and the budget until then."""


class Choices(NamedTuple):
    """The facts and options that decide which knobs are worth trying."""

    facts: Facts
    options: Assignment
    bench_flags: frozenset[str] | None
    """Flags of llama-bench; None if the engine's cli measures instead."""

    @property
    def is_full(self) -> bool:
        """Whether every knob and value is to be tried."""
        return self.options.effort == FULL

    @property
    def n_prompt(self) -> int:
        """Number of tokens in the measured prompt."""
        assert self.options.sizes is not None
        return self.options.sizes.n_prompt

    def obeys(self, field: str) -> bool:
        """Return whether engine and measuring program have a flag for a field of a setting."""
        measured = self.bench_flags is None or not self.bench_flags.isdisjoint(FLAGS[field])
        return measured and obeys(field, self.facts.engine.flags)


def make_space(choices: Choices, default: Setting) -> tuple[Space, tuple[str, ...]]:
    """Return the settings that may be measured, and notes for users on those left out. Without
    the mode ``optimized`` there is nothing to search: only fixed settings and the default."""
    options, notes = choices.options, list[str]()
    modes = options.modes or MODES[: 2 if options.effort == QUICK else 3]
    fixed = [(UPSTREAM, UPSTREAM_SETTING)] if UPSTREAM in modes else []
    if PERFORMANCE in modes:
        # The plan of performance mode, as far as it can be measured.
        facts = choices.facts._replace(profile=None)
        planned = make_plan(Request(performance=True), facts).setting
        performance = measurable(planned, choices.bench_flags)
        notes += [UNLOCKED] if performance != planned else []
        if performance == default:
            notes.append("performance mode is not measured: this system permits none of it")
        else:
            fixed.append((PERFORMANCE, performance))
    if "optimized" not in modes:
        return Space(default, tuple(fixed), (), ()), tuple(notes)
    fixed += other_file(choices.facts, default)
    threads = thread_changes(choices, default)
    return Space(default, tuple(fixed), threads, knobs(choices, default)), tuple(notes)


def other_file(facts: Facts, default: Setting) -> tuple[tuple[str, Setting], ...]:
    """Return the name and the setting of the default with the file beside the model, if any."""
    matrix = facts.beside and output_matrix(facts.beside.parts)
    if not facts.beside or not matrix:
        return ()
    name = FILES[facts.beside.size > facts.model.size]
    return ((name, default._replace(embedding=matrix.type)),)


def measurable(setting: Setting, bench_flags: frozenset[str] | None) -> Setting:
    """Return the setting, with ``mlock`` removed if llama-bench measures and cannot lock."""
    has_lock = bench_flags is None or "-lm" in bench_flags
    return setting if has_lock else setting._replace(mlock=False)


def thread_changes(choices: Choices, default: Setting) -> tuple[Change, ...]:
    """Return changes to the thread counts that the user named, else to all worth trying."""
    counts = choices.options.threads or tuple(sorted(_counts(choices, default)))
    changes = (_threads(count, default, choices) for count in counts)
    idle = set(default._asdict().items())
    return tuple(change for change in changes if not idle.issuperset(change.fields))


def _counts(choices: Choices, default: Setting) -> set[int]:
    """Return thread counts to try: a few up to the number of cores, and one per logical CPU."""
    host, usable = choices.facts.host, choices.facts.host.usable_cores
    # A quota of 1.5 CPUs may run two threads, one of them part of the time.
    fed = len(host.allowed) if host.quota is None else max(1, ceil(host.quota))
    logical = min(len(host.allowed), fed)
    if choices.is_full:
        counts = {*range(1, min(usable, 2 * FEW_CORES) + 1), *_parts(usable, 8), usable - 1}
    elif usable <= FEW_CORES:
        counts = set(range(1, usable + 1))
    else:
        counts = {2, *_parts(usable, 4), usable - 1}
    if choices.options.effort == QUICK and usable > FEW_CORES:
        counts = {usable // 2, usable * 3 // 4, usable}
    fast = sum(1 for core in host.allowed_cores if core.speed == 1.0)
    counts |= {logical, min(fast, usable)}
    if default.threads_batch <= usable and PP in choices.options.objective.phases:
        counts.add(default.threads_batch)
    return {count for count in counts if 1 <= count <= MOST_THREADS_ENGINE}


def _parts(whole: int, pieces: int) -> set[int]:
    return {whole * piece // pieces for piece in range(1, pieces + 1)}


def _threads(count: int, default: Setting, choices: Choices) -> Change:
    fields: dict[str, object] = {}
    if TG in choices.options.objective.phases:
        fields["threads"] = count
    if PP in choices.options.objective.phases:
        fields["threads_batch"] = count
    cores = choices.facts.host.cores_in(default.cpus)
    if default.cpus is not None and count > cores:
        fields["cpus"] = None
    # A plan binds only a team that fills its cores, and a profile runs as it was measured.
    unset = tuple(BINDING) if _is_bound(default) and count < cores else ()
    what = " for prompts" if choices.options.objective.name == PP else ""
    return Change(f"{counted(count, 'thread')}{what}", tuple(fields.items()), unset_env=unset)


def _is_bound(setting: Setting) -> bool:
    return set(BINDING) <= setting.variables.keys()


def knobs(choices: Choices, default: Setting) -> tuple[Knob, ...]:
    """Return the knobs to try, those most likely to help first. A knob that the engine, the
    machine or the user's environment makes ineffective is left out."""
    makers = _MAKERS[:1] if choices.options.effort == QUICK else _MAKERS
    found = (Knob(name, tuple(make(choices, default))) for name, make in makers)
    return tuple(knob for knob in found if knob.changes)


def _memory(choices: Choices, default: Setting) -> Iterator[Change]:
    can_copy = memory.has_room(choices.facts.host, choices.facts.model) and choices.obeys("mmap")
    if can_copy and default.mmap is None:
        yield Change("no mmap", (("mmap", False),))
        if memory.no_huge(choices.facts.huge, choices.facts.environ) is None:
            yield Change("huge pages", (("mmap", False),), tuple(memory.HUGE_PAGES.items()))
    # Older llama-benches cannot lock it.
    if choices.is_full and not default.mlock and choices.obeys("mlock"):
        need = memory.need_of(choices.facts.model, choices.n_prompt, None)
        if memory.no_lock(choices.facts, False, need) is None:
            yield Change("locked", (("mlock", True),))


def _binding(choices: Choices, default: Setting) -> Iterator[Change]:
    # On some Xeons, users report, OMP_PROC_BIND=true costs a third of the speed.
    if _is_bound(default):
        yield Change("not bound", unset_env=tuple(BINDING))


def _affinity(choices: Choices, default: Setting) -> Iterator[Change]:
    """Yield the other affinity on a hybrid CPU: performance cores only, or all CPUs."""
    host = choices.facts.host
    if host.hybrid is None or host.system != "linux" or user_binding(choices.facts.environ):
        return
    if default.cpus is not None:
        yield Change("on any CPU", (("cpus", None),))
        return
    fast = host.hybrid.performance_cpus & host.allowed
    threads = max(default.threads, default.threads_batch)
    if fast and fast != host.allowed and threads <= host.cores_in(fast):
        yield Change("on performance cores", (("cpus", fast),))


def _waiting(choices: Choices, default: Setting) -> Iterator[Change]:
    """Yield other ways to wait between steps: spinning wakes faster but uses up a CPU quota."""
    runtime, environ, full = choices.facts.engine.openmp, choices.facts.environ, choices.is_full
    if user_waiting(environ):
        return
    if runtime in (LLVM, GOMP):
        name, spin, sleep = ("KMP_BLOCKTIME", "infinite", "0")
        if runtime == GOMP:
            name, spin, sleep = ("OMP_WAIT_POLICY", "active", "passive")
        yield Change(f"{name}={spin}", set_env=((name, spin),))
        if full and runtime == LLVM and name in dict(default.env):
            yield Change(f"{name} unset", unset_env=(name,))
        if full or choices.facts.host.quota_binds:
            yield Change(f"{name}={sleep}", set_env=((name, sleep),))
    elif runtime == NONE and choices.obeys("poll"):
        yield Change("poll 100", (("poll", 100),))
        yield Change("poll 0", (("poll", 0),))


def _flash_attention(choices: Choices, default: Setting) -> Iterator[Change]:
    """Yield the other value of flash attention, if the default leaves it to the engine."""
    # bitnet.cpp has it off and its -fa takes no value; newer engines choose themselves ("auto").
    if not choices.obeys("flash") or default.flash is not None:
        return
    used = not flash_takes_value(choices.facts.engine)
    yield Change("flash attention" if used else "no flash attention", (("flash", used),))


def _micro_batch(choices: Choices, default: Setting) -> Iterator[Change]:
    """Yield micro-batches that split the measured prompt differently than the default does."""
    if not choices.obeys("ubatch") or PP not in choices.options.objective.phases:
        return
    sizes = (64, 128, 256, 1024, 2048) if choices.is_full else (128, 256, 1024)
    for size in sizes:
        if min(size, choices.n_prompt) != min(memory.DEFAULT_UBATCH, choices.n_prompt):
            yield Change(f"micro-batch {size}", (("ubatch", size),))


def _numa(choices: Choices, default: Setting) -> Iterator[Change]:
    """Yield ways other than the default's to place threads and memory on several NUMA nodes."""
    host = choices.facts.host
    nodes = usable_nodes(host)
    if len(nodes) < 2:
        return
    plain: dict[str, object] = {"numa": None, "node": None, "interleave": None, "cpus": None}
    ways = [("no NUMA policy", plain)]
    if choices.obeys("numa") and all_usable(host, nodes):
        ways.append(("numa distribute", {**plain, "numa": DISTRIBUTE}))
        if choices.is_full:
            ways.append(("numa isolate", {**plain, "numa": ISOLATE}))
    if choices.facts.numactl:
        spread = frozenset(node.id for node in nodes)
        ways.append(("memory interleaved", {**plain, "interleave": spread}))
    for name, fields in ways:
        if default._replace(**fields) != default:  # type: ignore[arg-type]
            yield Change(name, tuple(fields.items()))


def _prompt_threads(choices: Choices, default: Setting) -> Iterator[Change]:
    """Yield thread counts for prompts alone, one per core or per CPU, if requests are tuned."""
    if choices.options.objective.phases != (PP, TG):
        return
    most = None if default.cpus is None else choices.facts.host.cores_in(default.cpus)
    for count in {choices.facts.host.usable_cores, len(choices.facts.host.allowed)}:
        if count != default.threads_batch and (most is None or count <= most):
            yield Change(f"{count} threads for prompts", (("threads_batch", count),))


_MAKERS: tuple[tuple[str, Callable[[Choices, Setting], Iterator[Change]]], ...] = (
    ("mmap", _memory),
    ("binding", _binding),
    ("waiting", _waiting),
    ("affinity", _affinity),
    ("numa", _numa),
    ("prompt threads", _prompt_threads),
    ("micro-batch", _micro_batch),
    ("flash attention", _flash_attention),
)
