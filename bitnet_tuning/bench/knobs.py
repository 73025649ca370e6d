"""Which settings are worth measuring here: counts of threads, and knobs that the engine
obeys on this machine; pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import NamedTuple

from bitnet_tuning.bench.ledger import Knob
from bitnet_tuning.engine.binary import GOMP, LLVM, NONE
from bitnet_tuning.plan.command import flash_takes_value
from bitnet_tuning.plan.memory import (
    DEFAULT_UBATCH,
    HUGE_PAGES,
    has_room,
    need_of,
    no_huge,
    no_lock,
)
from bitnet_tuning.plan.openmp import BINDING, WAITING_BY_USER, binds_itself, user_set
from bitnet_tuning.plan.placement import DISTRIBUTE, ISOLATE, all_usable, usable_nodes
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE, Change, Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.limits import Privileges
    from bitnet_tuning.machine.memory import HugePages
    from bitnet_tuning.model.types import ModelFile


Maker = Callable[["Knobs", Setting], Iterator[Change]]

QUICK, FULL = "quick", "full"

FEW_CORES = 4
"""Up to here every count of threads is tried."""


class Knobs(NamedTuple):
    """What the knobs depend on."""

    host: Host
    engine: Engine
    bench_flags: frozenset[str] | None
    """Of llama-bench; None where the engine's cli measures."""
    model: ModelFile
    environ: Mapping[str, str]
    objective: Objective
    n_prompt: int
    """Tokens of the prompt that is measured."""
    effort: str
    numactl: bool = False
    """Whether it is installed."""
    huge: HugePages | None = None
    privileges: Privileges | None = None

    def obeys(self, bench: str, *cli: str) -> bool:
        """Whether both the program that measures and the one that will run have the knob."""
        measured = self.bench_flags is None or bench in self.bench_flags
        return measured and any(flag in self.engine.flags for flag in cli)


def thread_changes(facts: Knobs, default: Setting, named: tuple[int, ...]) -> tuple[Change, ...]:
    """The default's threads replaced: by the ``named`` counts, or by those worth a try."""
    counts = named or tuple(sorted(_counts(facts, default)))
    changes = (_threads(count, default, facts) for count in counts)
    return tuple(change for change in changes if not _is_idle(change, default))


