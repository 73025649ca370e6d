"""Measures one setting of an engine: a number comes back, or the reason why there is none."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from bitnet_tuning.bench import by_cli, measure
from bitnet_tuning.bench.asks import DEFAULT
from bitnet_tuning.bench.failure import failure
from bitnet_tuning.bench.measure import NEEDED, Bench, Speeds, Tests
from bitnet_tuning.bench.rounds import PP, TG, Run
from bitnet_tuning.bench.start import TRIES, Patience, Place, run_cli, run_setting
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch import capture
from bitnet_tuning.probe import parse_flags

if TYPE_CHECKING:
    from bitnet_tuning.bench.sizes import Sizes
    from bitnet_tuning.engine import Engine
    from bitnet_tuning.setting import Setting

__all__ = ["Patience", "Place", "Runner", "find_bench"]


def find_bench(engine: Engine) -> Bench | None:
    """The llama-bench beside the engine, asked for its flags; None where there is none
    that works."""
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
    """Measures settings of one engine with one model.

    ``sizes`` may be set anew between runs.
    """

    def __init__(
        self, place: Place, bench: Bench | None, sizes: Sizes, patience: Patience | None = None
    ) -> None:
        """``bench`` as ``find_bench`` answers; without one the cli's own timings serve."""
        self.place = place
        self.bench = bench
        self.sizes = sizes
        self.patience = patience or Patience()
        self._longest: dict[tuple[Sizes, tuple[str, ...]], float] = {}

    def measure(self, name: str, setting: Setting, phases: tuple[str, ...] = (PP, TG)) -> Run:
        """One measurement of the phases. A failure is a run without samples; only an
        interrupt is raised."""
        tests = Tests(
            self.sizes.n_prompt if PP in phases else None,
            self.sizes.n_gen if TG in phases else None,
        )
        started = time.monotonic()
        try:
            speeds = self._speeds(setting, tests, self.seconds(phases))
        except UnsupportedError as error:
            speeds = Speeds({}, error.cause)
        taken = time.monotonic() - started
        if name == DEFAULT and speeds.problem is None:
            kind = (self.sizes, phases)
            self._longest[kind] = max(taken, self._longest.get(kind, 0.0))
        return Run(name, speeds.samples, taken, speeds.problem)

    def seconds(self, phases: tuple[str, ...] = (PP, TG)) -> float:
        """How long a process that measures these phases may take now."""
        seen = [
            taken
            for (sizes, measured), taken in self._longest.items()
            if sizes == self.sizes and set(measured) >= set(phases)
        ]
        return self.patience.after(max(seen, default=None))

    def _speeds(self, setting: Setting, tests: Tests, seconds: float) -> Speeds:
        if self.bench is None:
            return self._by_cli(setting, tests, seconds)
        commands = measure.bench_commands(
            setting, self.bench, self.place.model.path, tests, self.sizes.repetitions
        )
        samples: dict[str, tuple[float, ...]] = {}
        for command in commands:
            done = run_setting(setting, command.argv, seconds)
            problem = failure(done, seconds)
            speeds = (
                Speeds({}, problem) if problem else measure.parse_bench(done.stdout, command.rows)
            )
            if speeds.problem is not None:
                return speeds
            samples |= speeds.samples
        return Speeds(samples)

    def _by_cli(self, setting: Setting, tests: Tests, seconds: float) -> Speeds:
        _, engine, model = self.place
        request = by_cli.cli_request(tests, model, engine.flags)
        for _ in range(TRIES):
            done = run_cli(self.place, setting, request, seconds)
            problem = failure(done, seconds)
            if problem:
                return Speeds({}, problem)
            if not by_cli.is_cut_short(done.stderr):
                break
        return by_cli.parse_cli(done.stderr, tests)
