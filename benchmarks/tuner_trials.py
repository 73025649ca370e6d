#!/usr/bin/env python3
"""Measure how often tuners are right, on simulated machines whose true speeds are known.

A run's speed is the setting's true one with log-normal noise; one run in fifty takes five times as
long. Three tuners look for the fastest setting: ours; a grid search that takes the highest mean of
two runs, as simple tuners do; and Optuna's TPE with as many runs as ours used. Time is that of
loaded servers with a model of 2B parameters: half a second for a phase of a run, one second more
when a setting is loaded, 1.5 for a check of the output. Rows of their own have whole processes of
one second, as where no server can be loaded.

    python3 benchmarks/tuner_trials.py [--trials N] [--noise SHARE] [--budget SECONDS ...]
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitnet_tuning.bench.comparison import SLIM_FILE, Round, Rounds, Run
from bitnet_tuning.bench.knobs import Knob, Space
from bitnet_tuning.bench.search import Check, Decision, Search
from bitnet_tuning.engine.builds import FASTER, SLOWER
from bitnet_tuning.plan.profile import TG, Objective
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting, apply

OUTLIERS, OUTLIER_SPEED = 0.02, 0.2
"""Share of runs that are disturbed, and their speed as a share of the true one."""
TOKENS_PER_SECOND = 20.0

BOUND = (("OMP_PLACES", "cores"), ("OMP_PROC_BIND", "close"))
KNOBS = (
    Knob("mmap", (Change("no mmap", (("mmap", False),)),)),
    Knob("binding", (Change("not bound", unset_env=("OMP_PROC_BIND", "OMP_PLACES")),)),
    Knob("waiting", (Change("KMP_BLOCKTIME=infinite", set_env=(("KMP_BLOCKTIME", "infinite"),)),)),
    Knob("flash attention", (Change("flash attention", (("flash", True),)),)),
    Knob("micro-batch", (Change("micro-batch 128", (("ubatch", 128),)),)),
)


def _threads(count: int) -> Change:
    """Return a change to ``count`` threads, also for prompts."""
    plural = "" if count == 1 else "s"
    return Change(f"{count} thread{plural}", (("threads", count), ("threads_batch", count)))


class Machine(NamedTuple):
    """A simulated machine. Speeds are shares of the default's."""

    name: str
    threads: Mapping[int, float]
    """True speed by number of threads."""
    knobs: Mapping[str, float]
    """True factor by name of a change; missing ones have the factor 1."""
    upstream: float
    """True speed of upstream's setting."""
    default_threads: int = 4

    @property
    def space(self) -> Space:
        default = Setting(self.default_threads, self.default_threads, env=BOUND)
        counts = tuple(_threads(n) for n in self.threads if n != self.default_threads)
        fixed = (("upstream", UPSTREAM), ("performance", default._replace(nice=-5)))
        return Space(default, fixed, counts, KNOBS)

    def speed(self, setting: Setting) -> float:
        """Return the true speed."""
        if setting == UPSTREAM:
            return self.upstream
        changes = (change for knob in KNOBS for change in knob.changes)
        factors = (self.knobs.get(c.name, 1.0) for c in changes if apply(c, setting) == setting)
        return self.threads[setting.threads] * math.prod(factors)

    def best(self) -> float:
        """Return the true speed of the fastest setting in the space."""
        gains = (max(1.0, factor) for factor in self.knobs.values())
        return max(self.threads.values()) * math.prod(gains)


