"""The flags of the llama-bench look-alike."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

from bitnet_tuning._embedded import flags
from bitnet_tuning._embedded.flags import Flag, one_of, real, whole
from bitnet_tuning._embedded.options import NUMA, allowed_cpus

TITLE = "embedded bench: a llama-bench over xllamacpp (mainline llama.cpp on CPUs)"
SEVERAL = "several values: 1,2 or 1-4 or 2-8+2 or 1-8*2, or the flag again"


class BenchOptions(NamedTuple):
    """What to measure: the cross product of all lists. Sizes are in tokens."""

    model: str = ""
    n_prompt: tuple[int, ...] = (512,)
    n_gen: tuple[int, ...] = (128,)
    pairs: tuple[tuple[int, int], ...] = ()
    batch: tuple[int, ...] = (2048,)
    ubatch: tuple[int, ...] = (512,)
    threads: tuple[int, ...] = ()
    mmap: tuple[bool, ...] = (True,)
    flash_attention: tuple[str, ...] = ("auto",)
    """``on``, ``off`` or ``auto``, which is also what the cli does unless told."""
    numa: str = ""
    repetitions: int = 5
    output: str = "md"
    delay: float = 0.0
    warmup: bool = True
    progress: bool = False
    verbose: bool = False
    help: bool = False


class Test(NamedTuple):
    """One row of the result."""

    n_prompt: int
    n_gen: int

    @property
    def name(self) -> str:
        """Such as pp512, tg128 or pp512+tg128."""
        parts = (("pp", self.n_prompt), ("tg", self.n_gen))
        return "+".join(f"{kind}{count}" for kind, count in parts if count)

    @property
    def context(self) -> int:
        """Tokens of context that it takes.

        Generation needs one token to start from, and every test samples one more
        than it counts: see ``bench``.
        """
        return max(self.n_prompt, 1) + self.n_gen + 1


class Config(NamedTuple):
    """How the model is loaded for some rows."""

    batch: int
    ubatch: int
    threads: int
    mmap: bool
    flash_attention: str


def parse(argv: Sequence[str]) -> BenchOptions:
    """Options from a command line. Raises EngineError as ``flags.parse`` does."""
    options = BenchOptions(**flags.parse(argv, FLAGS))
    return options if options.threads else options._replace(threads=(allowed_cpus(),))


def help_text() -> str:
    """All flags, one a line."""
    return flags.render(TITLE, FLAGS)


def tests(options: BenchOptions) -> list[Test]:
    """The rows for each configuration, in llama-bench's order."""
    return [
        *(Test(count, 0) for count in options.n_prompt if count),
        *(Test(0, count) for count in options.n_gen if count),
        *(Test(*pair) for pair in options.pairs if any(pair)),
    ]


def configs(options: BenchOptions) -> list[Config]:
    """The cross product of everything that needs the model loaded anew."""
    combined = product(
        options.mmap, options.flash_attention, options.batch, options.ubatch, options.threads
    )
    return [
        Config(batch, ubatch, threads, mmap, flash)
        for mmap, flash, batch, ubatch, threads in combined
    ]


def _counts(text: str) -> tuple[int, ...]:
    return tuple(count for part in text.split(",") for count in _range(part))


def _sizes(text: str) -> tuple[int, ...]:
    counts = _counts(text)
    if min(counts) < 1:
        raise ValueError("must be at least 1")
    return counts


def _range(part: str) -> tuple[int, ...]:
    """``4``, ``1-4``, ``2-8+2`` or ``1-8*2``."""
    first, dash, rest = part.partition("-")
    if not dash:
        return (_count(part),)
    sign = "*" if "*" in rest else "+"
    last, _, step = rest.partition(sign)
    value, end, by = _count(first), _count(last), _count(step) if step else 1
    if by < (2 if sign == "*" else 1) or (sign == "*" and value < 1):
        raise ValueError(f"an endless range: {part!r}")
    values = []
    while value <= end:
        values.append(value)
        value = value * by if sign == "*" else value + by
    return tuple(values)


def _count(text: str) -> int:
    value = whole(text)
    if value < 0:
        raise ValueError(f"negative: {text!r}")
    return value


def _pair(text: str) -> tuple[tuple[int, int], ...]:
    prompt, comma, gen = text.partition(",")
    if not comma:
        raise ValueError("expected two numbers, as in 512,128")
    return ((_count(prompt), _count(gen)),)


_SWITCH = {"0": False, "off": False, "1": True, "on": True}


def _switches(text: str) -> tuple[bool, ...]:
    try:
        return tuple(_SWITCH[part] for part in text.split(","))
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is neither 0 nor 1") from None


_FLASH = {"0": "off", "off": "off", "1": "on", "on": "on", "auto": "auto"}


def _flash(text: str) -> tuple[str, ...]:
    try:
        return tuple(_FLASH[part] for part in text.split(","))
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is none of 0, 1 and auto") from None


FLAGS: tuple[Flag, ...] = (
    Flag(("-h", "--help"), "help", "print this text and exit"),
    Flag(("-m", "--model"), "model", "model file (GGUF)", "FNAME"),
    Flag(
        ("-p", "--n-prompt"),
        "n_prompt",
        "prompt tokens (default: 512; 0, no such test)",
        "N",
        _counts,
        append=True,
    ),
    Flag(
        ("-n", "--n-gen"),
        "n_gen",
        "tokens to generate (default: 128; 0, no such test)",
        "N",
        _counts,
        append=True,
    ),
    Flag(("-pg",), "pairs", "prompt and generation in one test", "PP,TG", _pair, append=True),
    Flag(
        ("-t", "--threads"),
        "threads",
        "threads (default: the CPUs that this process may use)",
        "N",
        _sizes,
        append=True,
    ),
    Flag(
        ("-b", "--batch-size"),
        "batch",
        "logical batch size (default: 2048)",
        "N",
        _sizes,
        append=True,
    ),
    Flag(
        ("-ub", "--ubatch-size"),
        "ubatch",
        "physical batch size (default: 512)",
        "N",
        _sizes,
        append=True,
    ),
    Flag(("-mmp", "--mmap"), "mmap", "map the model file: 1 or 0", "0|1", _switches, append=True),
    Flag(
        ("-fa", "--flash-attn"),
        "flash_attention",
        "flash attention: 0, 1 or auto (default)",
        "0|1|auto",
        _flash,
        append=True,
    ),
    NUMA,
    Flag(("-r", "--repetitions"), "repetitions", "runs of each test (default: 5)", "N", whole),
    Flag(
        ("-o", "--output"),
        "output",
        "format: md (default), json, jsonl or csv",
        "FORMAT",
        one_of("md", "json", "jsonl", "csv"),
    ),
    Flag(("--delay",), "delay", "seconds to wait before each test", "S", real),
    Flag(("--no-warmup",), "warmup", "measure from the first run on", constant=False),
    Flag(("-ngl", "--n-gpu-layers"), "", "accepted; everything is on the CPU", "N"),
    Flag(("--progress",), "progress", "tell on standard error what runs"),
    Flag(("-v", "--verbose"), "verbose", "let llama.cpp tell what it does"),
)
