"""Measure prompt processing and generation apart, as llama-bench does."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from bitnet_tuning._embedded import bench_options
from bitnet_tuning._embedded.bench_options import BenchOptions, Config, Test
from bitnet_tuning._embedded.errors import EngineError
from bitnet_tuning._embedded.timings import Timings
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.gguf import read_model

NS_PER_MS = 1e6


class Sample(NamedTuple):
    """Tokens that one run processed and how long it took."""

    tokens: int
    nanoseconds: int


def main(argv: Sequence[str]) -> int:
    """Run a llama-bench command line. Returns the exit code.

    Raises TuningError for what cannot be done.
    """
    options = bench_options.parse(argv)
    if options.help:
        sys.stdout.write(bench_options.help_text() + f"\n{bench_options.SEVERAL}\n")
        return 0
    if options.repetitions < 1:
        raise EngineError('error while handling argument "-r": must be at least 1')
    from bitnet_tuning._embedded.bench_report import PRINTERS  # noqa: PLC0415 (not for help's sake)

    _check_fit(options.model, bench_options.tests(options))
    printer = PRINTERS[options.output](options)
    printer.begin()
    for row in _rows(options):
        printer.row(row)
    printer.end()
    return 0


def _rows(options: BenchOptions) -> Iterator[dict[str, Any]]:
    from bitnet_tuning._embedded.bench_report import describe, record  # noqa: PLC0415
    from bitnet_tuning._embedded.engine import Engine  # noqa: PLC0415

    tests = bench_options.tests(options)
    for config in bench_options.configs(options):
        engine = Engine(_setup(options, config, tests))
        facts = describe(engine, options.model)
        for test in tests:
            time.sleep(options.delay)
            if options.progress:
                print(f"embedded bench: {test.name} {config}", file=sys.stderr, flush=True)
            started = time.time()
            samples = list(_measure(engine, options, test, facts.vocabulary))
            yield record(facts, config, test, started, samples)
        # Two models at once may not fit into memory.
        engine.close()


def _check_fit(model: str, tests: list[Test]) -> None:
    """Refuse at once what the engine would refuse after having loaded the model."""
    from bitnet_tuning._embedded.engine import check_readable  # noqa: PLC0415

    check_readable(model)
    try:
        limit = read_model(model).context_length
    except TuningError:
        return  # Loading says better what is wrong.
    for test in tests:
        if limit is not None and test.context > limit:
            raise EngineError(
                f"{test.name} takes a context of {test.context} tokens, the model has {limit}"
            )


def _setup(options: BenchOptions, config: Config, tests: list[Test]) -> Any:
    from bitnet_tuning._embedded.binding import Setup  # noqa: PLC0415

    return Setup(
        model=options.model,
        context=max((test.context for test in tests), default=1),
        threads=config.threads,
        threads_batch=config.threads,
        batch=config.batch,
        ubatch=config.ubatch,
        mmap=config.mmap,
        flash_attention=config.flash_attention,
        numa=options.numa,
        warmup=options.warmup,
        verbose=options.verbose,
    )


def _measure(engine: Any, options: BenchOptions, test: Test, vocabulary: int) -> Iterator[Sample]:
    if options.warmup:
        _run(engine, Test(test.n_prompt, min(test.n_gen, 1)), vocabulary)
    for _ in range(options.repetitions):
        yield _run(engine, test, vocabulary)


def _run(engine: Any, test: Test, vocabulary: int) -> Sample:
    """One run of one test, by the engine's own clock.

    The engine's ``predicted_ms`` begins when the first token has been sampled from
    the prompt's last step. Asking for one token more than the test has makes it
    cover exactly ``n_gen`` steps of one token each, which is what llama-bench
    times; dividing ``predicted_n`` by it would flatter short runs. A generation
    test starts, like llama-bench's, from a single token. Two things stay in the
    figure that llama-bench leaves out: picking the likeliest token and turning it
    into text, some tens of microseconds a step.
    """
    tokens = [random.randrange(vocabulary) for _ in range(max(test.n_prompt, 1))]
    request = {
        "prompt": tokens,
        "n_predict": test.n_gen + 1,
        "temperature": 0,
        "samplers": ["temperature"],
        "ignore_eos": True,
        "cache_prompt": False,
    }
    newest = _timed(engine, test, request)
    milliseconds = newest.predicted_ms + (newest.prompt_ms if test.n_prompt else 0.0)
    # The clock has microseconds; a step that shows none took less than one.
    nanoseconds = max(int(milliseconds * NS_PER_MS), 1)
    return Sample(test.n_prompt + test.n_gen, nanoseconds)


def _timed(engine: Any, test: Test, request: dict[str, Any]) -> Timings:
    newest = Timings()
    for piece in engine.complete(request):
        newest = piece.timings or newest
    if (newest.prompt_n, newest.runs) != (max(test.n_prompt, 1), test.n_gen):
        raise EngineError(f"{test.name} did not run in full: {newest}")
    return newest