EQUAL = Machine("all equal", {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 8: 1.0}, {}, 1.0)
MACHINES = (
    EQUAL,
    EQUAL._replace(name="3 threads 20 % better", threads={**EQUAL.threads, 3: 1.2}),
    EQUAL._replace(name="no mmap 20 % better", knobs={"no mmap": 1.2}),
    Machine(
        "a machine with SMT: peak at 6 of 8, no mmap helps",
        {1: 0.28, 2: 0.53, 4: 0.9, 6: 1.08, 7: 1.05, 8: 1.0, 16: 0.75},
        {
            "no mmap": 1.15,
            "not bound": 0.95,
            "KMP_BLOCKTIME=infinite": 1.02,
            "flash attention": 0.97,
        },
        0.5,
        8,
    ),
    Machine(
        "a machine whose default is right",
        {1: 0.3, 2: 0.56, 3: 0.8, 4: 1.0, 8: 0.6},
        {"no mmap": 1.01, "not bound": 0.98, "KMP_BLOCKTIME=infinite": 0.99},
        0.55,
    ),
)


class Weather(NamedTuple):
    """The disturbances of measured speeds."""

    noise: float
    """Standard deviation of the logarithm of a run's speed."""
    drift: float
    """Amplitude of a slow wave with a period of 50 runs, as a logarithm."""


class Costs(NamedTuple):
    """What measuring costs, in seconds of the budget."""

    phase: float = 0.5
    """For one phase of a run."""
    loading: float = 1.0
    """For the first run of a setting, besides."""
    check: float = 1.5
    """For one check of a setting's output."""


SERVERS, PROCESSES, BUSY = Costs(), Costs(1.0, 0.0, 0.0), Costs(0.7, 2.0, 3.0)

QUICK, PREPARATION, TAIL = 60.0, 8.0, 3.0
"""Seconds of ``--quick``, and those that it needs before and after its search."""


class Lab:
    """A simulated machine to measure, which counts the runs and the seconds."""

    def __init__(
        self, machine: Machine, weather: Weather, seed: str, costs: Costs = SERVERS
    ) -> None:
        self.machine = machine
        self.costs = costs
        self.runs = 0
        self.spent = 0.0
        # Preparations load the default.
        self._loaded = {machine.space.default}
        self._weather = weather
        self._random = random.Random(seed)
        self.seed = self._random.randrange(1 << 30)

    def run(self, name: str, setting: Setting, speed: float, phases: Sequence[str]) -> Run:
        """Return a run of a setting with that true speed, which measured these phases."""
        seconds = self.costs.phase * len(phases)
        seconds += 0.0 if setting in self._loaded else self.costs.loading
        self._loaded.add(setting)
        self.spent += seconds
        return Run(name, {phase: (self._measured(speed),) for phase in phases}, seconds)

    def measure(self, setting: Setting) -> float:
        """Return the tokens/s of one run."""
        return self._measured(self.machine.speed(setting))

    def _measured(self, speed: float) -> float:
        self.runs += 1
        wave = self._weather.drift * math.sin(2 * math.pi * self.runs / 50)
        factor = math.exp(self._random.gauss(0, self._weather.noise) + wave)
        if self._random.random() < OUTLIERS:
            factor *= OUTLIER_SPEED
        return TOKENS_PER_SECOND * speed * factor


class Outcome(NamedTuple):
    """The outcome of one tuning."""

    speed: float
    """The winner's true speed as a share of the default's."""
    crowned: bool
    """Whether the winner is another setting than the default."""
    runs: int


def ours(lab: Lab, budget: float) -> Outcome:
    """Tune with this package's search; every output counts as right."""
    search = Search(lab.machine.space, Rounds(Objective(), budget=budget))
    done = drive(search, lab, lab.machine.speed)
    winner = search.settings[done.winner]
    return Outcome(lab.machine.speed(winner), done.winner != "default", lab.runs)


def drive(search: Search, lab: Lab, speed: Callable[[Setting], float]) -> Decision:
    """Answer a search with measurements of true speeds until it decides."""
    while not isinstance(step := search.ask(), Decision):
        if isinstance(step, Check):
            lab.spent += lab.costs.check
            search.tell_check(step.name, None, lab.spent)
            continue
        runs = []
        for name in step.order:
            # A whole process costs a second, whatever phases it measures.
            phases = search.rounds.phases(name) if lab.costs.loading else (TG,)
            setting = search.settings[name]
            runs.append(lab.run(name, setting, speed(setting), phases))
        search.tell(Round(len(search.rounds) + 1, step.stage, tuple(runs), lab.spent))
    return step


