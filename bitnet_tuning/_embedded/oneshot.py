"""Complete one prompt and end, as llama-cli did and llama-completion does."""

from __future__ import annotations

from typing import Any

from bitnet_tuning._embedded import output, sampling, text
from bitnet_tuning._embedded.engine import Engine
from bitnet_tuning._embedded.options import Options
from bitnet_tuning._embedded.timings import Timings


def run(options: Options, engine: Engine) -> int:
    """Print the prompt and what the model makes of it. Returns the exit code."""
    last: list[Timings] = []
    try:
        _generate(options, engine, last)
    finally:
        # Also when Ctrl-C ends it: what was done has taken its time.
        if options.perf and options.log:
            output.note(engine.perf(last))
    return 0


def _generate(options: Options, engine: Engine, last: list[Timings]) -> None:
    """Write prompt and text; ``last`` holds the newest timings at any moment."""
    if options.display_prompt:
        output.write(options.prompt)
    until = output.Until(options.reverse_prompts)
    for piece in until(engine.complete(_request(options))):
        # The server cannot generate nothing: -n 0 costs one token, which is not shown.
        if options.n_predict:
            output.write(piece.text)
        if piece.timings:
            last[:] = [piece.timings]
        if piece.finish == "stop":
            output.write(b" [end of text]")
    output.write(b"\n")


def _request(options: Options) -> dict[str, Any]:
    prompt = text.for_model(options.prompt)
    return {**sampling.request(options), "prompt": prompt, "cache_prompt": False}
