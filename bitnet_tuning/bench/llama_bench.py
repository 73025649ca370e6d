"""Make the command line of llama-bench, or the request to the cli, that measures a setting, and
read speeds out of what they print; pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bitnet_tuning.bench.comparison import Sizes
from bitnet_tuning.bench.knobs import FLAGS
from bitnet_tuning.engine.probe import Speed, parse_timings
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.plan.command import KNOB_FLAGS, memory_policy
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


class Bench(NamedTuple):
    """A llama-bench."""

    program: tuple[str, ...]
    """The argv that starts it."""
    flags: frozenset[str]
    """What its help lists."""


class BenchRow(NamedTuple):
    """A row that llama-bench must print."""

    phase: str
    sizes: tuple[int, int]
    """Tokens of the prompt, and generated ones."""
    samples: int
    fields: tuple[tuple[str, object], ...]
    """What the row must say of the setting, where it says anything. ``n_threads`` must be there."""


class BenchCommand(NamedTuple):
    """One process of llama-bench."""

    argv: tuple[str, ...]
    rows: tuple[BenchRow, ...]


Samples = dict[str, tuple[float, ...]]
"""tokens/s by phase, every sample."""


class FailedRunError(Exception):
    """A run whose output is not to be used; says why."""


def bench_commands(
    setting: Setting, bench: Bench, model: str, sizes: Sizes, phases: tuple[str, ...]
) -> tuple[BenchCommand, ...]:
    """Return what measures the setting: one process, or two where prompts have threads of
    their own, for which llama-bench has no flag.

    Raises UnsupportedError for a knob that this llama-bench does not have: measured
    without it, it would seem to have no effect.
    """
    knobs = tuple(_knobs(setting, bench.flags))
    shared = (
        *memory_policy(setting.node, setting.interleave),
        *bench.program,
        *("-m", model, "-r", str(sizes.repetitions), "-o", "json"),
        *(("-ngl", "0") if "-ngl" in bench.flags else ()),
        *(word for flag, value, _ in knobs for word in (flag, str(value))),
    )
    said = tuple((row, value) for _, value, row in knobs if row)
    parts = [(setting.threads, phases)]
    if setting.threads != setting.threads_batch:
        parts = [(setting.threads_batch, (PP,)), (setting.threads, (TG,))]
    found = []
    for threads, measured in parts:
        wanted = [phase for phase in (PP, TG) if phase in measured and phase in phases]
        n_prompt = sizes.n_prompt if PP in wanted else 0
        n_gen = sizes.n_gen if TG in wanted else 0
        argv = ("-t", str(threads), "-p", str(n_prompt), "-n", str(n_gen))
        fields = (("n_threads", threads), *said)
        tokens = {PP: (n_prompt, 0), TG: (0, n_gen)}
        rows = (BenchRow(phase, tokens[phase], sizes.repetitions, fields) for phase in wanted)
        found += [BenchCommand((*shared, *argv), tuple(rows))] if wanted else []
    return tuple(found)


def _knobs(setting: Setting, flags: frozenset[str]) -> Iterator[tuple[str, int | str, str]]:
    """Yield llama-bench's flag for each knob, its value, and what a row calls it. Every
    generation takes 0 and 1 for ``-fa``."""
    mode = _MODES.get((setting.mmap, setting.mlock))
    if mode is not None and (setting.mlock or "-mmp" not in flags):
        what = "locking the model" if setting.mlock else "mmap"
        yield known(what, ("-lm",), flags), mode, "load_mode"
    elif mode is not None:
        yield "-mmp", int(setting.mmap is True), "use_mmap"
    for each in FLAGS:
        value = getattr(setting, each.field)
        if value is not None:
            flag = known(each.words, (each.flag,), flags)
            yield flag, int(value) if isinstance(value, bool) else value, each.row


def known(what: str, names: tuple[str, ...], flags: frozenset[str]) -> str:
    """Return the first of the names that the program lists. Raises UnsupportedError."""
    for name in names:
        if name in flags:
            return name
    raise UnsupportedError(
        f"the program has no flag for {what} ({', '.join(names)})",
        "measure without it, or with another engine",
    )


def parse_bench(stdout: str, rows: tuple[BenchRow, ...]) -> Samples:
    """Return the samples of exactly these rows. Raises FailedRunError for anything else."""
    found = _array(stdout)
    if len(found) != len(rows):
        raise FailedRunError(f"llama-bench printed {len(found)} rows instead of {len(rows)}")
    return {row.phase: _samples(row, found) for row in rows}


def _array(stdout: str) -> list[dict[str, Any]]:
    """Return the rows. Some builds print their log to stdout as well, before the array."""
    starts = [found.end() - 1 for found in re.finditer(r"^[ \t]*\[", stdout, re.MULTILINE)]
    for start in starts:
        try:
            array = json.JSONDecoder().raw_decode(stdout, start)[0]
        except (ValueError, RecursionError):
            continue
        if all(isinstance(row, dict) for row in array):
            return list(array)
    raise FailedRunError(f"llama-bench printed {'broken' if starts else 'no'} JSON")


def _samples(row: BenchRow, found: list[dict[str, Any]]) -> tuple[float, ...]:
    name = f"{row.phase}{sum(row.sizes)}"
    same = [one for one in found if (one.get("n_prompt"), one.get("n_gen")) == row.sizes]
    if not same:
        raise FailedRunError(f"llama-bench printed no row for {name}")
    for field, wanted in row.fields:
        missing = None if field == "n_threads" else wanted
        if same[0].get(field, missing) != wanted:
            said = same[0].get(field, "no value")
            raise FailedRunError(f"{name} ran with {field} = {_short(said)}, not {wanted}")
    samples = same[0].get("samples_ts")
    if not isinstance(samples, list) or len(samples) != row.samples:
        count = len(samples) if isinstance(samples, list) else "no"
        raise FailedRunError(f"{name} has {count} samples instead of {row.samples}")
    return tuple(checked(sample, name) for sample in samples)


def checked(sample: object, name: str) -> float:
    """Return a speed in tokens/s. Raises FailedRunError for what is none."""
    if isinstance(sample, (int, float)) and not isinstance(sample, bool):
        try:
            speed = float(sample)
        except OverflowError:
            speed = math.inf
        if math.isfinite(speed) and speed > 0:
            return speed
    raise FailedRunError(f"{name} has a speed of {_short(sample)}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


def stale(setting: Setting, environ: Mapping[str, str]) -> frozenset[str]:
    """Return variables that bitnet-env.sh exported and the setting does not have: ours from
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
"""Share of the generated tokens asked for that a run must have made: a text may end early."""

