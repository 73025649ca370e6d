"""How much memory a run takes at most, how many tokens of a prompt are computed at once, and
how the model is read; pure.

The sums hold for bitnet.cpp with the 2B model to the megabyte: 1125 MiB of model, 150 MiB of
cache for 2048 tokens, 255.5 MiB of buffers with a micro-batch of 512, 31.9 with one of 64.
"""

from __future__ import annotations

from bitnet_tuning.console import MEBIBYTE, counted
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.command import obeys
from bitnet_tuning.plan.openmp import user_set

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bitnet_tuning.machine.detect import Privileges
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.memory import HugePages
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Facts, Plan, Request
    from bitnet_tuning.plan.setting import Setting


AUTO, MAPPED, LOCKED, COPIED, HUGE = WAYS = ("auto", "mmap", "locked", "copy", "huge")
"""How a model may get into memory, as --memory has it."""

BY_DEFAULT = "mapped: its pages are shared with the page cache and can be dropped"
"""What that comes to where nothing else is asked for."""

RESIDENT_SHARE = 0.8
"""Of the available memory, which a run with a locked or copied model may take."""

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = {TUNABLES: "glibc.malloc.hugetlb=1"}
"""Makes glibc's malloc ask for transparent huge pages (its manual, Memory Allocation
Tunables). 2 would take pages from a pool that an administrator reserved."""

FIRST_GLIBC = (2, 35)
"""The first version that knows the tunable."""

DEFAULT_BATCH = 2048
"""llama.cpp's own logical batch, in tokens."""

DEFAULT_UBATCH = 512
"""llama.cpp's own micro-batch, in tokens."""

LEAST_UBATCH = 64
"""Tokens. llama.cpp pads a context's mask to 32 (GGML_KQ_MASK_PAD), in some releases to 64,
and refuses or enlarges batches below that."""

BYTES_PER_TOKEN = 4.0
"""Of English text with a vocabulary of a hundred thousand or more; for the estimate that is
shown. What is decided rests on the bound of one byte."""

_SPECIAL = 8
"""Tokens that a template or the model's beginning may add, at most."""

_BATCH_SHARE = 0.9
"""Of the available memory, which cache and buffers should stay below."""

_USUAL_CONTEXT = 2048
"""Tokens, as run_inference.py has it by default."""

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


def context_of(ctx_size: int, model: ModelFile) -> int:
    """Return the tokens of context that a run has; a size of 0 is the model's own."""
    return ctx_size or model.context_length or _UNSTATED_CONTEXT


def need_of(model: ModelFile, ctx_size: int, ubatch: int | None) -> Need:
    """Return what a run takes with a context of ``ctx_size`` tokens; 0 is the model's own."""
    context = context_of(ctx_size, model)
    return Need(model.size, cache_bytes(model, context), buffer_bytes(model, context, ubatch))


def cache_bytes(model: ModelFile, tokens: int) -> int:
    """Return the bytes of so many tokens' keys and values, in F16. Without a word on its
    attention heads a model counts as one without shared ones, which takes most."""
    width = model.kv_width or 2 * (model.embedding_length or 0)
    return tokens * (model.layers or 0) * width * 2


def buffer_bytes(model: ModelFile, context: int, ubatch: int | None) -> int:
    """Return the bytes of a step's widest results: logits, or every head's weights over the
    context."""
    widest = max(model.vocabulary or 0, (model.heads or 0) * context)
    return _F32 * (ubatch or DEFAULT_UBATCH) * (widest + (model.embedding_length or 0))


def sum_text(need: Need, available: int | None) -> str:
    """Return the sum, and what it is held against, for people."""
    parts = (("model", need.model), ("cache", need.cache), ("buffers", need.buffers))
    terms = " + ".join(f"{name} {_mebibytes(size)}" for name, size in parts)
    held = "not known" if available is None else f"{_mebibytes(available)} MiB"
    return f"{terms} = {_mebibytes(need.total)} MiB; available: {held}"


def fits(need: Need, available: int | None, share: float) -> bool:
    """Return whether the sum takes at most ``share`` of what is available, which must be known."""
    return available is not None and need.total <= share * available


