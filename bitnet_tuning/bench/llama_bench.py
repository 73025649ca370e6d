"""What llama-bench is asked for one setting, and what its answer is worth; pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch.death import Speed, parse_timings
from bitnet_tuning.plan.command import memory_policy
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.openmp import exported
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import Setting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.model.types import ModelFile


NEEDED = frozenset(("-m", "-p", "-n", "-t", "-r", "-o"))
"""Flags without which a program is no llama-bench."""

_MODES = {
    (True, False): "mmap",
    (False, False): "none",
    (None, True): "mmap+mlock",
    (True, True): "mmap+mlock",
    (False, True): "mlock",
}
"""Mainline's modes of loading since 2026, by mmap and mlock."""


class Tests(NamedTuple):
    """What is measured, in tokens; None where that phase is not."""

    n_prompt: int | None
    n_gen: int | None


class Bench(NamedTuple):
    """A llama-bench."""

    program: tuple[str, ...]
    """The argv that starts it."""
    flags: frozenset[str]
    """What its help lists."""


class Row(NamedTuple):
    """A row that the answer must hold."""

    phase: str
    sizes: tuple[int, int]
    """Tokens of the prompt, and generated ones."""
    samples: int
    fields: tuple[tuple[str, object], ...]
    """What the row must say of the setting, where it says anything. ``n_threads`` must
    be there."""


class Command(NamedTuple):
    """One process of llama-bench."""

    argv: tuple[str, ...]
    rows: tuple[Row, ...]


class Speeds(NamedTuple):
    """An answer: every sample in tokens/s by phase, or the reason why there are none."""

    samples: Mapping[str, tuple[float, ...]]
    problem: str | None = None


class NonsenseError(ValueError):
    """An answer that is no measurement."""


def bench_commands(
    setting: Setting, bench: Bench, model: str, tests: Tests, repetitions: int
) -> tuple[Command, ...]:
    """What measures the setting: one process, or two where prompts have threads of their
    own, for which llama-bench has no flag.

    Raises UnsupportedError for a knob that this llama-bench does not have: measured
    without it, it would seem to have no effect.
    """
    knobs = tuple(_knobs(setting, bench.flags))
    argv = [
        *memory_policy(setting.node, setting.interleave),
        *bench.program,
        "-m",
        model,
        "-r",
        str(repetitions),
        "-o",
        "json",
    ]
    argv += ["-ngl", "0"] if "-ngl" in bench.flags else []
    argv += [word for knob in knobs for word in (knob.flag, knob.value)]
    said = tuple((knob.field, knob.said) for knob in knobs if knob.field)
    shared = Command(tuple(argv), (Row("", (0, 0), repetitions, said),))
    parts = [(setting.threads, tests)]
    if setting.threads != setting.threads_batch:
        prompt, generation = Tests(tests.n_prompt, None), Tests(None, tests.n_gen)
        parts = [(setting.threads_batch, prompt), (setting.threads, generation)]
    return tuple(_command(shared, threads, part) for threads, part in parts if any(part))


class _Knob(NamedTuple):
    flag: str
    value: str
    field: str
    """What a row calls it; empty where it says nothing of it."""
    said: object
    """Its value in a row."""


def _command(shared: Command, threads: int, tests: Tests) -> Command:
    """``shared`` with these tests; it has what their rows have in common."""
    n_prompt, n_gen = tests.n_prompt or 0, tests.n_gen or 0
    argv = ("-t", str(threads), "-p", str(n_prompt), "-n", str(n_gen))
    (row,) = shared.rows
    row = row._replace(fields=(("n_threads", threads), *row.fields))
    phases = ((PP, (n_prompt, 0)), (TG, (0, n_gen)))
    rows = (row._replace(phase=phase, sizes=sizes) for phase, sizes in phases if any(sizes))
    return Command((*shared.argv, *argv), tuple(rows))


