"""The embedded llama-cli: its flags, and a run from loading to the timings."""

from __future__ import annotations

import os

from bitnet_tuning.console import tell
from bitnet_tuning.embedded.chat import CliOptions, complete, talk, template_for
from bitnet_tuning.embedded.engine import EmbeddedEngine, PhaseTimes
from bitnet_tuning.embedded.flags import CliFlag, from_file, real, whole
from bitnet_tuning.embedded.options import LOAD_FLAGS, LookAlike


def run(options: CliOptions) -> None:
    """Complete a prompt or chat. Raise TuningError for an unusable model or a refused prompt."""
    if options.chat:
        options.chat_template = template_for(options.model)
    engine = EmbeddedEngine(options)
    if not options.quiet:
        tell(f"\n{engine.system_info()}\n")
    rows: list[PhaseTimes] = []
    try:
        (talk if options.chat else complete)(options, engine, rows)
    finally:
        # Also after Ctrl-C, with the times until then.
        if not options.quiet:
            tell(engine.perf(rows))


PROGRAM = LookAlike(
    "embedded: llama-cli built on xllamacpp (mainline llama.cpp, CPU only)",
    (
        *LOAD_FLAGS,
        CliFlag("-p, --prompt TEXT", "prompt", "prompt; in a chat the system prompt", os.fsencode),
        CliFlag("-f, --file FNAME", "prompt", "file that holds the prompt", from_file),
        CliFlag("-n, --predict, --n-predict N", "n_predict", "tokens to generate", whole),
        CliFlag("-s, --seed SEED", "seed", "sampling seed (default: -1, random)", whole),
        CliFlag("--temp, --temperature N", "temperature", "temperature; 0 is greedy", real),
        CliFlag("--top-k N", "top_k", "top-k sampling; 0 is off", whole),
        CliFlag("--top-p N", "top_p", "top-p sampling; 1.0 is off", real),
        CliFlag("--min-p N", "min_p", "min-p sampling; 0.0 is off", real),
        CliFlag("--repeat-penalty N", "repeat_penalty", "repetition penalty; 1.0 is off", real),
        CliFlag("--ignore-eos", "ignore_eos", "continue past the end of the text"),
        CliFlag("-cnv, --conversation", "chat", "chat: read messages from standard input"),
        CliFlag("-no-cnv, --no-conversation", "chat", "complete the prompt (default)"),
        CliFlag("--log-disable", "quiet", "print only errors on standard error"),
    ),
    CliOptions,
    run,
)
