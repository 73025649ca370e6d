"""Estimate the memory of a run, and choose its batch sizes and how the model is loaded.

The estimates equal what bitnet.cpp logs for the 2B-4T model: 1125 MiB of model, 150 MiB of KV cache
for 2048 tokens, 255.5 MiB of buffers for a micro-batch of 512 tokens and 31.9 MiB for 64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bitnet_tuning.console import counted, size_text
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import HugePages
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.command import obeys
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.openmp import user_set
from bitnet_tuning.plan.setting import Setting

AUTO, MAPPED, LOCKED, COPIED, HUGE = WAYS = ("auto", "mmap", "locked", "copy", "huge")
"""Values of --memory: how the model is loaded."""

RESIDENT_SHARE = 0.8
"""Largest share of the available memory for a run whose model is copied or locked."""

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = {TUNABLES: "glibc.malloc.hugetlb=1"}
"""Variable that makes glibc's malloc use transparent huge pages ("Memory Allocation Tunables" in
its manual). The value 2 would take pages from the pool that an administrator reserved."""

FIRST_GLIBC = (2, 35)
"""First version of glibc with that tunable."""

DEFAULT_BATCH, DEFAULT_UBATCH = 2048, 512
"""Tokens of llama.cpp's default logical batch and micro-batch."""

LEAST_UBATCH = 64
"""Tokens of the smallest micro-batch that a plan chooses. llama.cpp pads the attention mask to 32
tokens (GGML_KQ_MASK_PAD), in some releases to 64, and refuses or enlarges smaller batches."""

BYTES_PER_TOKEN = 4.0
"""Typical bytes per token of English text with a vocabulary of 100,000 tokens or more. It serves
estimates that are shown. Decisions assume that every byte may be a token."""

_SPECIAL = 8
"""Largest number of tokens that the engine adds to a prompt, such as a beginning-of-text token."""

_LONGEST_TOKEN = 128
"""Bytes of the longest token in published vocabularies, such as Llama 3's."""

_BATCH_SHARE = 0.9
"""Share of the available memory that cache and buffers should not exceed."""

_USUAL_CONTEXT = 2048
"""Tokens of context that run_inference.py uses by default."""

_F16, _F32 = 2, 4
_UNSTATED_CONTEXT = 4096
"""Tokens of context if neither the request nor the model states a length."""


class Need(NamedTuple):
    """Estimated memory of a run, in bytes."""

    model: int
    cache: int
    """Keys and values of a full context."""
    buffers: int
    """Results of the computation of one micro-batch."""

    @property
    def total(self) -> int:
        return self.model + self.cache + self.buffers


def context_of(ctx_size: int, model: ModelFile) -> int:
    """Return the tokens of context of a run; a ``ctx_size`` of 0 means the model's own length."""
    return ctx_size or model.context_length or _UNSTATED_CONTEXT


def need_of(model: ModelFile, ctx_size: int, ubatch: int | None) -> Need:
    """Return the memory of a run with ``ctx_size`` tokens of context (0: the model's own length). A
    ``ubatch`` of None means the engine's default."""
    context, embedding = context_of(ctx_size, model), model.embedding_length or 0
    # A model that does not describe its attention heads counts as one that shares none, which
    # takes the most memory. Keys and values are in F16.
    cache = context * (model.layers or 0) * (model.kv_width or 2 * embedding) * _F16
    # The widest result of a step are the logits, or the attention over the context.
    widest = max(model.vocabulary or 0, (model.heads or 0) * context)
    return Need(model.size, cache, _F32 * (ubatch or DEFAULT_UBATCH) * (widest + embedding))


