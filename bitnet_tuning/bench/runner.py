"""Measure one setting of an engine: a speed comes back, or the reason why there is none."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from bitnet_tuning.bench import llama_bench
from bitnet_tuning.bench.comparison import DEFAULT, Run, Sizes
from bitnet_tuning.bench.llama_bench import NEEDED, Bench, FailedRunError, Samples, check_cli, stale
from bitnet_tuning.engine.probe import parse_flags
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch.background import Captured, capture
from bitnet_tuning.launch.failure import failure
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import PP, TG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.plan.facts import Facts, Request
    from bitnet_tuning.plan.setting import Setting


def find_bench(engine: Engine) -> Bench | None:
    """Return the llama-bench beside the engine with its flags; None where there is none that
    works."""
    if engine.embedded:
        program = (*engine.program(False), "bench")
    elif engine.bench is not None:
        program = (engine.bench,)
    else:
        return None
    said = capture((*program, "--help"))
    flags = frozenset(parse_flags(said.stdout + said.stderr))
    return Bench(program, flags) if flags >= NEEDED else None


class Runner:
    """Measures settings of one engine with one model. ``sizes`` may be set between runs."""

    def __init__(
        self, facts: Facts, bench: Bench | None, sizes: Sizes, patience: Patience | None = None
    ) -> None:
        """``bench`` as ``find_bench`` answers; without one the cli's own timings serve."""
        self.facts = facts
        self.bench = bench
        self.sizes = sizes
        self.patience = patience or Patience()
        self._longest: dict[tuple[Sizes, tuple[str, ...]], float] = {}

    def measure(self, name: str, setting: Setting, phases: tuple[str, ...] = (PP, TG)) -> Run:
        """Measure the phases once. A failure is a run without samples; only an interrupt is
        raised."""
        started = time.monotonic()
        try:
            samples = self._samples(setting, phases, self.seconds(phases))
        except (FailedRunError, UnsupportedError) as error:
            problem = error.cause if isinstance(error, UnsupportedError) else str(error)
            return Run(name, {}, time.monotonic() - started, problem)
        taken = time.monotonic() - started
        if name == DEFAULT:
            kind = (self.sizes, phases)
            self._longest[kind] = max(taken, self._longest.get(kind, 0.0))
        return Run(name, samples, taken)

    def seconds(self, phases: tuple[str, ...] = (PP, TG)) -> float:
        """Return how long a process that measures these phases may take now."""
        seen = [
            taken
            for (sizes, measured), taken in self._longest.items()
            if sizes == self.sizes and set(measured) >= set(phases)
        ]
        return self.patience.after(max(seen, default=None))

    def _samples(self, setting: Setting, phases: tuple[str, ...], seconds: float) -> Samples:
        if self.bench is None:
            return self._by_cli(setting, phases, seconds)
        commands = llama_bench.bench_commands(
            setting, self.bench, self.facts.model.path, self.sizes, phases
        )
        samples: Samples = {}
        for command in commands:
            done = run_setting(setting, command.argv, seconds)
            samples |= llama_bench.parse_bench(done.stdout, command.rows)
        return samples

    def _by_cli(self, setting: Setting, phases: tuple[str, ...], seconds: float) -> Samples:
        facts = self.facts
        request = llama_bench.cli_request(self.sizes, phases, facts.model, facts.engine.flags)
        for _ in range(TRIES):
            done = run_cli(facts, setting, request, seconds)
            if not llama_bench.is_cut_short(done.stderr):
                break
        return llama_bench.parse_cli(done.stderr, self.sizes, phases)


TRIES = 3
"""Most runs of a cli where the end of what it prints may be lost. llama-completion of late 2026
loses it now and then (llama.cpp issue 22142: its log thread is not waited for)."""


class Patience(NamedTuple):
    """How long a process may take before it counts as hung, in seconds."""

    first: float = 120.0
    """Before the default has run: a model may come from a slow disk."""
    least: float = 20.0
    factor: float = 8.0
    """Afterwards, times what the default took. Rare disturbances of a shared machine
    reach a factor of five."""

    def after(self, longest: float | None) -> float:
        """Return the seconds from the longest run of the default, None before there is one."""
        return self.first if longest is None else max(self.least, self.factor * longest)


def run_setting(setting: Setting, argv: tuple[str, ...], seconds: float) -> Captured:
    """Run a program with the setting's environment, CPUs and niceness. Raises FailedRunError."""
    unset = stale(setting, os.environ)
    variables, nice = setting.variables, setting.nice
    done = capture(argv, variables, seconds, unset=unset, cpus=setting.cpus, nice=nice)
    problem = failure(done, seconds)
    if problem:
        raise FailedRunError(problem)
    return done


def run_cli(facts: Facts, setting: Setting, request: Request, seconds: float) -> Captured:
    """Run the engine's cli with the setting. Raises FailedRunError, and UnsupportedError where
    engine and model cannot work together and for a knob that the cli does not have."""
    check_cli(setting, facts.engine.flags)
    return run_setting(setting, make_plan(request, facts, setting).command, seconds)


PHASE_SECONDS = 0.6
"""Seconds aimed at for one phase of one run. Many short runs beat a few long ones: what disturbs a
shared machine lasts for seconds, and a paired comparison needs rounds."""

LEAST_PROMPT, MOST_PROMPT = 16, 512
LEAST_GENERATED, MOST_GENERATED = 8, 128
MOST_REPETITIONS = 5


FIRST = Sizes(16, 4, 1)
"""Sizes of the first run, which reads the model from disk and tells how fast it is at all."""

SECOND = Sizes(32, 8, 1)


def choose_sizes(
    prompt_rate: float,
    generation_rate: float,
    context: int | None,
    n_prompt: int | None = None,
    n_gen: int | None = None,
) -> Sizes:
    """Return sizes from tokens/s that were seen. Sizes that the user named stay, and each
    phase fits into the model's ``context``."""
    prompt = n_prompt or _power_of_two(prompt_rate * PHASE_SECONDS, LEAST_PROMPT, MOST_PROMPT)
    generated = n_gen or _power_of_two(
        generation_rate * PHASE_SECONDS, LEAST_GENERATED, MOST_GENERATED
    )
    if context is not None and not n_prompt:
        prompt = min(prompt, max(1, context // 2))
    if context is not None and not n_gen:
        generated = min(generated, max(1, context // 4))
    # The shorter phase may take a while longer; the longer one sets the pace.
    seconds = max(prompt / prompt_rate, generated / generation_rate)
    repetitions = max(1, min(MOST_REPETITIONS, round(PHASE_SECONDS / seconds)))
    return Sizes(prompt, generated, repetitions)


def _power_of_two(wanted: float, least: int, most: int) -> int:
    """Return the largest one that is not above ``wanted``, within the limits."""
    size = least
    while size * 2 <= min(wanted, most):
        size *= 2
    return size
