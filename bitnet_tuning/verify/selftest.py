"""Check that a build computes the right tokens: the demo model knows some texts by heart, and every
correct kernel continues them in the same words."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from math import inf

from bitnet_tuning import demo
from bitnet_tuning.console import command, counted
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.engine.instruction_sets import X86, has
from bitnet_tuning.errors import MissingError
from bitnet_tuning.launch.background import capture
from bitnet_tuning.launch.failure import NO_END, NO_THREADS, failure, thread_shortage
from bitnet_tuning.machine.cgroups import read_task_limits
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.plan import make_plan

RUN_SECONDS = 30.0
"""Seconds after which a run is too slow to tell; most take a fraction of a second."""

END_MARK = "[end of text]"
"""What llama-cli prints after the last word of a text that the model ended."""

CONTEXT = 512
"""Context size in tokens."""

BEYOND = 32
"""Number of tokens to generate beyond the expected text, which may get lost: llama-completion of
late 2026 sometimes exits before its last words are printed (llama.cpp issue 22142)."""


class KnownText(NamedTuple):
    """A prompt and the greedy text that must follow it, of ``tokens`` tokens."""

    prompt: str
    text: str
    tokens: int


class Variant(NamedTuple):
    """The threads and batch sizes of one run; None leaves the engine's default batch size."""

    threads: int
    batch: int | None = None
    ubatch: int | None = None

    def __str__(self) -> str:
        sizes = f", batch {self.batch}/{self.ubatch}" if self.batch else ""
        return f"{counted(self.threads, 'thread')}{sizes}"


class Result(NamedTuple):
    """The result of one run."""

    case: KnownText
    variant: Variant
    passed: bool | None
    """None if the run did not end in time and its text so far is not wrong."""
    got: str
    problem: str | None = None
    """Why the run failed; None if the engine exited normally."""


class Report(NamedTuple):
    """The result of a whole self-test."""

    engine: str
    model: str
    results: tuple[Result, ...]
    cause: str | None = None
    remedy: str | None = None

    @property
    def right(self) -> int:
        """Number of runs that gave the expected text."""
        return sum(result.passed is True for result in self.results)

    @property
    def passed(self) -> bool | None:
        """False if a run is wrong; None if none is, but some did not end in time."""
        found = {result.passed for result in self.results}
        return False if False in found else None if None in found else True

    @property
    def diagnosis(self) -> str | None:
        """Cause and remedy in one line."""
        return f"{self.cause}: {self.remedy}" if self.remedy else self.cause


def load_cases() -> tuple[KnownText, ...]:
    """Return the prompts and texts that ship with the demo model. Raise MissingError."""
    try:
        with open(demo.EXPECTED, encoding="utf-8") as file:
            cases = json.load(file)["cases"]
    except (OSError, ValueError, KeyError) as error:
        cause = f"cannot read {demo.EXPECTED}: {error}"
        raise MissingError(cause, "install bitnet-tuning again") from error
    return tuple(KnownText(case["prompt"], case["text"], case["tokens"]) for case in cases)


