"""How much memory a run takes at most, and in which way its model is read; pure.

The sums hold for bitnet.cpp with the 2B model to the megabyte: 1125 MiB of model, 150 MiB of
cache for 2048 tokens, 255.5 MiB of buffers with a micro-batch of 512, 31.9 with one of 64.
"""

from __future__ import annotations

from bitnet_tuning.console import MEBIBYTE
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.openmp import user_set

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bitnet_tuning.machine.limits import Privileges
    from bitnet_tuning.machine.memory import HugePages
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Facts
    from bitnet_tuning.plan.request import Request


DEFAULT_UBATCH = 512
"""llama.cpp's own micro-batch, in tokens."""

_F32 = 4
_UNSTATED_CONTEXT = 4096
"""Tokens, for a model that does not state its length and a request that leaves it to it."""


class Need(NamedTuple):
    """Bytes."""

    model: int
    cache: int
    """Keys and values of a full context."""
    buffers: int
    """For one micro-batch."""

    @property
    def total(self) -> int:
        return self.model + self.cache + self.buffers


def need_of(model: ModelFile, ctx_size: int, ubatch: int | None, sequences: int = 1) -> Need:
    """For a context of ``ctx_size`` tokens (0: the model's own) in each of ``sequences``."""
    context = sequences * (ctx_size or model.context_length or _UNSTATED_CONTEXT)
    return Need(model.size, cache_bytes(model, context), buffer_bytes(model, context, ubatch))


def cache_bytes(model: ModelFile, tokens: int) -> int:
    """Of the keys and values of so many tokens, in F16. Without a word on its attention heads
    a model counts as one without shared ones, which takes most."""
    width = model.kv_width or 2 * (model.embedding_length or 0)
    return tokens * (model.layers or 0) * width * 2


def buffer_bytes(model: ModelFile, context: int, ubatch: int | None) -> int:
    """The widest results of a step: logits, or every head's weights over the context."""
    widest = max(model.vocabulary or 0, (model.heads or 0) * context)
    return _F32 * (ubatch or DEFAULT_UBATCH) * (widest + (model.embedding_length or 0))


def sum_text(need: Need, available: int | None) -> str:
    """The sum, and what it is held against, for people."""
    parts = (("model", need.model), ("cache", need.cache), ("buffers", need.buffers))
    terms = " + ".join(f"{name} {_mebibytes(size)}" for name, size in parts)
    held = "not known" if available is None else f"{_mebibytes(available)} MiB"
    return f"{terms} = {_mebibytes(need.total)} MiB; available: {held}"


def fits(need: Need, available: int | None, share: float) -> bool:
    """Whether the sum takes at most ``share`` of what is available, which must be known."""
    return available is not None and need.total <= share * available


def _mebibytes(size: int) -> int:
    return -(-size // MEBIBYTE)


LOCK_SHARE = 0.8
"""Of the available memory, which a run with a locked model may take."""

COPY_SHARE = 0.8
"""Of the available memory, which a run with a copied model may take."""

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = {TUNABLES: "glibc.malloc.hugetlb=1"}
"""Makes glibc's malloc ask for transparent huge pages (its manual, Memory Allocation
Tunables). 2 would take pages from a pool that an administrator reserved."""

FIRST_GLIBC = (2, 35)
"""That knows the tunable."""


def choose_loading(
    request: Request, facts: Facts, flags: frozenset[str], need: Need, lock: bool
) -> Loading:
    """``flags`` are those of the program that will run; ``lock`` says that the model is to be
    locked where that is safe. What was asked for and cannot be had is a warning."""
    wanted = request.memory or AUTO
    available = facts.host.memory.available
    warnings: list[str] = []
    said = [BY_DEFAULT]
    copied, env = False, {}
    if wanted in (COPIED, HUGE):
        refused = no_copy(flags, need, available)
        if refused is None and wanted == HUGE:
            refused = no_huge(facts.huge, facts.environ)
        if refused:
            warnings.append(refused)
        else:
            copied, env = True, dict(HUGE_PAGES) if wanted == HUGE else {}
            said = ["copied into memory" + (" in huge pages" if env else "")]
    locked = wanted == LOCKED or (lock and wanted != MAPPED)
    if locked:
        refused = no_lock(flags, need, available, facts.privileges)
        if refused:
            warnings.append(refused)
            locked = False
        said.append("the model stays unlocked" if refused else "locked, so that none is swapped")
    reason = f"{'; '.join(said)}; {sum_text(need, available)}"
    return Loading(False if copied else None, locked, env, reason, tuple(warnings))


def no_copy(flags: frozenset[str], need: Need, available: int | None) -> str | None:
    """Why the model is not read without mmap, or None where it may be."""
    if not flags & {"--no-mmap", "--load-mode"}:
        return "the model is mapped: this engine cannot read it otherwise"
    if not fits(need, available, COPY_SHARE):
        return f"the model is mapped, not copied: too little memory ({sum_text(need, available)})"
    return None


def no_huge(huge: HugePages | None, environ: Mapping[str, str]) -> str | None:
    """Why malloc cannot be made to use huge pages, or None where it can."""
    if huge is None or huge.glibc is None:
        return "no huge pages: they are asked for through glibc, which this system has not"
    if huge.glibc < FIRST_GLIBC:
        version, first = (".".join(map(str, each)) for each in (huge.glibc, FIRST_GLIBC))
        return f"no huge pages: glibc is {version}, the first that asks for them is {first}"
    if huge.transparent not in ("always", "madvise"):
        return (
            "no huge pages: the kernel gives none; `echo madvise | sudo tee "
            "/sys/kernel/mm/transparent_hugepage/enabled` would change that"
        )
    if user_set(environ, TUNABLES):
        return f"no huge pages: you set {TUNABLES} yourself; add {HUGE_PAGES[TUNABLES]} to it"
    return None


def no_lock(
    flags: frozenset[str], need: Need, available: int | None, privileges: Privileges | None
) -> str | None:
    """Why the model is not locked in memory, or None where that is allowed and safe."""
    limit = privileges.lockable if privileges else 0
    if not flags & {"--mlock", "--load-mode"}:
        return "the model is not locked in memory: this engine cannot"
    if not fits(need, available, LOCK_SHARE):
        return (
            "the model is not locked in memory: too little is available "
            f"({sum_text(need, available)})"
        )
    if limit is not None and need.model > limit:
        return (
            f"the model is not locked in memory: the limit is {limit // MEBIBYTE} MiB "
            f"(ulimit -l), the model has {-(-need.model // MEBIBYTE)}"
        )
    return None


AUTO, MAPPED, LOCKED, COPIED, HUGE = WAYS = ("auto", "mmap", "locked", "copy", "huge")
"""How a model may get into memory, as --memory has it."""

BY_DEFAULT = "mapped: its pages are shared with the page cache and can be dropped"
"""What that comes to where nothing else is asked for."""


class Loading(NamedTuple):
    """How the model gets into memory."""

    mmap: bool | None
    """None where the engine maps the file as it does by itself."""
    mlock: bool
    env: dict[str, str]
    reason: str
    warnings: tuple[str, ...] = ()