def _grid(space: Space) -> Iterator[Setting]:
    """Yield every number of threads with every combination of knobs."""
    choices = [space.threads, *(knob.changes for knob in space.knobs)]
    for combination in itertools.product(*((None, *each) for each in choices)):
        yield _changed(space.default, combination)


def _changed(setting: Setting, changes: Iterable[Change | None]) -> Setting:
    for change in changes:
        setting = apply(change, setting) if change else setting
    return setting


def highest_mean(lab: Lab, budget: float) -> Outcome:
    """Run each setting of the grid twice, whatever the budget, and take the highest mean."""
    space = lab.machine.space
    means = {
        setting: statistics.mean((lab.measure(setting), lab.measure(setting)))
        for setting in _grid(space)
    }
    return _chosen(lab, max(means, key=means.__getitem__))


def _chosen(lab: Lab, setting: Setting) -> Outcome:
    return Outcome(lab.machine.speed(setting), setting != lab.machine.space.default, lab.runs)


def optuna_tpe(lab: Lab, runs: float) -> Outcome:
    """Use Optuna's default sampler for that number of runs and take the best run. Raise
    ImportError without optuna."""
    import optuna  # noqa: PLC0415  heavy, and only for this row

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = lab.machine.space
    knobs = {"threads": space.threads, **{knob.name: knob.changes for knob in space.knobs}}

    def changed(numbers: Mapping[str, int]) -> Setting:
        picked = (knobs[name][number - 1] if number else None for name, number in numbers.items())
        return _changed(space.default, picked)

    def objective(trial: optuna.Trial) -> float:
        numbers = {
            name: int(trial.suggest_categorical(name, range(len(changes) + 1)))
            for name, changes in knobs.items()
        }
        return lab.measure(changed(numbers))

    sampler = optuna.samplers.TPESampler(seed=lab.seed)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.optimize(objective, n_trials=int(runs))
    return _chosen(lab, changed(study.best_params))


class Row(NamedTuple):
    """Several tunings of one machine by one tuner."""

    machine: Machine
    tuner: str
    outcomes: Sequence[Outcome]

    def cells(self) -> tuple[str, ...]:
        """Return the cells of the table: machine; tuner; number of tunings whose winner is not the
        default, is the fastest, is slower than the default; mean speed; mean number of runs."""
        best, count = self.machine.best(), len(self.outcomes)
        crowned = sum(each.crowned for each in self.outcomes)
        found = sum(each.speed >= best * NEARLY for each in self.outcomes)
        worse = sum(each.speed < NEARLY for each in self.outcomes)
        share = statistics.mean(each.speed for each in self.outcomes) / best
        runs = statistics.mean(each.runs for each in self.outcomes)
        counts = (f"{number}/{count}" for number in (crowned, found, worse))
        return (self.machine.name, self.tuner, *counts, f"{share:.3f}", f"{runs:.0f}")


NEARLY = 0.999
"""Ratio above which two speeds count as equal."""

Tuner = Callable[[Lab, float], Outcome]


