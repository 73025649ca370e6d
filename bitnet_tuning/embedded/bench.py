"""The embedded llama-bench: measure prompt processing and token generation separately."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from bitnet_tuning.embedded.engine import EmbeddedEngine, PhaseTimes
from bitnet_tuning.embedded.flags import LOAD_FLAGS, CliFlag, LookAlike, Options
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.gguf import read_model

FLASH = {None: -1, False: 0, True: 1}
"""llama-bench's numbers for flash attention: auto, off, on."""


class PhaseTest(NamedTuple):
    """A test with either prompt tokens or generated tokens; one row of the result."""

    n_prompt: int
    n_gen: int

    @property
    def name(self) -> str:
        """Return the name that llama-bench gives it, such as pp512 or tg128."""
        return f"pp{self.n_prompt}" if self.n_prompt else f"tg{self.n_gen}"

    @property
    def context(self) -> int:
        """Return the size of the context that it needs, in tokens."""
        # Generation starts from one token, and every test samples one more than it counts: _run.
        return max(self.n_prompt, 1) + self.n_gen + 1


def run(options: Options) -> None:
    """Measure, and print a row for each test as JSON; a size of 0 tokens leaves out its test. Raise
    TuningError if a test cannot run."""
    pairs = ((options.n_prompt, 0), (0, options.n_gen))
    tests = [PhaseTest(*pair) for pair in pairs if any(pair)]
    limit = None
    with suppress(TuningError):  # Loading the model reports the error.
        limit = read_model(options.model).context_length
    for test in tests:
        if limit is not None and test.context > limit:
            needs = f"{test.name} needs a context of {test.context} tokens"
            raise TuningError(f"{needs}, the model has {limit}")
    options.context = max((test.context for test in tests), default=1)
    engine = EmbeddedEngine(options)
    file = read_model(options.model)
    shared = {
        "engine": f"embedded (xllamacpp {engine.binding.__version__})",
        "model_filename": file.path,
        "model_type": f"{file.architecture} {file.quantization.upper()}",
    }
    vocabulary = file.vocabulary or 256  # no model has fewer
    rows = []
    for test in tests:
        started = time.time()
        _run(engine, PhaseTest(test.n_prompt, min(test.n_gen, 1)), vocabulary)  # warm up
        durations = [_run(engine, test, vocabulary) for _ in range(options.repetitions)]
        rows.append(shared | record(options, test, started, durations))
    print(json.dumps(rows, indent=2), flush=True)


def record(
    options: Options, test: PhaseTest, started: float, durations: Sequence[int]
) -> dict[str, Any]:
    """Return a row with llama-bench's keys. ``durations`` are in nanoseconds, like the keys that
    end in ``_ns``; those in ``_ts`` are in tokens/s."""
    speeds = [1e9 * (test.n_prompt + test.n_gen) / duration for duration in durations]
    return {
        "n_batch": options.batch,
        "n_ubatch": options.ubatch,
        "n_threads": options.threads,
        "use_mmap": options.mmap,
        "flash_attn": FLASH[options.flash],
        "n_prompt": test.n_prompt,
        "n_gen": test.n_gen,
        "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "avg_ns": int(statistics.fmean(durations)),
        "stddev_ns": int(_spread(durations)),
        "avg_ts": round(statistics.fmean(speeds), 6),
        "stddev_ts": round(_spread(speeds), 6),
        "samples_ns": durations,
        "samples_ts": [round(speed, 6) for speed in speeds],
    }


def _spread(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 for a single run, as in llama-bench."""
    return float(statistics.stdev(values)) if len(values) > 1 else 0.0


def _run(engine: EmbeddedEngine, test: PhaseTest, vocabulary: int) -> int:
    """Run one test once and return its time in nanoseconds, by the engine's clock."""
    # Unlike llama-bench's, the time includes choosing the likeliest token and turning it into
    # text: some tens of microseconds for each token.
    # Like llama-bench, start a generation test from a single token.
    n_prompt = max(test.n_prompt, 1)
    # predicted_ms begins when the first token has been sampled from the prompt's last step. With
    # one token more than the test has, it covers exactly n_gen steps of one token each.
    request = {
        "prompt": [random.randrange(vocabulary) for _ in range(n_prompt)],
        "n_predict": test.n_gen + 1,
        "temperature": 0,
        "samplers": ["temperature"],
        "ignore_eos": True,
        "cache_prompt": False,
    }
    newest = PhaseTimes()
    for piece in engine.complete(request):
        newest = piece.times or newest
    if (newest.prompt_n, newest.runs) != (n_prompt, test.n_gen):
        read = f"{newest.prompt_n} of {n_prompt} prompt tokens were processed"
        written = f"{newest.runs} of {test.n_gen} tokens generated"
        raise TuningError(f"{test.name} stopped early: {read} and {written}")
    milliseconds = newest.predicted_ms + (newest.prompt_ms if test.n_prompt else 0.0)
    # The clock counts microseconds: 0 means less than one.
    return max(int(1e6 * milliseconds), 1)


_SHARED = ("help", "version", "model", "threads", "ubatch", "flash", "numa", "")

PROGRAM = LookAlike(
    "embedded bench: llama-bench made of xllamacpp (mainline llama.cpp, CPU only)",
    (
        *(flag for flag in LOAD_FLAGS if flag.field in _SHARED),
        CliFlag("-p, --n-prompt N", "n_prompt", "prompt tokens (default: 512)", int, 0),
        CliFlag("-n, --n-gen N", "n_gen", "tokens to generate (default: 128)", int, 0),
        CliFlag("-r, --repetitions N", "repetitions", "runs of each test (default: 5)", int, 1),
        CliFlag("-mmp, --mmap 0|1", "mmap", "map the model file", {"0": False, "1": True}),
        CliFlag("-o, --output FORMAT", "output", "json (default)", {"json": "json"}),
    ),
    {"n_prompt": 512, "n_gen": 128, "repetitions": 5, "mmap": True},
    run,
)
