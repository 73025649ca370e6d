"""Measure the speed of an engine with one setting, or find out why it fails."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from math import ceil
from statistics import median
from typing import NamedTuple, TypeVar

from bitnet_tuning.bench import llama_bench, resident
from bitnet_tuning.bench.comparison import DEFAULT, Run, Sizes
from bitnet_tuning.bench.limits import Ceiling
from bitnet_tuning.bench.llama_bench import NEEDED, Bench, FailedRunError, Samples, check_cli, stale
from bitnet_tuning.console import say
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.engine.probe import flags_of, parse_timings
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch.background import Captured, capture
from bitnet_tuning.launch.failure import NO_END, failure
from bitnet_tuning.launch.signals import handling, present
from bitnet_tuning.model.types import bytes_per_token
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.setting import Setting

T = TypeVar("T")


def unpaused(work: Callable[[], T]) -> T:
    """Return what ``work`` returns, of another try if this process was stopped meanwhile, which
    spoils measurements and time limits."""
    stops = [0]
    while stops:
        stops.clear()
        with handling(dict.fromkeys(present("SIGCONT"), lambda number, _: stops.append(number))):
            try:
                found = work()
            except UnsupportedError:
                if not stops:
                    raise
    return found


def find_bench(engine: Engine) -> Bench | None:
    """Return the engine's llama-bench with its flags; None if there is none that works."""
    program = engine.other("bench")
    flags = flags_of(program) if program else frozenset()
    return Bench(program, flags) if flags >= NEEDED else None


def make_runner(facts: Facts, budget: float, *lengths: int | None) -> Runner:
    """Return a runner, of servers if they can measure, for a ``budget`` in seconds and ``lengths``
    of slices in tokens that users named. Raise TuningError if there is no plan."""
    residents = resident.find_residents(facts, max(filter(None, lengths), default=0))
    patience = patience_within(budget) if residents else None
    return Runner(facts, find_bench(facts.engine), FIRST, patience, residents)