def least_tokens(prompt: bytes) -> int:
    """Return the fewest tokens that a prompt can have."""
    # No token holds parts of two words: tokenizers split a text at white space first (the regular
    # expressions in llama.cpp's llama-vocab.cpp; split_by_whitespace of SentencePiece).
    words = prompt.split()
    return max(len(words), sum(map(len, words)) // _LONGEST_TOKEN)


def check_context(request: Request, facts: Facts) -> Iterator[str]:
    """Yield warnings about the context's size. Raise UsageError if the prompt is surely longer."""
    context = context_of(request.ctx_size, facts.model)
    if {"-c", "--ctx-size", "-p", "--prompt", "-f", "--file", "-bf"} & set(request.extra):
        return
    # llama-completion aborts already if the prompt has more tokens than -c (common_batch_add).
    room = context if facts.engine.completion else _padded(context)
    size = request.prompt_bytes(facts.prompt_file_bytes) or 0
    trained, length = facts.model.context_length, max(facts.least_tokens, estimate(size))
    enough = _padded(length + _SPECIAL + max(request.n_predict, 0))
    enough = min(enough, trained or enough)
    remedy = f"shorten it, or add -c {enough}, which should be enough (an estimate)"
    if length >= enough:
        remedy = f"shorten it: the model was trained on at most {trained} tokens"
    if facts.least_tokens > room:
        has = f"the prompt has at least {counted(facts.least_tokens, 'token')}"
        raise UsageError(f"{has}, and the context {context}", remedy)
    if estimate(size) > room:
        yield f"the prompt has about {estimate(size)} tokens, and the context {context}: {remedy}"
    if request.n_predict > room:
        end = "when it is full, the engine stops or forgets the beginning"
        yield f"-n {request.n_predict} is more than the context of {context} tokens (-c): {end}"


def _padded(tokens: int) -> int:
    # llama.cpp enlarges a context to a multiple of 256, and bitnet.cpp of 2024 without flash
    # attention to one of 32 (llama_kv_cache_get_padding).
    return -(-tokens // 256) * 256


def sum_text(need: Need, available: int | None) -> str:
    """Return the needed and the ``available`` bytes (None: unknown) as a text."""
    parts = (("model", need.model), ("KV cache", need.cache), ("buffers", need.buffers))
    terms = " + ".join(f"{name} {size_text(size)}" for name, size in parts)
    held = "unknown" if available is None else size_text(available)
    return f"{terms} = {size_text(need.total)}; available: {held}"


def fits(need: Need, available: int | None, share: float) -> bool:
    """Return whether a run takes at most ``share`` of ``available`` bytes; False if unknown."""
    return available is not None and need.total <= share * available


def has_room(host: Host, model: ModelFile) -> bool:
    """Return whether memory has room for a copy of the model and a context of usual length."""
    need = need_of(model, min(_USUAL_CONTEXT, model.context_length or _USUAL_CONTEXT), None)
    return fits(need, host.memory.available, RESIDENT_SHARE)


def choose_batch(plan: Plan, request: Request, facts: Facts) -> Plan:
    """Return the plan with its batch and micro-batch."""
    # A micro-batch that holds the whole prompt gives the same text as a larger one, with smaller
    # buffers. One that splits the prompt may round differently, so only a measurement (which
    # compares greedy texts) or a lack of memory (with a warning) leads to it.
    model, available = facts.model, facts.host.memory.available
    length = request.prompt_bytes(facts.prompt_file_bytes)
    default = "the engine's default"
    has_flag = obeys("ubatch", facts.engine.flags_for(request.chat))
    if request.batch or request.ubatch or not has_flag:
        default += "" if has_flag else ": it has no flag -ub"
        why = f"{request.batch}: set by --batch-size" if request.batch else default
        why_ubatch = f"{request.ubatch}: set by --ubatch-size" if request.ubatch else default
        return _sized(plan, request.batch, request.ubatch, why, why_ubatch)
    if length is not None and length + _SPECIAL <= DEFAULT_UBATCH // 2:
        size = max(LEAST_UBATCH, 1 << (length + _SPECIAL - 1).bit_length())
        saved = need_of(model, 0, DEFAULT_UBATCH).buffers - need_of(model, 0, size).buffers
        why = (
            f"{size}: holds the whole prompt of {counted(length, 'byte')} (about "
            f"{counted(estimate(length), 'token')}), and saves {size_text(saved)} of buffers"
        )
        return _sized(plan, size, size, why)

    def held(ubatch: int) -> Need:
        # A mapped model does not count: the kernel drops its pages if others need the memory.
        return need_of(model, request.ctx_size, ubatch)._replace(model=0)

    if available is None or fits(held(DEFAULT_UBATCH), available, _BATCH_SHARE):
        why = "the prompt's length is unknown before the start"
        if length is not None:
            tokens = counted(estimate(length), "token")
            why = f"a prompt of about {tokens} needs buffers of the usual size"
        return _sized(plan, None, None, f"{default}: {why}")
    size = DEFAULT_UBATCH // 2
    while size > LEAST_UBATCH and not fits(held(size), available, _BATCH_SHARE):
        size //= 2
    why = f"{size}: too little memory for {DEFAULT_UBATCH}: {sum_text(held(size), available)}"
    warning = f"too little memory for micro-batch {DEFAULT_UBATCH}, using {size}"
    plan = plan.updated(plan.setting, {}, (f"{warning}: long prompts will take longer",))
    return _sized(plan, size, size, why)


def _sized(
    plan: Plan, batch: int | None, ubatch: int | None, why: str, why_ubatch: str | None = None
) -> Plan:
    reasons = {"batch": why, "ubatch": why_ubatch or why}
    return plan._replace(batch=batch).updated(plan.setting._replace(ubatch=ubatch), reasons)


def with_setting(plan: Plan, setting: Setting, request: Request) -> Plan:
    """Return the plan with another setting, and a logical batch that holds its micro-batch. Engines
    cut a micro-batch down to the size of the logical batch."""
    if setting.ubatch == plan.setting.ubatch:
        return plan._replace(setting=setting)
    needed = setting.ubatch if (setting.ubatch or 0) > DEFAULT_BATCH else None
    return plan._replace(setting=setting, batch=request.batch or needed)


def estimate(prompt_bytes: int) -> int:
    """Return how many tokens a text of ``prompt_bytes`` bytes probably has, at least 1."""
    return max(1, round(prompt_bytes / BYTES_PER_TOKEN))


def choose_loading(plan: Plan, request: Request, facts: Facts, need: Need) -> Plan:
    """Return the plan with the way the model is loaded; warn about what is impossible."""
    wanted, setting = request.memory, plan.setting
    warnings: list[str] = []
    if wanted in (COPIED, HUGE):
        mapped, available = "the model is mapped, not copied", facts.host.memory.available
        refused = no_huge(facts.huge, facts.environ) if wanted == HUGE else None
        if not obeys("mmap", facts.engine.flags_for(request.chat)):
            refused = f"{mapped}: this engine cannot load it without mmap"
        elif not fits(need, available, RESIDENT_SHARE):
            refused = f"{mapped}: too little memory ({sum_text(need, available)})"
        if refused:
            warnings.append(refused)
        else:
            setting = setting._replace(mmap=False).with_env(HUGE_PAGES if wanted == HUGE else {})
    if wanted == LOCKED or (request.performance and wanted != MAPPED):
        refused = no_lock(facts, request.chat, need)
        if refused:
            warnings.append(refused)
        setting = setting._replace(mlock=refused is None)
    reason = loading_reason(setting, need, facts.host.memory.available)
    return plan.updated(setting, {"memory": reason}, warnings)


def loading_reason(setting: Setting, need: Need, available: int | None) -> str:
    """Return how a setting loads the model, and the memory that it needs."""
    if setting.mmap is not False:
        how = "the model is mapped (mmap) and shares its memory with the page cache"
    elif setting.variables.get(TUNABLES) == HUGE_PAGES[TUNABLES]:
        how = "the model is copied into huge pages of memory"
    else:
        how = "the model is copied into memory"
    locked = ", and locked, so that all of it stays there" if setting.mlock else ""
    return f"{how}{locked}; {sum_text(need, available)}"


def no_huge(huge: HugePages | None, environ: Mapping[str, str]) -> str | None:
    """Return why malloc cannot be made to use huge pages, or None if it can."""
    if huge is None or huge.glibc is None:
        return "no huge pages: only glibc uses them, and this system has another C library"
    if huge.glibc < FIRST_GLIBC:
        version, first = (".".join(map(str, each)) for each in (huge.glibc, FIRST_GLIBC))
        return f"no huge pages: they need glibc {first} or later, this system has {version}"
    if huge.transparent not in ("always", "madvise"):
        remedy = "`echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled`"
        return f"no huge pages: they are turned off in the kernel; turn them on with {remedy}"
    if user_set(environ, TUNABLES):
        return f"no huge pages: you set {TUNABLES} yourself; add {HUGE_PAGES[TUNABLES]} to it"
    return None


def no_lock(facts: Facts, chat: bool, need: Need) -> str | None:
    """Return why the model must not be locked in memory, or None if it may be."""
    limit = facts.privileges.lockable if facts.privileges else 0
    unlocked, available = "the model is not locked in memory", facts.host.memory.available
    if not obeys("mlock", facts.engine.flags_for(chat)):
        return f"{unlocked}: this engine cannot do that"
    if not fits(need, available, RESIDENT_SHARE):
        return f"{unlocked}: too little memory ({sum_text(need, available)})"
    if limit is None or need.model <= limit:
        return None
    sizes = f"it takes {size_text(need.model)}, the limit (ulimit -l) is {size_text(limit)}"
    return f"{unlocked}: {sizes}"