def tunings(
    tuner: Tuner,
    machine: Machine,
    weather: Weather,
    sizes: Sequence[float],
    seed: int,
    *,
    costs: Costs = SERVERS,
) -> list[Outcome]:
    """Return one tuning for each size, which is the tuner's budget."""
    labs = (Lab(machine, weather, f"{seed} {machine.name} {n}", costs) for n in range(len(sizes)))
    return [tuner(lab, size) for lab, size in zip(labs, sizes, strict=True)]


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """Yield our tuner with the first budget, the other tuners, then ours with other budgets."""
    weather = Weather(options.noise, options.drift)
    for machine in MACHINES:
        main, *others = options.budget
        budgets = [main] * options.trials
        mine = tunings(ours, machine, weather, budgets, options.seed)
        yield Row(machine, f"ours, {main:.0f} s", mine)
        grid = tunings(highest_mean, machine, weather, budgets, options.seed)
        yield Row(machine, "highest mean of 2", grid)
        if not options.no_optuna:
            same = [float(each.runs) for each in mine]
            tpe = tunings(optuna_tpe, machine, weather, same, options.seed)
            yield Row(machine, "Optuna TPE", tpe)
        for budget in others:
            less = tunings(ours, machine, weather, [budget] * options.trials, options.seed)
            yield Row(machine, f"ours, {budget:.0f} s", less)
        slow = tunings(ours, machine, weather, budgets, options.seed, costs=PROCESSES)
        yield Row(machine, f"processes, {main:.0f} s", slow)


def quick(
    options: argparse.Namespace, one_thread: float = 0.6, costs: Costs = SERVERS
) -> tuple[int, int]:
    """Return how many tunings with ``--quick`` on a machine with two CPUs show whether one thread
    is faster, and how many that the slim file is. ``one_thread`` is its true speed."""
    default = Setting(2, 2, env=BOUND)
    slim = default._replace(embedding="q6_k")
    knobs = (Knob("mmap", (*KNOBS[0].changes, Change("locked", (("mlock", True),)))),)
    space = Space(default, (("upstream", UPSTREAM), (SLIM_FILE, slim)), (_threads(1),), knobs)
    machine = Machine("two CPUs", {1: one_thread, 2: 1.0}, {}, 1.0, 2)
    right = FASTER if one_thread > 1 else SLOWER
    threads = files = 0
    for number in range(options.trials):
        weather = Weather(options.noise, options.drift)
        lab = Lab(machine, weather, f"{options.seed} {number}", costs)
        lab.spent = PREPARATION
        search = Search(space, Rounds(Objective(), budget=QUICK - TAIL))
        drive(search, lab, lambda each: 1.3 if each.embedding else machine.speed(each))
        threads += search.rounds.shown("1 thread").verdict == right
        files += search.rounds.shown(SLIM_FILE).verdict == FASTER
    return threads, files


def show(table: Iterable[Row]) -> None:
    """Print the rows as they come."""
    form = "{:<50} {:<18} {:>8} {:>8} {:>8} {:>6} {:>5}"
    print(form.format("machine", "tuner", "crowned", "found", "slower", "speed", "runs"))
    for row in table:
        print(form.format(*row.cells()), flush=True)
    print(
        "\ncrowned: another setting than the default won; found: the fastest setting won; slower: "
        "a slower one than the default won; speed: the winner's, as a share of the fastest's"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=40, help="trials (default: %(default)s)")
    add = parser.add_argument
    add("--noise", type=float, default=0.15, help="standard deviation of a run (default: 0.15)")
    add("--drift", type=float, default=0.0, help="amplitude of a slow wave (default: 0)")
    parser.add_argument("--seed", type=int, default=1, help="random seed (default: %(default)s)")
    parser.add_argument(
        "--budget",
        type=float,
        nargs="+",
        default=[300.0, 100.0, 60.0],
        metavar="SECONDS",
        help="simulated budgets (default: 300 100 60)",
    )
    parser.add_argument("--no-optuna", action="store_true", help="leave out Optuna")
    return parser.parse_args(arguments)


def main() -> int:
    options = parse()
    if not options.no_optuna and find_spec("optuna") is None:
        print("error: needs the extra test (pip install optuna), or --no-optuna", file=sys.stderr)
        return 3
    show(rows(options))
    for where, what, found in (
        ("two CPUs", "slower", quick(options)),
        ("two CPUs beside a busy program", "29 % faster", quick(options, 1.29, BUSY)),
    ):
        print(
            f"--quick on {where}: one thread is shown to be {what} in {found[0]} of "
            f"{options.trials} tunings, a slim file 30 % faster in {found[1]}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
