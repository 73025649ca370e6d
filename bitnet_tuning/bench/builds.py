"""Several builds side by side: measured in rounds, each with its own default setting, and
judged against the first of them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any, NamedTuple

from bitnet_tuning.bench import begin, statistics
from bitnet_tuning.bench.begin import BUDGETS, now
from bitnet_tuning.bench.display import Bar, Lines, watcher
from bitnet_tuning.bench.ledger import DEFAULT
from bitnet_tuning.bench.results import stamp
from bitnet_tuning.bench.runner import Place, Runner, find_bench
from bitnet_tuning.bench.samples import SECOND, Round, Run
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.bench.summary import times
from bitnet_tuning.bench.tune import LOCK, phases_of
from bitnet_tuning.console import say
from bitnet_tuning.engine.builds import (
    OUT,
    BuildResult,
    ComparedBuilds,
    build_name,
    choose_build,
    load_fastest,
    store_fastest,
    usable,
)
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import MissingError, UnsupportedError
from bitnet_tuning.launch.stop import Stop, Stopped
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.model.find import Choice
from bitnet_tuning.plan.facts import Facts
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective
from bitnet_tuning.prepare import find_builds
from bitnet_tuning.store.state import State, alone, default_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.plan.setting import Setting


MOST_ROUNDS = 30
"""More would narrow the intervals of an ordinary machine by little."""

MOST_FAILURES = 2
"""Failed runs, after which a build is out."""


class Contender(NamedTuple):
    """A build that is measured."""

    name: str
    runner: Runner
    setting: Setting


class Judged(NamedTuple):
    """One build. Speeds are medians in tokens/s by phase, of its good runs."""

    name: str
    speeds: dict[str, Estimate]
    ratio: Estimate | None
    """Over the first build; None for that one, and without a common round."""
    verdict: str


def rounds_in(seconds: float, contenders: Sequence[Contender]) -> int:
    """How many fit, from one run of each at the present sizes. It is fixed before the first
    one: who stops when the figures please has other figures than intervals are made for."""
    taken = [_measure(each, (PP, TG)).seconds for each in contenders]
    left = seconds - sum(taken)
    return max(1, min(MOST_ROUNDS, int(left / max(0.001, sum(taken) + taken[0]))))


def measure_rounds(
    contenders: Sequence[Contender],
    objective: Objective,
    count: int,
    running: Callable[[int, str], None],
    is_late: Callable[[], bool],
) -> tuple[Round, ...]:
    """``count`` rounds, fewer where time runs out. The first build runs at both ends of a
    round, for the noise; the others take turns in going first."""
    rounds: list[Round] = []
    failures: Counter[str] = Counter()
    for number in range(1, count + 1):
        if number > 1 and is_late():
            break
        runs = []
        for each in _order(contenders, number, failures):
            running(number, each.name)
            run = _measure(each, phases_of(number, objective))
            failures[each.name] += run.problem is not None
            runs.append(run)
        rounds.append(Round(number, "builds", tuple(runs), 0.0))
    return tuple(rounds)


def _order(
    contenders: Sequence[Contender], number: int, failures: Counter[str]
) -> tuple[Contender, ...]:
    first, *others = contenders
    turn = number % len(others)
    fit = [each for each in others[turn:] + others[:turn] if failures[each.name] < MOST_FAILURES]
    return (first, *fit, first)


def _measure(each: Contender, phases: tuple[str, ...]) -> Run:
    # Under the default's name: how long it may take follows from its own runs.
    run = each.runner.measure(DEFAULT, each.setting, phases)
    return run._replace(setting=each.name)


def noise_floor(rounds: Sequence[Round], first: str, objective: Objective) -> float | None:
    return statistics.floor(statistics.itself(rounds, first, objective), len(rounds))


def judge(
    rounds: Sequence[Round], names: Sequence[str], objective: Objective
) -> tuple[Judged, ...]:
    """Every build against the first."""
    first = names[0]
    floor = noise_floor(rounds, first, objective)
    return tuple(_judged(rounds, name, first, objective, floor) for name in names)


def _judged(
    rounds: Sequence[Round], name: str, first: str, objective: Objective, floor: float | None
) -> Judged:
    runs = [run for each in rounds for run in each.runs if run.setting == name]
    samples = {
        phase: [median(run.samples[phase]) for run in runs if run.samples.get(phase)]
        for phase in (PP, TG)
    }
    speeds = {phase: statistics.estimate(found) for phase, found in samples.items() if found}
    failed = [run.problem for run in runs if run.problem]
    pairs = [] if name == first else statistics.ratios(rounds, name, first, objective)
    found = statistics.ratio(pairs) if pairs else None
    if len(failed) >= MOST_FAILURES:
        return Judged(name, speeds, found, f"{OUT}: {failed[-1]}")
    return Judged(
        name, speeds, found, statistics.verdict(found, floor) if found else statistics.OPEN
    )


def is_short(rounds: int) -> bool:
    """Whether so few can show nothing."""
    return rounds < VERDICT_ROUNDS


class Field(NamedTuple):
    """All that may be compared, and where."""

    engines: tuple[Engine, ...]
    host: Host
    choice: Choice
    state: State


class Compared(NamedTuple):
    """What came of it."""

    judged: tuple[tuple[Engine, Judged], ...]
    """The reference first, at the end what was not measured."""
    floor: float | None
    rounds: int


def compare_builds(options: argparse.Namespace) -> int:
    """Measures, remembers, shows; answers the exit code. Raises TuningError."""
    started = time.monotonic()
    state = State(default_folder(os.environ))
    engines, choice = find_builds(options.engine, options.model, state)
    if len(engines) == 1:
        raise MissingError(
            f"there is only one build in reach: {engines[0].path}",
            "make another one in a folder of its own (cmake -B build-other …), or name the "
            "checkout that holds several with --engine",
        )
    field = Field(engines, read_host(), choice, state)
    with contextlib.suppress(OSError):
        os.makedirs(state.folder, exist_ok=True)
    with alone(os.path.join(state.folder, LOCK)) as is_alone:
        if not is_alone:
            say("warning: another benchmark is running: each disturbs the other's figures")
        try:
            compared = _compare(field, options, lambda: time.monotonic() - started)
        except Stopped as end:
            say("interrupted: nothing is remembered")
            return 128 + end.number
    if not options.no_remember:
        _remember(field, compared, options.objective)
    _show(field, compared, options)
    if state.warning:
        say(f"warning: {state.warning}")
    return 0


def _compare(field: Field, options: argparse.Namespace, clock: Callable[[], float]) -> Compared:
    """Raises Stopped, and UnsupportedError where fewer than two builds can be measured."""
    budget = options.budget or BUDGETS[options.effort]
    objective = Objective(options.objective, options.n_prompt or 128, options.n_gen or 128)
    with Stop() as stop, watcher(budget) as shown, stop.interruptible():
        engines, out = _sound(field, options.no_selftest, shown, clock)
        contenders = _contenders(field, engines, options, shown)
        count = rounds_in(budget - clock(), contenders)
        rounds = measure_rounds(
            contenders,
            objective,
            count,
            lambda number, name: shown.running(f"round {number} of {count}", name, clock()),
            lambda: clock() > budget,
        )
    names = [each.name for each in contenders]
    floor = noise_floor(rounds, names[0], objective)
    judged = zip(engines, judge(rounds, names, objective), strict=True)
    return Compared((*judged, *out), floor, len(rounds))


def _sound(
    field: Field, untested: bool, shown: Bar | Lines, clock: Callable[[], float]
) -> tuple[tuple[Engine, ...], tuple[tuple[Engine, Judged], ...]]:
    """Those that can run here and write the right words, and those that write others."""
    able, refused = usable(field.engines, field.host, field.choice.model)
    for path, why in refused:
        shown.note(f"{build_name(path)} is left out: it {why}")
    sound, out = [], []
    for engine in able:
        shown.running("self-test", build_name(engine.path), clock())
        try:
            note = None if untested else begin.self_tested(_facts(field, engine))
        except UnsupportedError as error:
            name = build_name(engine.path)
            shown.note(f"{name} is left out: {error.cause}")
            out.append((engine, Judged(name, {}, None, f"{OUT}: wrong words")))
            continue
        if note:
            shown.note(f"{build_name(engine.path)}: {note}")
        sound.append(engine)
    if len(sound) < 2:
        raise UnsupportedError(
            f"of {len(field.engines)} builds {len(sound)} can be measured here: "
            "there is nothing to compare",
            "build another one for this CPU (cmake -B build-other -DGGML_NATIVE=ON)",
        )
    return tuple(sound), tuple(out)


def _facts(field: Field, engine: Engine) -> Facts:
    return Facts(field.host, engine, field.choice.model, field.choice.reason, os.environ)


def _contenders(
    field: Field, engines: tuple[Engine, ...], options: argparse.Namespace, shown: Bar | Lines
) -> tuple[Contender, ...]:
    """With runs of one length, and measured in one way, so that they can be compared."""
    benches = [find_bench(engine) for engine in engines]
    if not all(benches):
        benches = [None] * len(engines)
    places = [Place(field.host, engine, field.choice.model) for engine in engines]
    runners = [Runner(*each, SECOND) for each in zip(places, benches, strict=True)]
    settings = [begin.default_setting(_facts(field, engine)) for engine in engines]
    sizes = begin.calibrated(
        runners[0],
        settings[0],
        options.n_prompt,
        options.n_gen,
        lambda what: shown.running("preparing", what, 0),
    )
    for runner in runners:
        runner.sizes = sizes
    names = [build_name(engine.path) for engine in engines]
    return tuple(Contender(*each) for each in zip(names, runners, settings, strict=True))


def _remember(field: Field, compared: Compared, objective: str) -> None:
    if is_short(compared.rounds):
        say("nothing is remembered: too little was measured; give it more with --budget")
        return
    engines = [engine for engine, _ in compared.judged]
    found = ComparedBuilds(
        created=stamp(now()),
        objective=objective,
        reference=engines[0].path,
        builds={
            engine.path: BuildResult(each.verdict, each.ratio and each.ratio[:3])
            for engine, each in compared.judged
        },
    )
    store_fastest(field.state, field.host, engines, field.choice.model, found)


def _show(field: Field, compared: Compared, options: argparse.Namespace) -> None:
    """To standard output, with what a run will take from now on."""
    host, model = field.host, field.choice.model
    measured = load_fastest(field.state, host, field.engines, model)
    chosen = choose_build(field.engines, host, model, measured)
    if options.json:
        print(json.dumps(_as_json(compared, chosen, options.objective), indent=2))
        return
    for line in _lines(compared):
        print(line)
    print(f"A run takes {chosen.path}: {chosen.location.source}")


def _lines(compared: Compared) -> list[str]:
    judged = [each for _, each in compared.judged]
    first = judged[0].name
    rows = [("build", "pp/s", "tg/s", f"to {first}", "verdict")]
    rows += [_row(each) for each in judged]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    floor = "unknown" if compared.floor is None else f"×{compared.floor:.2f}"
    return [*lines, f"{compared.rounds} rounds; noise floor {floor}"]


def _row(each: Judged) -> tuple[str, str, str, str, str]:
    ratio = times(each.ratio) if each.ratio else "-"
    verdict = each.verdict if each.ratio or each.verdict.startswith(OUT) else "-"
    return each.name, _speed(each.speeds.get(PP)), _speed(each.speeds.get(TG)), ratio, verdict


def _speed(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.median:.1f} ({found.low:.1f}–{found.high:.1f})"


def _as_json(compared: Compared, chosen: Engine, objective: str) -> dict[str, Any]:
    return {
        "objective": objective,
        "rounds": compared.rounds,
        "floor": compared.floor,
        "chosen": chosen.path,
        "reason": chosen.location.source,
        "builds": [
            {
                "name": judged.name,
                "path": engine.path,
                "isa": sorted(engine.isa),
                "speeds": {phase: each._asdict() for phase, each in judged.speeds.items()},
                "ratio": judged.ratio and judged.ratio._asdict(),
                "verdict": judged.verdict,
            }
            for engine, judged in compared.judged
        ],
    }
