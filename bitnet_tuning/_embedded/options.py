"""The flags of the llama-cli look-alike."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from bitnet_tuning._embedded import flags, text
from bitnet_tuning._embedded.flags import Flag, one_of, real, whole

TITLE = "embedded: a llama-cli over xllamacpp (mainline llama.cpp on CPUs)"
ON_OFF = ("on", "off", "auto", "1", "0")


class Options(NamedTuple):
    """What the command line asks for; None leaves a value to llama.cpp.

    ``n_predict`` counts tokens, -1 and -2 meaning until the model ends or the
    context is full. ``context``, ``batch`` and ``ubatch`` count tokens.
    """

    model: str = ""
    prompt: bytes = b""
    system_prompt: bytes = b""
    n_predict: int = -1
    context: int = 4096
    threads: int = 0
    threads_batch: int = 0
    batch: int = 2048
    ubatch: int = 512
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    ignore_eos: bool = False
    reverse_prompts: tuple[bytes, ...] = ()
    chat: bool = False
    single_turn: bool = False
    mmap: bool | None = None
    mlock: bool = False
    flash_attention: str = "auto"
    numa: str = ""
    priority: int = 0
    poll: int = 50
    warmup: bool = True
    escape: bool = True
    display_prompt: bool = True
    perf: bool = True
    log: bool = True
    verbose: bool = False
    help: bool = False
    version: bool = False


def allowed_cpus() -> int:
    """How many logical CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def parse(argv: Sequence[str]) -> Options:
    """Options from a command line. Raises EngineError as ``flags.parse`` does."""
    options = Options(**flags.parse(argv, FLAGS))
    threads = options.threads if options.threads > 0 else allowed_cpus()
    batch = options.threads_batch if options.threads_batch > 0 else threads
    options = options._replace(threads=threads, threads_batch=batch)
    if not options.escape:
        return options
    return options._replace(
        prompt=text.unescape(options.prompt),
        system_prompt=text.unescape(options.system_prompt),
        reverse_prompts=tuple(text.unescape(each) for each in options.reverse_prompts),
    )


def help_text() -> str:
    """All flags, one a line."""
    return flags.render(TITLE, FLAGS)


def _one(value: str) -> tuple[bytes, ...]:
    return (text.from_argv(value),)


_IDLE = "accepted for llama-cli's sake; no effect in a build with OpenMP"

NUMA = Flag(
    ("--numa",),
    "numa",
    "NUMA strategy: distribute, isolate or numactl",
    "TYPE",
    one_of("distribute", "isolate", "numactl"),
)

FLAGS: tuple[Flag, ...] = (
    Flag(("-h", "--help", "--usage"), "help", "print this text and exit"),
    Flag(("--version",), "version", "print the versions and exit"),
    Flag(("-m", "--model"), "model", "model file (GGUF)", "FNAME"),
    Flag(
        ("-p", "--prompt"),
        "prompt",
        "prompt; in a chat the system prompt, or the first message with -sys or -st",
        "PROMPT",
        text.from_argv,
    ),
    Flag(("-f", "--file"), "prompt", "file that holds the prompt", "FNAME", text.from_file),
    Flag(
        ("-sys", "--system-prompt"),
        "system_prompt",
        "system prompt of a chat",
        "PROMPT",
        text.from_argv,
    ),
    Flag(
        ("-n", "--predict", "--n-predict"),
        "n_predict",
        "tokens to generate (default: -1, until the model ends; -2, until the context is full)",
        "N",
        whole,
    ),
    Flag(
        ("-c", "--ctx-size"),
        "context",
        "context size in tokens (default: 4096; 0, the model's own)",
        "N",
        whole,
    ),
    Flag(("--keep",), "", "accepted; a full context ends the text, it never shifts", "N"),
    Flag(
        ("-t", "--threads"),
        "threads",
        "threads for generation (default: the CPUs that this process may use)",
        "N",
        whole,
    ),
    Flag(
        ("-tb", "--threads-batch"),
        "threads_batch",
        "threads for prompt processing (default: as -t)",
        "N",
        whole,
    ),
    Flag(("-b", "--batch-size"), "batch", "logical batch size (default: 2048)", "N", whole),
    Flag(("-ub", "--ubatch-size"), "ubatch", "physical batch size (default: 512)", "N", whole),
    Flag(("-s", "--seed"), "seed", "sampling seed (default: -1, random)", "SEED", whole),
    Flag(("--temp", "--temperature"), "temperature", "temperature; 0 is greedy", "N", real),
    Flag(("--top-k",), "top_k", "top-k sampling; 0 is off", "N", whole),
    Flag(("--top-p",), "top_p", "top-p sampling; 1.0 is off", "N", real),
    Flag(("--min-p",), "min_p", "min-p sampling; 0.0 is off", "N", real),
    Flag(("--repeat-penalty",), "repeat_penalty", "repetition penalty; 1.0 is off", "N", real),
    Flag(("--repeat-last-n",), "repeat_last_n", "tokens that the penalties look at", "N", whole),
    Flag(("--presence-penalty",), "presence_penalty", "presence penalty; 0.0 is off", "N", real),
    Flag(("--frequency-penalty",), "frequency_penalty", "frequency penalty; 0.0 is off", "N", real),
    Flag(("--ignore-eos",), "ignore_eos", "go on past the end of the text"),
    Flag(
        ("-r", "--reverse-prompt"),
        "reverse_prompts",
        "stop where this text appears; may be given several times",
        "PROMPT",
        _one,
        append=True,
    ),
    Flag(("-cnv", "--conversation"), "chat", "chat: read messages from standard input"),
    Flag(("-no-cnv", "--no-conversation"), "chat", "complete the prompt (default)", constant=False),
    Flag(("-st", "--single-turn"), "single_turn", "end the chat after one answer"),
    Flag(("-e", "--escape"), "escape", r"process escapes such as \n in prompts (default)"),
    Flag(("--no-escape",), "escape", "leave escapes in prompts alone", constant=False),
    Flag(
        ("--no-display-prompt",), "display_prompt", "do not print the prompt first", constant=False
    ),
    Flag(("--display-prompt",), "display_prompt", "print the prompt first (default)"),
    Flag(("--no-warmup",), "warmup", "skip the empty run after loading", constant=False),
    Flag(("--warmup",), "warmup", "warm up with an empty run (default)"),
    Flag(("--mmap",), "mmap", "map the model file into memory"),
    Flag(("--no-mmap",), "mmap", "read the model into memory", constant=False),
    Flag(("--mlock",), "mlock", "keep the model in RAM"),
    Flag(
        ("-fa", "--flash-attn"),
        "flash_attention",
        "flash attention: on, off or auto (default); alone, on",
        "[on|off|auto]",
        constant="on",
        optional=ON_OFF,
    ),
    NUMA,
    Flag(("--prio",), "priority", _IDLE, "N", whole),
    Flag(("--poll",), "poll", _IDLE, "N", whole),
    Flag(("-ngl", "--gpu-layers", "--n-gpu-layers"), "", "accepted; everything is on the CPU", "N"),
    Flag(("--simple-io",), "", "accepted; input and output are simple"),
    Flag(("--no-perf", "-no-perf"), "perf", "do not print timings at the end", constant=False),
    Flag(("--perf",), "perf", "print timings at the end (default)"),
    Flag(("--log-disable",), "log", "nothing but errors on standard error", constant=False),
    Flag(("-v", "--verbose"), "verbose", "let llama.cpp tell what it does"),
)
