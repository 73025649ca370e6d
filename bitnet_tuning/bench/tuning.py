"""What a tuning starts with: the settings to compare, and runs of a useful length."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from bitnet_tuning import selftest
from bitnet_tuning.bench import knobs
from bitnet_tuning.bench.asks import DEFAULT, MODES, PERFORMANCE, UPSTREAM, Space
from bitnet_tuning.bench.knobs import QUICK, Knobs
from bitnet_tuning.bench.rounds import PP, TG, Objective, Run
from bitnet_tuning.bench.sizes import FIRST, SECOND, Sizes, choose_sizes
from bitnet_tuning.command import setting_of
from bitnet_tuning.errors import TuningError, UnsupportedError
from bitnet_tuning.plan import Facts, make_plan
from bitnet_tuning.request import Request
from bitnet_tuning.setting import UPSTREAM as UPSTREAM_SETTING
from bitnet_tuning.setting import Setting

if TYPE_CHECKING:
    from bitnet_tuning.bench.measure import Bench
    from bitnet_tuning.bench.runner import Runner

BUDGETS = {"quick": 60.0, "normal": 300.0, "full": 1200.0}
"""Seconds, by effort."""

TRIES = 2


class Wish(NamedTuple):
    """What the user asked of a tuning."""

    effort: str
    objective: Objective
    threads: tuple[int, ...] = ()
    """The only counts to try; empty for those that suit the machine."""
    modes: tuple[str, ...] = ()


class Course(NamedTuple):
    """A space, and what is to be said of it."""

    space: Space
    notes: tuple[str, ...]


def default_setting(facts: Facts) -> Setting:
    """What the plan computes by itself. Raises TuningError."""
    return setting_of(make_plan(Request(), facts._replace(profile=None)))


def self_tested(facts: Facts) -> str | None:
    """A note where the engine could not be tested. Raises UnsupportedError where it writes
    the wrong words: how fast it does is of no interest."""
    try:
        report = selftest.run_selftest(facts.engine, facts.host)
    except TuningError as error:
        return f"the engine is not self-tested: {error.cause}"
    if report.passed:
        return None
    raise UnsupportedError(
        f"{facts.engine.path} writes wrong words, so its speed means nothing: {report.cause}",
        "`python3 -m bitnet_tuning selftest` shows them; --no-selftest measures all the same",
    )


def calibrated(
    runner: Runner,
    default: Setting,
    n_prompt: int | None,
    n_gen: int | None,
    running: Callable[[str], None],
) -> Sizes:
    """Sizes for every later run, from two short ones; the first also reads the model from
    disk. Raises UnsupportedError where the default cannot be measured."""
    run = Run(DEFAULT, {}, 0.0)
    for sizes, what in ((FIRST, "loading the model"), (SECOND, "how fast it is at all")):
        running(what)
        runner.sizes = sizes
        run = warm(runner, default)
    speeds = [max(run.samples[phase]) for phase in (PP, TG)]
    return choose_sizes(speeds[0], speeds[1], runner.place.model.context_length, n_prompt, n_gen)


def warm(runner: Runner, default: Setting) -> Run:
    """One run of the default, tried twice; the model is in memory then. Raises
    UnsupportedError."""
    for _ in range(TRIES):
        run = runner.measure(DEFAULT, default)
        if run.problem is None:
            break
    else:
        raise UnsupportedError(
            f"the engine cannot be measured with its default setting: {run.problem}",
            "try the same with run_inference.py, which shows all that the engine says",
        )
    return run


def course(facts: Facts, bench: Bench | None, default: Setting, sizes: Sizes, wish: Wish) -> Course:
    """All that may be measured. Without the mode ``optimized`` only the others, with the
    default for comparison."""
    known = Knobs(
        facts.host,
        facts.engine,
        bench.flags if bench else None,
        facts.model,
        facts.environ,
        wish.objective,
        sizes.n_prompt,
        wish.effort,
        facts.numactl,
        facts.huge,
        facts.privileges,
    )
    modes = wish.modes or MODES[: 2 if wish.effort == QUICK else 3]
    fixed = [(UPSTREAM, UPSTREAM_SETTING)] if "default" in modes else []
    notes: list[str] = []
    if "performance" in modes:
        setting = _performance(facts, bench, notes)
        if setting == default:
            notes.append("performance mode is not measured: nothing of it is permitted here")
        else:
            fixed.append((PERFORMANCE, setting))
    if "optimized" not in modes:
        return Course(Space(default, tuple(fixed), (), ()), tuple(notes))
    threads = knobs.thread_changes(known, default, wish.threads)
    return Course(Space(default, tuple(fixed), threads, knobs.knobs(known, default)), tuple(notes))


def _performance(facts: Facts, bench: Bench | None, notes: list[str]) -> Setting:
    """The plan of performance mode, as far as the program that measures obeys it."""
    setting = setting_of(make_plan(Request(performance=True), facts._replace(profile=None)))
    if setting.mlock and bench is not None and "-lm" not in bench.flags:
        notes.append("performance mode is measured without its lock: llama-bench has none")
        return setting._replace(mlock=False)
    return setting