def _knobs(setting: Setting, flags: frozenset[str]) -> Iterator[_Knob]:
    """Flags of llama-bench for all but threads. Every generation takes 0 and 1 for ``-fa``."""
    yield from _loading(setting, flags)
    if setting.flash is not None:
        said = int(setting.flash)
        yield _Knob(known("flash attention", ("-fa",), flags), str(said), "flash_attn", said)
    if setting.ubatch is not None:
        yield _Knob(
            known("the micro-batch", ("-ub",), flags),
            str(setting.ubatch),
            "n_ubatch",
            setting.ubatch,
        )
    if setting.poll is not None:
        yield _Knob(known("polling", ("--poll",), flags), str(setting.poll), "poll", setting.poll)
    if setting.numa is not None:
        yield _Knob(known("NUMA", ("--numa",), flags), setting.numa, "", None)


def _loading(setting: Setting, flags: frozenset[str]) -> Iterator[_Knob]:
    mode = _MODES.get((setting.mmap, setting.mlock))
    if mode is None:
        return
    if setting.mlock or "-mmp" not in flags:
        what = "locking the model" if setting.mlock else "mmap"
        yield _Knob(known(what, ("-lm",), flags), mode, "load_mode", mode)
    else:
        said = int(setting.mmap is True)
        yield _Knob("-mmp", str(said), "use_mmap", said)


def known(what: str, names: tuple[str, ...], flags: frozenset[str]) -> str:
    """The first of the names that the program lists. Raises UnsupportedError."""
    for name in names:
        if name in flags:
            return name
    raise UnsupportedError(
        f"the program has no flag for {what} ({', '.join(names)})",
        "measure without it, or with another engine",
    )


def parse_bench(stdout: str, rows: tuple[Row, ...]) -> Speeds:
    """The samples of exactly these rows; anything else is a problem, never a number."""
    try:
        found = _array(stdout)
        if len(found) != len(rows):
            raise NonsenseError(f"llama-bench printed {len(found)} rows instead of {len(rows)}")
        return Speeds({row.phase: _samples(row, found) for row in rows})
    except NonsenseError as nonsense:
        return Speeds({}, str(nonsense))


def _array(stdout: str) -> list[dict[str, Any]]:
    """The rows. Some builds print their log to stdout as well, before the array."""
    starts = [found.end() - 1 for found in re.finditer(r"^[ \t]*\[", stdout, re.MULTILINE)]
    for start in starts:
        try:
            array = json.JSONDecoder().raw_decode(stdout, start)[0]
        except (ValueError, RecursionError):
            continue
        if all(isinstance(row, dict) for row in array):
            return list(array)
    raise NonsenseError(f"llama-bench printed {'broken' if starts else 'no'} JSON")


def _samples(row: Row, found: list[dict[str, Any]]) -> tuple[float, ...]:
    name = f"{row.phase}{sum(row.sizes)}"
    same = [one for one in found if (one.get("n_prompt"), one.get("n_gen")) == row.sizes]
    if not same:
        raise NonsenseError(f"llama-bench printed no row for {name}")
    for field, wanted in row.fields:
        missing = None if field == "n_threads" else wanted
        if same[0].get(field, missing) != wanted:
            said = same[0].get(field, "no value")
            raise NonsenseError(f"{name} ran with {field} = {_short(said)}, not {wanted}")
    samples = same[0].get("samples_ts")
    if not isinstance(samples, list) or len(samples) != row.samples:
        count = len(samples) if isinstance(samples, list) else "no"
        raise NonsenseError(f"{name} has {count} samples instead of {row.samples}")
    return tuple(checked(sample, name) for sample in samples)


def checked(sample: object, name: str) -> float:
    """A speed in tokens/s. Raises NonsenseError for what is none."""
    if isinstance(sample, (int, float)) and not isinstance(sample, bool):
        try:
            speed = float(sample)
        except OverflowError:
            speed = math.inf
        if math.isfinite(speed) and speed > 0:
            return speed
    raise NonsenseError(f"{name} has a speed of {_short(sample)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def stale(setting: Setting, environ: Mapping[str, str]) -> frozenset[str]:
    """Variables that bitnet-env.sh exported and the setting does not have: ours from
    another day, not the user's."""
    return exported(environ) - dict(setting.env).keys()


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