TOKENS_PER_WORD = 8
"""Most tokens of a word, space included: in a vocabulary of single letters."""


def words(count: int) -> str:
    """Return so many words in no order, always the same: at least as many tokens."""
    known_words = _WORDS.split()
    state, text = 1, []
    for _ in range(count):
        state = (state * 1103515245 + 12345) % 2**31  # as rand() of the C standard's example
        text.append(known_words[(state >> 16) % len(known_words)])
    return " ".join(text)


def cli_request(
    sizes: Sizes, phases: tuple[str, ...], model: ModelFile, flags: frozenset[str]
) -> Request:
    """Return a greedy run of the cli with a prompt of about ``n_prompt`` tokens, which generates
    one token from the prompt's last step and then ``n_gen`` more."""
    n_prompt = sizes.n_prompt if PP in phases else 1
    n_gen = sizes.n_gen if TG in phases else 0
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
    """Return whether the timings are missing: they may have been lost."""
    timings = parse_timings(log)
    return timings.prompt is None or timings.generation is None


def parse_cli(log: str, sizes: Sizes, phases: tuple[str, ...]) -> Samples:
    """Return one sample for each phase from the timings in the cli's log. Raises FailedRunError
    where they are missing or make no sense."""
    timings = parse_timings(log)
    wanted = {
        PP: (sizes.n_prompt, timings.prompt),
        TG: (LEAST_SHARE * sizes.n_gen, timings.generation),
    }
    return {phase: (_rate(phase, *wanted[phase]),) for phase in wanted if phase in phases}


def _rate(phase: str, least: float, seen: Speed | None) -> float:
    """Return the tokens/s of a phase that had ``least`` tokens or more; raises FailedRunError."""
    if seen is None:
        raise FailedRunError(f"the engine printed no timing for {phase}")
    if seen.tokens < least:
        raise FailedRunError(f"{phase} had {seen.tokens} tokens instead of at least {least:.0f}")
    return checked(seen.rate, f"{phase}{seen.tokens}")


def check_cli(setting: Setting, flags: frozenset[str]) -> None:
    """Raise UnsupportedError for a knob that the cli does not have."""
    wanted = {each.field: each.words for each in FLAGS if getattr(setting, each.field) is not None}
    if setting.mmap is False:
        wanted["mmap"] = "no mmap"
    if setting.mlock:
        wanted["mlock"] = "locking the model"
    if setting.threads_batch != setting.threads:
        wanted["threads_batch"] = "threads of prompts"
    for field, words in wanted.items():
        known(words, KNOB_FLAGS[field], flags)
