"""Measuring without a llama-bench: a run of the cli, and the timings at its end; pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitnet_tuning.bench.measure import NonsenseError, Speeds, Tests, checked, known
from bitnet_tuning.bench.rounds import PP, TG
from bitnet_tuning.outcome import Speed, parse_timings
from bitnet_tuning.request import Request
from bitnet_tuning.setting import Setting

if TYPE_CHECKING:
    from bitnet_tuning.ggml_types import ModelFile

_WORDS = (
    "amber anchor apple arrow autumn bakery basket beacon bridge bronze candle canyon castle "
    "cedar circle copper cotton desert dragon eagle ember engine fabric feather ferry forest "
    "garden ginger glacier hammer harbor harvest island jacket jungle kettle ladder lantern "
    "lemon marble meadow mirror morning needle ocean orchard paper pepper pillow planet "
    "pocket quarry rabbit ribbon river saddle silver spider summer temple thunder valley winter"
)

LEAST_SHARE = 0.5
"""Of the generated tokens asked for, which a run must have made: a text may end early."""

TOKENS_PER_WORD = 8
"""At most, space included: in a vocabulary of single letters."""


def words(count: int) -> str:
    """So many words in no order, always the same: at least as many tokens."""
    known_words = _WORDS.split()
    state, text = 1, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31  # as rand() of the C standard's example
        text.append(known_words[(state >> 16) % len(known_words)])
    return " ".join(text)


def cli_request(tests: Tests, model: ModelFile, flags: frozenset[str]) -> Request:
    """A greedy run of the cli with a prompt of about ``n_prompt`` tokens, which generates
    one token from the prompt's last step and then ``n_gen`` more."""
    n_prompt, n_gen = tests.n_prompt or 1, tests.n_gen or 0
    context = TOKENS_PER_WORD * n_prompt + n_gen + 16
    return Request(
        prompt=words(n_prompt),
        n_predict=n_gen + 1,
        ctx_size=min(context, model.context_length or context),
        temperature=0.0,
        seed=1,
        extra=("--ignore-eos",) if "--ignore-eos" in flags else (),
    )


def is_cut_short(log: str) -> bool:
    """Whether the timings are missing: they may have been lost."""
    timings = parse_timings(log)
    return timings.prompt is None or timings.generation is None


def parse_cli(log: str, tests: Tests) -> Speeds:
    """One sample for each phase from the timings in the cli's log."""
    timings = parse_timings(log)
    found = {}
    try:
        if tests.n_prompt:
            found[PP] = (_rate(PP, tests.n_prompt, timings.prompt),)
        if tests.n_gen:
            found[TG] = (_rate(TG, LEAST_SHARE * tests.n_gen, timings.generation),)
    except NonsenseError as nonsense:
        return Speeds({}, str(nonsense))
    return Speeds(found)


def _rate(phase: str, least: float, seen: Speed | None) -> float:
    """In tokens/s, of a phase that had ``least`` tokens or more; raises NonsenseError."""
    if seen is None:
        raise NonsenseError(f"the engine printed no timing for {phase}")
    if seen.tokens < least:
        raise NonsenseError(f"{phase} had {seen.tokens} tokens instead of at least {least:.0f}")
    return checked(seen.rate, f"{phase}{seen.tokens}")


def check_cli(setting: Setting, flags: frozenset[str]) -> None:
    """Raises UnsupportedError for a knob that the cli does not have."""
    wanted = (
        ("flash attention", setting.flash is not None, ("-fa",)),
        ("the micro-batch", setting.ubatch is not None, ("-ub",)),
        ("polling", setting.poll is not None, ("--poll",)),
        ("NUMA", setting.numa is not None, ("--numa",)),
        ("no mmap", setting.mmap is False, ("--no-mmap", "--load-mode")),
        ("locking the model", setting.mlock, ("--mlock", "--load-mode")),
        ("threads of prompts", setting.threads_batch != setting.threads, ("-tb",)),
    )
    for what, is_wanted, names in wanted:
        if is_wanted:
            known(what, names, flags)