def variants(cases: Sequence[KnownText], usable: int) -> Iterator[tuple[KnownText, Variant]]:
    """Yield each prompt with one way to run it on ``usable`` cores. Long prompts are cut into
    batches, so that kernels for one and for many tokens take turns; the others run with one thread,
    with half of the cores, or with all."""
    most = max(2, usable)
    ways = (
        Variant(most, 32, 32),
        Variant(most, 64, 7),
        Variant(most, 32, 1),
        Variant(1),
        Variant(most),
        Variant(max(2, most // 2)),
    )
    yield from zip(sorted(cases, key=lambda case: -len(case.prompt)), cycle(ways), strict=False)


def run_selftest(
    engine: Engine, host: Host, model_path: str | None = None, until: float = inf
) -> Report:
    """Run every case; after one that does not end in time, with one thread, until one of these does
    not end either. No case but the first starts after ``until``, by the monotonic clock.
    ``model_path`` names another file of the demo model. Raise MissingError if the file does not
    exist, UnsupportedError if the engine cannot load it."""
    model = read_model(model_path or demo.right_model(engine.i2_s))
    results: list[Result] = []
    is_slow = False
    for case, variant in variants(load_cases(), host.usable_cores):
        way = variant._replace(threads=1) if is_slow else variant
        results.append(run_case(engine, host, model, case, way))
        if (results[-1].problem or "").startswith(NO_END):
            if way.threads == 1:
                break
            is_slow = True
        if time.monotonic() >= until:
            break
    report = Report(engine.path, model.path, tuple(results))
    if report.passed:
        return report
    if report.passed is None:
        idle = f"try it when the machine is idle, and see `{command('doctor')}`"
        return report._replace(cause="too slow to tell", remedy=idle)
    if NO_THREADS in " ".join(result.problem or "" for result in results):
        threads = max(result.variant.threads for result in results)
        named = thread_shortage(read_task_limits(Root()), threads)
        return report._replace(cause=named or NO_THREADS)
    control = None
    if report.model == demo.I2_S and engine.i2_s is not False:  # else it cannot be tried
        tq2_0, first = read_model(demo.TQ2_0), report.results[0]
        control = run_case(engine, host, tq2_0, first.case, Variant(1)).passed
    cause, remedy = next(causes(report, engine, host, control))
    return report._replace(cause=cause, remedy=remedy)


def run_case(
    engine: Engine, host: Host, model: ModelFile, case: KnownText, variant: Variant
) -> Result:
    """Run a case, and run it again if its text is right but ends early (see BEYOND)."""
    request = case_request(case)._replace(**variant._asdict())
    facts = Facts(host, engine, model, "the demo model", os.environ, force=True)
    plan = make_plan(request, facts)
    for is_first in (True, False):
        done = capture(plan.command, plan.setting.variables, RUN_SECONDS)
        problem = failure(done, RUN_SECONDS)
        # Before the end of the prompt's echo there is no text.
        begun = done.code is not None or case.prompt in done.stdout
        got = continuation(done.stdout, case.prompt) if begun else ""
        complete = matches(got, case.text)
        cut_short = not complete and matches(case.text, got)
        if done.code is None and (cut_short or complete):
            size, whole = len(got.strip()), len(case.text.strip())
            seen = f"{problem}; nothing is wrong in the first {min(size, whole)} of {whole} letters"
            return Result(case, variant, complete or None, got, seen)
        if not (is_first and cut_short and problem is None):
            break
    return Result(case, variant, complete and problem is None, got, problem)


def case_request(case: KnownText) -> Request:
    """Return the request that makes an engine generate a case's text."""
    return Request(
        prompt=case.prompt, n_predict=case.tokens + BEYOND, ctx_size=CONTEXT, temperature=0.0
    )


def continuation(stdout: str, prompt: str) -> str:
    """Return the text that the engine added to the prompt, without the mark of a text's end."""
    _, found, after = stdout.partition(prompt)
    text = (after if found else stdout).rstrip()
    return text.removesuffix(END_MARK).rstrip()


def matches(got: str, expected: str) -> bool:
    """Return whether a text begins as expected, but for white space, in which engines differ."""
    return got.strip().startswith(expected.strip())


def first_difference(got: str, expected: str) -> int:
    """Return the index of the first character that differs, or the length of the shorter text."""
    pairs = enumerate(zip(got, expected, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(got), len(expected)))


def causes(
    report: Report, engine: Engine, host: Host, control: bool | None
) -> Iterator[tuple[str, str]]:
    """Yield every possible cause of a failure with its remedy, the likeliest first; at least one.
    ``control`` is whether the same weights as TQ2_0 give the right text; None if not tried."""
    failed = [result for result in report.results if result.passed is False]
    problems = " ".join(result.problem or "" for result in failed)
    cpu = has(host.isa)
    may_have_i2_s = cpu & X86 and engine.i2_s is not False
    if "tensor type 36" in problems or "invalid ggml type 36" in problems:
        yield "the engine is mainline llama.cpp, which has no i2_s kernels", "build bitnet.cpp"
    if "SIGILL" in problems:
        yield "the build uses instructions that this CPU lacks", "build it on this machine"
    if may_have_i2_s and "AVX2" not in cpu:
        cause = "this CPU has no AVX2, which the i2_s kernels need"
        yield cause, "use a TQ2_0 or TQ1_0 file of the model with mainline llama.cpp"
    elif may_have_i2_s and engine.isa and "AVX2" not in engine.isa:
        cause = "the build lacks AVX2, which the i2_s kernels need and this CPU has"
        yield cause, "build it again with -DGGML_NATIVE=ON, or with -DGGML_AVX2=ON -DGGML_FMA=ON"
    whole = [result.passed for result in report.results if not result.variant.batch]
    if any(whole) and all(result.variant.batch for result in failed):
        sizes = "; ".join(sorted({str(result.variant) for result in failed}))
        yield f"only prompts cut into batches go wrong ({sizes})", "do not set -b and -ub"
    one_thread = [result.passed for result in report.results if result.variant.threads == 1]
    if any(one_thread) and all(result.variant.threads > 1 for result in failed):
        cause = "only runs with several threads go wrong: the OpenMP runtime does not fit the build"
        yield cause, "build it again on this machine"
    if control:
        cause = "the i2_s kernels are wrong: the same weights as TQ2_0 give the right text"
        yield cause, "build bitnet.cpp again with clang 18 or later, for this CPU"
    cause = "the build is broken, or the demo model is damaged"
    yield cause, "build bitnet.cpp again with clang 18 or later, or install bitnet-tuning again"