class Runner:
    """Measures settings of one engine with one model. ``sizes`` may change between runs."""

    def __init__(
        self,
        facts: Facts,
        bench: Bench | None,
        sizes: Sizes,
        patience: Patience | None = None,
        residents: resident.Residents | None = None,
    ) -> None:
        """``residents`` measure if there are any, else ``bench``, which is what ``find_bench``
        returns; without both, the cli's own timings are used. Raise TuningError without a plan."""
        self.facts = facts
        self.default = make_plan(Request(), facts._replace(profile=None)).setting
        """The setting that the plan computes without a profile; all others are compared with it."""
        self.bench = bench
        self.residents = residents
        self.sizes = sizes
        self.patience = patience or Patience()
        self.ceiling = Ceiling(facts.host)
        self._claimed = 0.0
        """Seconds that the speeds of the latest run stand for."""
        self._rates: dict[str, float] = {}
        """Tokens/s of the default's latest run, by phase."""
        self.longest: dict[Sizes | None, float] = {}
        """Seconds of the default's longest run, by its sizes; None stands for all runs for which a
        server had to load the model."""

    def measure(self, name: str, setting: Setting, phases: tuple[str, ...] = (PP, TG)) -> Run:
        """Measure the phases once. A failure is returned as ``problem``; only interrupts raise."""
        return unpaused(lambda: self._measure(name, setting, phases))

    def _measure(self, name: str, setting: Setting, phases: tuple[str, ...]) -> Run:
        started, cpu, facts = time.monotonic(), None, resident.with_file(self.facts, setting)
        residents, sizes = self.residents, self.sizes
        loads = residents is None or not residents.has(setting)
        key = None if residents and loads else sizes
        # The other file may not be in memory yet.
        is_known = facts is self.facts or not loads
        longest = self.longest.get(key) if is_known else None
        if longest is not None and key is None:  # for loading, with slices of any length
            longest += sum(map(self._expected, (PP, TG))) * sizes.repetitions
        seconds = self.patience.after(longest)
        self._claimed = 0.0
        try:
            if residents is not None:
                samples, cpu = self._by_server(setting, phases, seconds)
            elif self.bench is not None:
                samples = self._by_bench(self.bench, facts, setting, phases, seconds)
            else:
                samples = self._by_cli(facts, setting, phases, seconds)
        except UnsupportedError as error:
            return Run(name, {}, time.monotonic() - started, error.cause)
        taken = time.monotonic() - started
        read, speed = bytes_per_token(facts.model.parts), median(samples.get(TG, (0.0,)))
        if problem := self.ceiling.objection(read, speed, setting.cpus):
            return Run(name, {}, taken, problem)
        if name == DEFAULT:
            self.longest[key] = max(taken, self.longest.get(key, 0.0))
            self._rates |= {phase: median(found) for phase, found in samples.items()}
        return Run(name, samples, taken, cpu=cpu)

    def _expected(self, phase: str) -> float:
        """Return the seconds that a phase should take at the default's speed; 0 if unknown."""
        tokens = self.sizes.n_prompt if phase == PP else self.sizes.n_gen
        return tokens / self._rates[phase] if phase in self._rates else 0.0

    def measure_alone(self, name: str, setting: Setting, phase: str, sizes: Sizes) -> Run:
        """Measure a phase once with other sizes. Raise FailedRunError if the run fails."""
        usual, self.sizes = self.sizes, sizes
        try:
            run = self.measure(name, setting, (phase,))
        finally:
            self.sizes = usual
        if run.problem is not None:
            raise FailedRunError(run.problem)
        return run

    def contradiction(self, name: str, setting: Setting, phases: tuple[str, ...]) -> str | None:
        """Return how our own clock contradicts the speeds that a setting's programs print, or why
        they fail; None if all is well. What contradicts once may be another program's fault."""
        # Slices of a server that last long enough are checked one by one.
        too_short = {each for each in phases if self._expected(each) < resident.LEAST_SECONDS}
        try:
            for phase in phases if self.residents is None else too_short:
                if all(found := self._doubt(name, setting, phase) for _ in range(resident.TRIES)):
                    return found
        except FailedRunError as failed:
            return failed.cause
        return None

    def _doubt(self, name: str, setting: Setting, phase: str) -> str | None:
        """Compare a long run with a short one, so that loading cancels out."""
        sizes, expected = self.sizes, self._expected(phase)
        room = (self.facts.model.context_length or 6 * sizes.n_gen) // 2
        room = min(room, self.residents.context // 2) if self.residents else room
        most = max(3 * sizes.n_gen, MOST_GENERATED)
        long = Sizes(sizes.n_prompt, max(sizes.n_gen, min(most, room)), 1)
        short = Sizes(max(1, sizes.n_prompt // 4), max(1, sizes.n_gen // 4), 1)
        if self.program == PROGRAMS[1]:
            short = sizes._replace(repetitions=1)
            more = ceil(min(LONG_SECONDS / expected, MOST_MORE)) if expected else 3
            long = sizes._replace(repetitions=1 + more)
        taken = claimed = 0.0
        for each in (short, long):
            run = self.measure_alone(name, setting, phase, each)
            taken, claimed = run.seconds - taken, self._claimed - claimed
        by_cli = self.residents is None and self.bench is None
        if resident.agree(claimed, taken, CHOOSING_SECONDS * long.n_gen if by_cli else 0.0):
            return None
        return f"{claimed:.3g} s more of {phase} by its own speed took {taken:.3g} s more"

    def first_runs(self, running: Callable[[str], None] = lambda what: None) -> Run:
        """Measure two short runs of the default: the first reads the model from disk, the second
        shows the engine's speed. Return the second, or the first that failed. If the engine's
        server fails, other programs measure from here on."""
        run = Run(DEFAULT, {}, 0.0)
        for self.sizes, what in ((FIRST, "loading the model"), (SECOND, "estimating the speed")):
            running(what)
            run = self.warm()
            if run.problem is not None and self.residents is not None:
                self.use_processes(run.problem)
                run = self.warm()
            if run.problem is not None:
                break
        return run

    def warm(self) -> Run:
        """Run the default, so that the model is in memory, again if it fails without hanging."""
        run = self.measure(DEFAULT, self.default)
        if run.problem is None or run.problem.startswith(NO_END):
            return run
        return self.measure(DEFAULT, self.default)

    def close(self) -> None:
        """End the servers that measured."""
        if self.residents is not None:
            self.residents.close()

    def use_processes(self, why: str = "", build: str = "") -> None:
        """Measure without servers from here on, and tell users ``why``: that of a ``build``."""
        self.close()
        self.residents, self.patience = None, Patience()
        who = f"{build}: {PROGRAMS[0]}" if build else PROGRAMS[0]
        say(why and f"{who} cannot measure, so {self.program} does: {why}")

    @property
    def bench_flags(self) -> frozenset[str] | None:
        """The flags of llama-bench; None if something else measures."""
        return self.bench.flags if self.bench and not self.residents else None

    @property
    def program(self) -> str:
        """The name of the program that measures."""
        return PROGRAMS[0] if self.residents else PROGRAMS[1] if self.bench else PROGRAMS[2]

    def _by_server(
        self, setting: Setting, phases: tuple[str, ...], seconds: float
    ) -> tuple[Samples, float | None]:
        """Return the samples, and the CPU seconds per generated token."""
        assert self.residents is not None
        samples: dict[str, list[float]] = {phase: [] for phase in phases}
        spent: list[float] = []
        for _ in range(self.sizes.repetitions):
            for phase, tokens in ((PP, self.sizes.n_prompt), (TG, self.sizes.n_gen)):
                if phase in phases:
                    speed, cpu = self.residents.ask(setting, phase, tokens, seconds)
                    samples[phase].append(speed)
                    self._claimed += tokens / speed
                    spent += [cpu] if cpu else []
        used = median(spent) if spent else None
        return {phase: tuple(each) for phase, each in samples.items()}, used

    def _by_bench(
        self, bench: Bench, facts: Facts, setting: Setting, phases: tuple[str, ...], seconds: float
    ) -> Samples:
        samples: Samples = {}
        commands = llama_bench.bench_commands(setting, bench, facts.model.path, self.sizes, phases)
        for command in commands:
            started = time.monotonic()
            done = run_setting(setting, command.argv, seconds)
            found = llama_bench.parse_bench(done.stdout, command)
            tokens = command.tokens
            claimed = sum(tokens[phase] / each for phase in found for each in found[phase])
            self._claim(claimed, started)
            samples |= found
        return samples

    def _by_cli(
        self, facts: Facts, setting: Setting, phases: tuple[str, ...], seconds: float
    ) -> Samples:
        request = llama_bench.cli_request(self.sizes, phases, facts.model, facts.engine.flags)
        for _ in range(resident.TRIES):
            started = time.monotonic()
            done = run_cli(facts, setting, request, seconds)
            if None not in (timings := parse_timings(done.stderr)):
                break
        named = zip((PP, TG), timings, strict=True)
        claimed = sum(each.milliseconds for phase, each in named if each and phase in phases)
        self._claim(claimed / 1000, started)
        return llama_bench.parse_cli(done.stderr, self.sizes, phases)

    def _claim(self, seconds: float, started: float) -> None:
        """Add the seconds that a process claims. Raise FailedRunError if it ran for less."""
        self._claimed += seconds
        taken = time.monotonic() - started
        if seconds > resident.TOLERANCE * taken:
            raise FailedRunError(f"{seconds:.3g} s by its own speeds, but it ran for {taken:.3g} s")


LONG_SECONDS, MOST_MORE = 10 * resident.LEAST_SECONDS, 99
"""Seconds that the check of llama-bench's clock should take, so that those that clocks may differ
by matter little; and most samples for that."""

PROGRAMS = ("llama-server", "llama-bench", "llama-cli")
"""Names of the programs that can measure, the preferred one first."""

CHOOSING_SECONDS = 0.001
"""Most seconds for choosing a token and printing it, which the cli's timings do not include."""


class Patience(NamedTuple):
    """The seconds after which a process counts as hung."""

    first: float = 120.0
    """Limit before the default has run: the model may come from a slow disk."""
    least: float = 20.0
    factor: float = 8.0
    """Limit afterwards in times of the default: a shared machine may slow a run down fivefold."""

    def after(self, longest: float | None) -> float:
        """Return the limit after the default's ``longest`` run in seconds, None if none so far."""
        return self.first if longest is None else max(self.least, self.factor * longest)


def patience_within(budget: float) -> Patience:
    """Return limits for servers: one that hangs leaves most of the ``budget`` in s to others."""
    usual = Patience()
    first = min(usual.first, max(30.0, budget / 2))
    return Patience(first, min(usual.least, max(5.0, budget / 6)))


def run_setting(setting: Setting, argv: tuple[str, ...], seconds: float) -> Captured:
    """Run a program with a setting. Raise FailedRunError if it fails or exceeds ``seconds``."""
    unset = stale(setting, os.environ)
    variables, nice = setting.variables, setting.nice
    done = capture(argv, variables, seconds, unset=unset, cpus=setting.cpus, nice=nice)
    if problem := failure(done, seconds):
        raise FailedRunError(problem)
    return done


def run_cli(facts: Facts, setting: Setting, request: Request, seconds: float) -> Captured:
    """Run the engine's cli with the setting. Raise FailedRunError if it fails, and
    UnsupportedError if it cannot run the model or lacks a flag for a knob."""
    check_cli(setting, facts.engine.flags)
    return run_setting(setting, make_plan(request, facts, setting).command, seconds)


PHASE_SECONDS = 0.6
"""Seconds that one phase of a run should take. Many short runs are better than a few long ones:
disturbances of a shared machine last for seconds, and a paired comparison needs rounds."""

LEAST_PROMPT, MOST_PROMPT = 16, 512
LEAST_GENERATED, MOST_GENERATED = 4, 128
MOST_REPETITIONS = 5
"""Limits of the sizes that ``choose_sizes`` chooses: tokens, and samples of each phase."""

FIRST = Sizes(16, 4, 1)
"""Sizes of the first run, which reads the model from disk."""

SECOND = Sizes(32, 8, 1)
"""Sizes of the second run, whose speed decides the sizes of all others."""


def choose_sizes(
    prompt_rate: float,
    generation_rate: float,
    context: int | None,
    n_prompt: int | None = None,
    n_gen: int | None = None,
) -> Sizes:
    """Return the sizes for measured rates in tokens/s, so that each phase takes about
    ``PHASE_SECONDS`` and fits into the model's ``context``, which is in tokens and None if it is
    not known. ``n_prompt`` and ``n_gen`` are used as they are if the user named them."""
    room = context or 4 * MOST_PROMPT
    most = min(MOST_PROMPT, room // 2), min(MOST_GENERATED, room // 4)
    prompt = n_prompt or _tokens(prompt_rate, LEAST_PROMPT, most[0])
    generated = n_gen or _tokens(generation_rate, LEAST_GENERATED, most[1])
    # The longer phase decides; the shorter one may take less time than it could.
    seconds = max(prompt / prompt_rate, generated / generation_rate)
    repetitions = max(1, min(MOST_REPETITIONS, round(PHASE_SECONDS / seconds)))
    return Sizes(prompt, generated, repetitions)


def _tokens(rate: float, least: int, most: int) -> int:
    """Return the largest power of two that takes up to ``PHASE_SECONDS``, within the limits."""
    wanted = int(max(rate * PHASE_SECONDS, least))
    return max(1, min(1 << wanted.bit_length() - 1, most))
