"""Make commands of llama-bench, or requests to the engine's cli, and parse the speeds printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from typing import Any, NamedTuple

from bitnet_tuning.bench.comparison import Sizes
from bitnet_tuning.bench.knobs import FLAGS
from bitnet_tuning.engine.probe import parse_timings
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch.failure import shorten
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.command import KNOB_FLAGS, memory_policy
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.openmp import exported
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.store.codec import LARGEST, SMALLEST

NEEDED = frozenset(("-m", "-p", "-n", "-t", "-r", "-o"))
"""Flags that every llama-bench has."""

_ROWS = {"flash": "flash_attn", "ubatch": "n_ubatch", "poll": "poll", "numa": ""}
"""Names of a setting's fields in llama-bench's output; empty if the output lacks the field."""


class Bench(NamedTuple):
    """A llama-bench program."""

    program: tuple[str, ...]
    """The beginning of its command line."""
    flags: frozenset[str]


class BenchCommand(NamedTuple):
    """The command line of one llama-bench process and what it must print."""

    argv: tuple[str, ...]
    tokens: dict[str, int]
    """Number of tokens that each row is about, by phase."""
    samples: int
    fields: Mapping[str, object]
    """Values that the rows must have if they have the field; ``n_threads`` is mandatory."""


Samples = dict[str, tuple[float, ...]]
"""Every sample in tokens/s, by phase."""


class FailedRunError(UnsupportedError):
    """A run failed or printed nonsense."""


def bench_commands(
    setting: Setting, bench: Bench, model: str, sizes: Sizes, phases: tuple[str, ...]
) -> tuple[BenchCommand, ...]:
    """Return the processes that measure the setting. Raise UnsupportedError for a knob that this
    llama-bench lacks: measured without it, it would seem to have no effect. There are two processes
    if prompts have a thread count of their own, since llama-bench has no flag for that."""
    knobs = tuple(_knobs(setting, bench.flags))
    shared = (
        *memory_policy(setting.node, setting.interleave),
        *bench.program,
        *("-m", model, "-r", str(sizes.repetitions), "-o", "json"),
        *(("-ngl", "0") if "-ngl" in bench.flags else ()),
        *(word for flag, value, _ in knobs for word in (flag, str(value))),
    )
    said = {row: value for _, value, row in knobs if row}
    every = {PP: sizes.n_prompt, TG: sizes.n_gen}
    is_one = setting.threads == setting.threads_batch
    found = []
    for part in ((PP, TG),) if is_one else ((PP,), (TG,)):
        tokens = {phase: every[phase] for phase in part if phase in phases}
        threads = setting.threads_batch if PP in part else setting.threads
        n_prompt, n_gen = (str(tokens.get(phase, 0)) for phase in (PP, TG))
        argv = (*shared, "-t", str(threads), "-p", n_prompt, "-n", n_gen)
        if tokens:
            fields = {"n_threads": threads, **said}
            found.append(BenchCommand(argv, tokens, sizes.repetitions, fields))
    return tuple(found)


def _knobs(setting: Setting, flags: frozenset[str]) -> Iterator[tuple[str, int | str, str]]:
    """Yield llama-bench's flag for each knob, its value and its field in the output."""
    if setting.mlock or (setting.mmap is not None and "-mmp" not in flags):
        # Mainline's llama-bench has -lm (--load-mode) since 2026.
        ways = ("mmap" if setting.mmap is not False else "", "mlock" if setting.mlock else "")
        yield known(FLAGS["mlock"], flags), "+".join(filter(None, ways)) or "none", "load_mode"
    elif setting.mmap is not None:
        yield "-mmp", int(setting.mmap), "use_mmap"
    for field, row in _ROWS.items():
        if (value := getattr(setting, field)) is not None:
            # All llama-benches accept 0 and 1 for -fa.
            number = int(value) if isinstance(value, bool) else value
            yield known(FLAGS[field], flags), number, row


def known(names: tuple[str, ...], flags: frozenset[str]) -> str:
    """Return the first of the flags ``names`` in ``flags``. Raise UnsupportedError without one."""
    if found := [name for name in names if name in flags]:
        return found[0]
    raise UnsupportedError(f"the program has no flag {' or '.join(names)}")


def parse_bench(stdout: str, command: BenchCommand) -> Samples:
    """Return the samples. Raise FailedRunError if llama-bench printed other rows than it must."""
    found, read, wanted = _array(stdout), dict[str, tuple[float, ...]](), len(command.tokens)
    if len(found) != wanted:
        raise FailedRunError(f"llama-bench printed {len(found)} rows instead of {wanted}")
    for phase, tokens in command.tokens.items():
        name, row = f"{phase}{tokens}", (tokens, 0) if phase == PP else (0, tokens)
        same = [one for one in found if (one.get("n_prompt"), one.get("n_gen")) == row]
        if not same:
            raise FailedRunError(f"llama-bench printed no row for {name}")
        for field, value in command.fields.items():
            missing = None if field == "n_threads" else value
            if same[0].get(field, missing) != value:
                said = _shown(same[0][field]) if field in same[0] else "unknown"
                raise FailedRunError(f"{name} ran with {field} = {said}, not {value}")
        samples: Any = same[0].get("samples_ts")
        count = len(samples) if isinstance(samples, list) else "none"
        if count != command.samples:
            raise FailedRunError(f"{name} has {count} of {command.samples} samples")
        read[phase] = tuple(checked(sample, name) for sample in samples)
    return read


