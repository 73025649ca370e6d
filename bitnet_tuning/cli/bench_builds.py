"""benchmark_optimized.py --builds: which of several builds is fastest here."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from bitnet_tuning.bench import side_by_side, tuning
from bitnet_tuning.bench.results import stamp
from bitnet_tuning.bench.rounds import PP, TG, Objective
from bitnet_tuning.bench.runner import Place, Runner, find_bench
from bitnet_tuning.bench.side_by_side import Contender, Judged
from bitnet_tuning.bench.sizes import SECOND
from bitnet_tuning.bench.stats import Estimate
from bitnet_tuning.bench.stop import Stop, Stopped
from bitnet_tuning.bench.summary import times
from bitnet_tuning.bench.tuning import BUDGETS
from bitnet_tuning.builds import OUT, build_name, choose_build, usable
from bitnet_tuning.cli import say
from bitnet_tuning.cli.bench_progress import Bar, Lines, watcher
from bitnet_tuning.cli.inference import find_builds
from bitnet_tuning.cli.tune import LOCK
from bitnet_tuning.cli.tune_start import now
from bitnet_tuning.engine import Engine
from bitnet_tuning.errors import MissingError, UnsupportedError
from bitnet_tuning.fastest import Found, load_fastest, store_fastest
from bitnet_tuning.host import Host, read_host
from bitnet_tuning.lock import alone
from bitnet_tuning.model import Choice
from bitnet_tuning.plan import Facts
from bitnet_tuning.state import State, default_folder


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
        count = side_by_side.rounds_in(budget - clock(), contenders)
        rounds = side_by_side.measure_rounds(
            contenders,
            objective,
            count,
            lambda number, name: shown.running(f"round {number} of {count}", name, clock()),
            lambda: clock() > budget,
        )
    names = [each.name for each in contenders]
    floor = side_by_side.noise_floor(rounds, names[0], objective)
    judged = zip(engines, side_by_side.judge(rounds, names, objective), strict=True)
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
            note = None if untested else tuning.self_tested(_facts(field, engine))
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
    settings = [tuning.default_setting(_facts(field, engine)) for engine in engines]
    sizes = tuning.calibrated(
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
    if side_by_side.is_short(compared.rounds):
        say("nothing is remembered: too little was measured; give it more with --budget")
        return
    engines = [engine for engine, _ in compared.judged]
    found = {
        engine.path: Found(each.verdict, each.ratio and each.ratio[:3])
        for engine, each in compared.judged
    }
    store_fastest(
        field.state,
        field.host,
        engines,
        field.choice.model,
        found,
        reference=engines[0].path,
        created=stamp(now()),
        objective=objective,
    )


def _show(field: Field, compared: Compared, options: argparse.Namespace) -> None:
    """To standard output, with what a run will take from now on."""
    host, model = field.host, field.choice.model
    measured = load_fastest(field.state, host, field.engines, model)
    chosen = choose_build(field.engines, host, model, measured).engine
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