def _mebibytes(size: int) -> int:
    return -(-size // MEBIBYTE)


def has_room(host: Host, model: ModelFile) -> bool:
    """Return whether the model may be read without mmap, with a context of usual length."""
    need = need_of(model, min(_USUAL_CONTEXT, model.context_length or _USUAL_CONTEXT), None)
    return fits(need, host.memory.available, RESIDENT_SHARE)


def choose_batch(plan: Plan, request: Request, facts: Facts) -> Plan:
    """Return the plan with its batch and micro-batch.

    A micro-batch that holds the whole prompt computes it as a larger one would, token for
    token: only buffers get smaller. One that cuts the prompt may round differently, so it
    comes from a measurement, which compares greedy texts, or from want of memory, and is said.
    """
    model, available = facts.model, facts.host.memory.available
    length = request.prompt_bytes(facts.prompt_file_bytes)
    default = "the engine's own default"
    has_flag = obeys("ubatch", facts.engine.flags_for(request.chat))
    if request.batch or request.ubatch or not has_flag:
        default += "" if has_flag else ": it has no flag for it"
        why = "as --batch-size says" if request.batch else default
        why_ubatch = "as --ubatch-size says" if request.ubatch else default
        return _sized(plan, request.batch, request.ubatch, why, why_ubatch)
    if length is not None and length + _SPECIAL <= DEFAULT_UBATCH // 2:
        size = max(LEAST_UBATCH, 1 << (length + _SPECIAL - 1).bit_length())
        saved = need_of(model, 0, DEFAULT_UBATCH).buffers - need_of(model, 0, size).buffers
        why = (
            f"{size}: the prompt of {counted(length, 'byte')} (about "
            f"{counted(estimate(length), 'token')}) fits in it whole; its buffers are "
            f"{saved // MEBIBYTE} MiB smaller"
        )
        return _sized(plan, size, size, why)

    def held(ubatch: int) -> Need:
        """A mapped model does not count: its pages give way."""
        return need_of(model, request.ctx_size, ubatch)._replace(model=0)

    if available is None or fits(held(DEFAULT_UBATCH), available, _BATCH_SHARE):
        known = f"the prompt has about {estimate(length)} tokens" if length is not None else ""
        why = known or "the prompt's length is not known before it starts"
        return _sized(plan, None, None, f"{default}: {why}")
    size = DEFAULT_UBATCH // 2
    while size > LEAST_UBATCH and not fits(held(size), available, _BATCH_SHARE):
        size //= 2
    warning = f"micro-batch {size} instead of {DEFAULT_UBATCH} for want of memory"
    why = f"{size}, for want of memory: {sum_text(held(size), available)}"
    plan = plan.updated(plan.setting, {}, (f"{warning}: long prompts take longer",))
    return _sized(plan, size, size, why)


def _sized(
    plan: Plan, batch: int | None, ubatch: int | None, why: str, why_ubatch: str | None = None
) -> Plan:
    reasons = {"batch": why, "ubatch": why_ubatch or why}
    return plan._replace(batch=batch).updated(plan.setting._replace(ubatch=ubatch), reasons)


def with_setting(plan: Plan, setting: Setting, request: Request) -> Plan:
    """Return the plan with another setting, and a logical batch that its micro-batch fits in:
    engines cut a micro-batch down to theirs."""
    if setting.ubatch == plan.setting.ubatch:
        return plan._replace(setting=setting)
    needed = setting.ubatch if (setting.ubatch or 0) > DEFAULT_BATCH else None
    return plan._replace(setting=setting, batch=request.batch or needed)


def estimate(prompt_bytes: int) -> int:
    """Return how many tokens a text of so many bytes is likely to have."""
    return max(1, round(prompt_bytes / BYTES_PER_TOKEN))


def choose_loading(plan: Plan, request: Request, facts: Facts, need: Need) -> Plan:
    """Return the plan with the way the model gets into memory. What was asked for and cannot
    be had is a warning."""
    flags, available = facts.engine.flags_for(request.chat), facts.host.memory.available
    wanted, setting = request.memory, plan.setting
    warnings: list[str] = []
    said = BY_DEFAULT
    if wanted in (COPIED, HUGE):
        refused = no_copy(flags, need, available)
        if refused is None and wanted == HUGE:
            refused = no_huge(facts.huge, facts.environ)
        if refused:
            warnings.append(refused)
        else:
            setting = setting._replace(mmap=False).with_env(HUGE_PAGES if wanted == HUGE else {})
            said = "copied into memory" + (" in huge pages" if wanted == HUGE else "")
    if wanted == LOCKED or (request.performance and wanted != MAPPED):
        refused = no_lock(flags, need, available, facts.privileges)
        if refused:
            warnings.append(refused)
        setting = setting._replace(mlock=refused is None)
        said += "; the model stays unlocked" if refused else "; locked, so that none is swapped"
    return plan.updated(setting, {"memory": f"{said}; {sum_text(need, available)}"}, warnings)


def no_copy(flags: frozenset[str], need: Need, available: int | None) -> str | None:
    """Return why the model is not read without mmap, or None where it may be."""
    if not obeys("mmap", flags):
        return "the model is mapped: this engine cannot read it otherwise"
    if not fits(need, available, RESIDENT_SHARE):
        return f"the model is mapped, not copied: too little memory ({sum_text(need, available)})"
    return None


def no_huge(huge: HugePages | None, environ: Mapping[str, str]) -> str | None:
    """Return why malloc cannot be made to use huge pages, or None where it can."""
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
    """Return why the model is not locked in memory, or None where that is allowed and safe."""
    limit = privileges.lockable if privileges else 0
    if not obeys("mlock", flags):
        return "the model is not locked in memory: this engine cannot"
    if not fits(need, available, RESIDENT_SHARE):
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