def _counts(facts: Knobs, default: Setting) -> set[int]:
    """Around the number of cores, thinly below it, and every logical CPU; or as many as a
    quota feeds, its last one in part."""
    host, usable = facts.host, facts.host.usable_cores
    fed = len(host.allowed) if host.quota is None else max(1, ceil(host.quota))
    logical = min(len(host.allowed), fed)
    if facts.effort == FULL:
        counts = {*range(1, min(usable, 2 * FEW_CORES) + 1), *_parts(usable, 8), usable - 1}
    elif usable <= FEW_CORES:
        counts = set(range(1, usable + 1))
    else:
        counts = {2, *_parts(usable, 4), usable - 1}
    if facts.effort == QUICK and usable > FEW_CORES:
        counts = {usable // 2, usable * 3 // 4, usable}
    fast = sum(1 for core in host.allowed_cores if core.speed == 1.0)
    counts |= {logical, min(fast, usable)}
    if default.threads_batch <= usable and PP in facts.objective.phases:
        counts.add(default.threads_batch)
    return {count for count in counts if 1 <= count <= MOST_THREADS_ENGINE}


def _parts(whole: int, pieces: int) -> set[int]:
    return {whole * piece // pieces for piece in range(1, pieces + 1)}


def _threads(count: int, default: Setting, facts: Knobs) -> Change:
    """Another count for what is to be fast: generation, prompts, or both alike."""
    plural = "thread" if count == 1 else "threads"
    fields: dict[str, object] = {}
    if TG in facts.objective.phases:
        fields["threads"] = count
    if PP in facts.objective.phases:
        fields["threads_batch"] = count
    bound = _cores_within(default.cpus, facts.host)
    if bound is not None and count > bound:
        fields["cpus"] = None
    what = " for prompts" if facts.objective.name == PP else ""
    return Change(f"{count} {plural}{what}", tuple(fields.items()))


def _cores_within(cpus: frozenset[int] | None, host: Host) -> int | None:
    """How many cores have a CPU in the set; None for no set."""
    return None if cpus is None else sum(1 for core in host.cores if core.cpus & cpus)


def _is_idle(change: Change, default: Setting) -> bool:
    return all(getattr(default, field) == value for field, value in change.fields)


def knobs(facts: Knobs, default: Setting) -> tuple[Knob, ...]:
    """All but the number of threads, the likeliest first. A knob that the engine, the
    machine or the user's own environment leaves without effect is not there."""
    makers = _MAKERS[:1] if facts.effort == QUICK else _MAKERS
    found = (Knob(name, tuple(make(facts, default))) for name, make in makers)
    return tuple(knob for knob in found if knob.changes)


def _memory(facts: Knobs, default: Setting) -> Iterator[Change]:
    """How the model gets into memory, as far as memory and limits allow."""
    measurable = facts.obeys("-mmp", "--no-mmap") or facts.obeys("-lm", "--load-mode")
    if has_room(facts.host, facts.model) and measurable and default.mmap is None:
        yield Change("no mmap", (("mmap", False),))
        if no_huge(facts.huge, facts.environ) is None:
            yield Change("huge pages", (("mmap", False),), tuple(HUGE_PAGES.items()))
    if facts.effort == FULL and not default.mlock and _may_lock(facts):
        yield Change("locked", (("mlock", True),))


def _may_lock(facts: Knobs) -> bool:
    """llama-bench locks in newer engines only; the cli in all."""
    if facts.bench_flags is not None and "-lm" not in facts.bench_flags:
        return False
    need = need_of(facts.model, facts.n_prompt, None)
    available = facts.host.memory.available
    return no_lock(facts.engine.flags, need, available, facts.privileges) is None


def _binding(facts: Knobs, default: Setting) -> Iterator[Change]:
    """OMP_PROC_BIND=true is reported to cost a third on some Xeons."""
    if set(BINDING) <= dict(default.env).keys():
        yield Change("not bound", unset_env=tuple(BINDING))


def _affinity(facts: Knobs, default: Setting) -> Iterator[Change]:
    """On CPUs with two kinds of cores: kept to the fast ones, or not."""
    host = facts.host
    if host.hybrid is None or binds_itself(facts.environ):
        return
    if default.cpus is not None:
        yield Change("on any CPU", (("cpus", None),))
        return
    fast = host.hybrid.performance_cpus & host.allowed
    threads = max(default.threads, default.threads_batch)
    if fast and fast != host.allowed and threads <= (_cores_within(fast, host) or 0):
        yield Change("on performance cores", (("cpus", fast),))


def _waiting(facts: Knobs, default: Setting) -> Iterator[Change]:
    """How threads wait between steps: spinning wakes faster, but uses up a quota."""
    runtime, environ, full = facts.engine.openmp, facts.environ, facts.effort == FULL
    if any(user_set(environ, name) for name in (*WAITING_BY_USER, "GOMP_SPINCOUNT")):
        return
    if runtime == LLVM:
        yield Change("KMP_BLOCKTIME=infinite", set_env=(("KMP_BLOCKTIME", "infinite"),))
        if full and "KMP_BLOCKTIME" in dict(default.env):
            yield Change("KMP_BLOCKTIME unset", unset_env=("KMP_BLOCKTIME",))
        if full or facts.host.quota_binds:
            yield Change("KMP_BLOCKTIME=0", set_env=(("KMP_BLOCKTIME", "0"),))
    elif runtime == GOMP:
        yield Change("OMP_WAIT_POLICY=active", set_env=(("OMP_WAIT_POLICY", "active"),))
        if full or facts.host.quota_binds:
            yield Change("OMP_WAIT_POLICY=passive", set_env=(("OMP_WAIT_POLICY", "passive"),))
    elif runtime == NONE and facts.obeys("--poll", "--poll"):
        yield Change("poll 100", (("poll", 100),))
        yield Change("poll 0", (("poll", 0),))


def _flash_attention(facts: Knobs, default: Setting) -> Iterator[Change]:
    """Off in bitnet.cpp unless asked for; newer engines choose by themselves."""
    if not facts.obeys("-fa", "-fa") or default.flash is not None:
        return
    if flash_takes_value(facts.engine):
        yield Change("no flash attention", (("flash", False),))
    else:
        yield Change("flash attention", (("flash", True),))


def _micro_batch(facts: Knobs, default: Setting) -> Iterator[Change]:
    """Sizes that cut the measured prompt differently than the default does."""
    if not facts.obeys("-ub", "-ub") or PP not in facts.objective.phases:
        return
    sizes = (64, 128, 256, 1024, 2048) if facts.effort == FULL else (128, 256, 1024)
    for size in sizes:
        if min(size, facts.n_prompt) != min(DEFAULT_UBATCH, facts.n_prompt):
            yield Change(f"micro-batch {size}", (("ubatch", size),))


def _numa(facts: Knobs, default: Setting) -> Iterator[Change]:
    """Other ways to lay threads and memory over several nodes than the default's."""
    host = facts.host
    nodes = usable_nodes(host)
    if len(nodes) < 2:
        return
    plain: dict[str, object] = {"numa": None, "node": None, "interleave": None, "cpus": None}
    ways = [("numa left alone", plain)]
    if facts.obeys("--numa", "--numa") and all_usable(host, nodes):
        ways.append(("numa distribute", {**plain, "numa": DISTRIBUTE}))
        if facts.effort == FULL:
            ways.append(("numa isolate", {**plain, "numa": ISOLATE}))
    if facts.numactl:
        spread = frozenset(node.id for node in nodes)
        ways.append(("memory interleaved", {**plain, "interleave": spread}))
    for name, fields in ways:
        if default._replace(**fields) != default:  # type: ignore[arg-type]
            yield Change(name, tuple(fields.items()))


def _prompt_threads(facts: Knobs, default: Setting) -> Iterator[Change]:
    """Where a request counts as a whole: prompts apart, on all cores or on all CPUs."""
    if facts.objective.phases != (PP, TG):
        return
    bound = _cores_within(default.cpus, facts.host)
    for count in {facts.host.usable_cores, len(facts.host.allowed)}:
        if count != default.threads_batch and (bound is None or count <= bound):
            yield Change(f"{count} threads for prompts", (("threads_batch", count),))


_MAKERS: tuple[tuple[str, Maker], ...] = (
    ("mmap", _memory),
    ("binding", _binding),
    ("waiting", _waiting),
    ("affinity", _affinity),
    ("numa", _numa),
    ("prompt threads", _prompt_threads),
    ("micro-batch", _micro_batch),
    ("flash attention", _flash_attention),
)