def _array(stdout: str) -> list[dict[str, Any]]:
    """Return the rows that llama-bench printed. Raise FailedRunError without valid JSON."""
    # Some builds also print their log to stdout, before and behind the array.
    starts = [found.end() - 1 for found in re.finditer(r"^[ \t]*\[", stdout, re.MULTILINE)]
    for start in starts:
        try:
            array = json.JSONDecoder().raw_decode(stdout, start)[0]
        except (ValueError, RecursionError):
            continue
        if all(isinstance(row, dict) for row in array):
            return list(array)
    raise FailedRunError(f"llama-bench printed {'broken' if starts else 'no'} JSON")


def checked(sample: Any, name: str) -> float:
    """Return a sample as a speed in tokens/s. Raise FailedRunError if it is not positive."""
    is_number = isinstance(sample, (int, float)) and not isinstance(sample, bool)
    if is_number and SMALLEST <= sample <= LARGEST:
        return float(sample)
    raise FailedRunError(f"{name} has an impossible speed: {_shown(sample)}")


def _shown(value: object) -> str:
    return "no number" if isinstance(value, (list, dict)) else shorten(json.dumps(value), 40)


def stale(setting: Setting, environ: Mapping[str, str]) -> frozenset[str]:
    """Return the variables to remove from the environment: those that bitnet-env.sh exported and
    the setting does not set. The user did not choose them."""
    return exported(environ) - dict(setting.env).keys()


_WORDS = (
    "amber anchor apple arrow autumn bakery basket beacon bridge bronze candle canyon castle "
    "cedar circle copper cotton desert dragon eagle ember engine fabric feather ferry forest "
    "garden ginger glacier hammer harbor harvest island jacket jungle kettle ladder lantern "
    "lemon marble meadow mirror morning needle ocean orchard paper pepper pillow planet "
    "pocket quarry rabbit ribbon river saddle silver spider summer temple thunder valley winter"
)

LEAST_SHARE = 0.5
"""Share of the requested tokens that a run must generate: a text may end early."""

TOKENS_PER_WORD = 8
"""Most tokens of a word and its space, with a vocabulary of single letters."""


def words(count: int) -> str:
    """Return a text of ``count`` words, always the same; a word has one token or more."""
    return " ".join(islice(cycle(_WORDS.split()), count))


def cli_request(
    sizes: Sizes, phases: tuple[str, ...], model: ModelFile, flags: frozenset[str]
) -> Request:
    """Return a request for greedy text from a prompt of at least ``n_prompt`` tokens."""
    n_prompt = sizes.n_prompt if PP in phases else 1
    n_gen = sizes.n_gen if TG in phases else 0
    context = TOKENS_PER_WORD * n_prompt + n_gen + 16
    return Request(
        prompt=words(n_prompt),
        # The prompt's last step yields the first token, which no timing of generation has.
        n_predict=n_gen + 1,
        ctx_size=min(context, model.context_length or context),
        temperature=0.0,
        seed=1,
        extra=("--ignore-eos",) if "--ignore-eos" in flags else (),
    )


def parse_cli(log: str, sizes: Sizes, phases: tuple[str, ...]) -> Samples:
    """Return a sample per phase from the timings in the cli's log. Raise FailedRunError."""
    samples: Samples = {}
    least = {PP: sizes.n_prompt, TG: LEAST_SHARE * sizes.n_gen}
    for phase, seen in zip((PP, TG), parse_timings(log), strict=True):
        if phase not in phases:
            continue
        if seen is None:
            raise FailedRunError(f"the engine printed no timing for {phase}")
        if seen.tokens < least[phase]:
            wanted = f"at least {least[phase]:.0f}"
            raise FailedRunError(f"{phase} had {seen.tokens} tokens instead of {wanted}")
        samples[phase] = (checked(seen.rate, f"{phase}{seen.tokens}"),)
    return samples


def check_cli(setting: Setting, flags: frozenset[str]) -> None:
    """Raise UnsupportedError if the setting needs a flag that is not in the cli's ``flags``."""
    needs = {field: getattr(setting, field) is not None for field in _ROWS}
    needs |= {"mmap": setting.mmap is False, "mlock": setting.mlock}
    needs["threads_batch"] = setting.threads_batch != setting.threads
    for field, needed in needs.items():
        if needed:
            known(KNOB_FLAGS[field], flags)
