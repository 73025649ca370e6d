"""A simulated machine for whole tunings: no engine runs, and time passes only with its runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path

from bitnet_tuning import demo
from bitnet_tuning.bench.comparison import Run, Sizes
from bitnet_tuning.bench.llama_bench import Bench
from bitnet_tuning.bench.runner import Runner
from bitnet_tuning.bench.tune import tune
from bitnet_tuning.cli.benchmark import read_options
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import slimmed
from bitnet_tuning.plan.facts import Facts
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.plan.profile import load as load_profile
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.store.state import State
from tests.machines import Machine
from tests.profile_samples import engine_in

BENCH_FLAGS = frozenset({"-m", "-p", "-n", "-t", "-r", "-o", "-mmp", "-fa", "-ub", "--numa"})
MEBIBYTE = 1 << 20


class Lab(Runner):
    """A machine with four cores, an engine and the demo model. Each run takes one second.

    It is its own runner: speeds follow ``threads``, ``mmap`` and ``flash`` with
    noise of 1 %, the same in every test.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        # So little memory is free that its bandwidth is not measured, which would take a second.
        machine = Machine(folder / "root").regular(4).meminfo(8 << 30, 200 * MEBIBYTE)
        engine = engine_in(folder / "build" / "bin")
        facts = Facts(machine.host(), engine, read_model(demo.I2_S), "named", environ or {})
        super().__init__(facts, Bench(("llama-bench",), BENCH_FLAGS), Sizes(32, 8, 1))
        self.threads = {1: 0.4, 2: 0.7, 3: 0.9, 4: 1.0}
        """Speed by number of threads as a share of the default's; more are as fast as four."""
        self.mmap = self.flash = self.slim = 1.0
        """Factors for a model that is not mapped, for flash attention, and for its slim copy."""
        self.problems: dict[str, str] = {}
        """Why runs fail, by name of the setting."""
        self.signals: dict[int, signal.Signals] = {}
        """Signals to this process, by the number of the run that they interrupt."""
        self.runs: list[str] = []
        """Names of the settings that ran."""

    def measure(self, name: str, setting: Setting, phases: tuple[str, ...] = (PP, TG)) -> Run:
        """Return a simulated run."""
        self.runs.append(name)
        number = len(self.runs)
        if number in self.signals:
            os.kill(os.getpid(), self.signals[number])
        if name in self.problems:
            return Run(name, {}, 1.0, self.problems[name])
        speed = 20.0 * self.threads[min(4, setting.threads)]
        speed *= self.mmap if setting.mmap is False else 1.0
        speed *= self.flash if setting.flash else 1.0
        speed *= self.slim if setting.embedding else 1.0
        speed *= 1 + 0.01 * ((number * 7919 % 101) / 50 - 1)
        return Run(name, {phase: (speed * (4 if phase == PP else 1),) for phase in phases}, 1.0)

    def contradiction(self, name: str, setting: Setting, phases: tuple[str, ...]) -> str | None:
        """Return nothing: no clock runs here."""
        return None

    def add_slim(self, path: str = "/models/demo-embd-q6_k.gguf", size: int = 1 << 19) -> None:
        """Put a slim copy beside the model."""
        model = self.facts.model
        slim = model._replace(path=path, size=size, parts=slimmed(model.parts, "q6_k"))
        self.facts = self.facts._replace(beside=slim)

    def find(self, *_: object) -> Runner:
        """Return this machine as what a tuning measures, whatever its options."""
        return self

    def clock(self) -> float:
        """Return the seconds that all runs took."""
        return float(len(self.runs))

    def tune(self, *flags: object) -> int:
        """Run benchmark_optimized.py with these flags on this machine and return its exit code."""
        options = read_options(["--no-selftest", *map(str, flags)])
        return tune(options, self.find, self.clock)

    def saved(self, state: Path) -> Setting | str:
        """Return the setting of the saved profile, ``default``, or ``nothing``."""
        facts = self.facts
        profile = load_profile(State(str(state)), facts.host, facts.engine, facts.model)
        return "nothing" if profile is None else profile.setting or "default"
