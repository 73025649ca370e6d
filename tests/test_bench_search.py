"""The search on made-up response curves: no engine, no clock."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest

from bitnet_tuning.bench.comparison import Round, Rounds, Run
from bitnet_tuning.bench.knobs import Knob, Space
from bitnet_tuning.bench.search import Check, Decision, Search
from bitnet_tuning.bench.stages import Measure
from bitnet_tuning.engine.builds import FASTER, OPEN
from bitnet_tuning.plan.profile import TG, Objective
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting
from tests.bench_samples import with_threads

NO_MMAP = Knob("mmap", (Change("no mmap", (("mmap", False),)),))
FLASH = Knob("flash attention", (Change("flash attention", (("flash", True),)),))
FIXED = (("upstream", UPSTREAM), ("performance", Setting(4, 4, nice=-5)))
SPACE = Space(Setting(4, 4), FIXED, tuple(map(with_threads, (1, 2, 3, 8))), (NO_MMAP, FLASH))

Speed = Callable[[Setting], float]


def curve(threads: Mapping[int, float], mmap: float = 1.0, flash: float = 1.0) -> Speed:
    """Speed by threads, with factors for no mmap and flash attention."""

    def speed(setting: Setting) -> float:
        factor = mmap if setting.mmap is False else 1.0
        return 20 * threads[setting.threads] * factor * (flash if setting.flash else 1.0)

    return speed


PEAK = curve({1: 0.4, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5})
FLAT = curve(dict.fromkeys((1, 2, 3, 4, 8), 1.0))


def wobble(number: int) -> float:
    """A run's factor: within 1 % of 1, the same for the same run."""
    return 1 + 0.01 * ((number * 7919 % 101) / 50 - 1)


class Told(NamedTuple):
    """A whole search: what it asked and was told."""

    search: Search
    asks: list[Measure | Check]
    rounds: list[Round]
    done: Decision

    @property
    def runs(self) -> list[str]:
        return [run.setting for each in self.rounds for run in each.runs]


class Lab(NamedTuple):
    """What answers a search."""

    speed: Speed
    problems: Mapping[str, str] = {}
    """Why runs fail, by setting."""
    wrong: tuple[str, ...] = ()
    """Settings whose output is wrong."""
    seconds: float = 1.0

    def run(self, name: str, setting: Setting, number: int) -> Run:
        if name in self.problems:
            return Run(name, {}, self.seconds, self.problems[name])
        speed = self.speed(setting) * wobble(number)
        return Run(name, {TG: (speed,)}, self.seconds)

    def drive(self, space: Space = SPACE, budget: float = 300.0) -> Told:
        search = Search(space, Rounds(Objective(), budget=budget))
        asks: list[Measure | Check] = []
        rounds: list[Round] = []
        total = 0
        while not isinstance(step := search.ask(), Decision):
            assert len(asks) < 1000, "it never ends"
            asks.append(step)
            if isinstance(step, Check):
                search.tell_check(step.name, "other text" if step.name in self.wrong else None)
                continue
            runs = []
            for name in step.order:
                total += 1
                runs.append(self.run(name, search.settings[name], total))
            told = Round(len(rounds) + 1, step.stage, tuple(runs), total * self.seconds)
            rounds.append(told)
            search.tell(told)
        return Told(search, asks, rounds, step)


def test_the_peak_is_found_confirmed_and_cheap_where_noise_is_low() -> None:
    told = Lab(PEAK).drive()
    assert (told.done.winner, told.done.verdict) == ("3 threads", FASTER)
    assert told.done.estimate is not None
    assert told.done.estimate.median == pytest.approx(1.2, abs=0.02)
    assert told.done.estimate.low > (told.done.floor or 9) >= 1.01
    assert len(told.runs) < 90
    assert Check("3 threads") in told.asks


def test_a_knob_on_top_of_threads_is_named_by_both() -> None:
    told = Lab(curve({1: 0.4, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5}, mmap=1.1, flash=0.9)).drive()
    assert told.done.winner == "3 threads + no mmap"
    assert told.search.settings[told.done.winner] == Setting(3, 3, mmap=False)


def test_only_fresh_samples_decide() -> None:
    told = Lab(PEAK).drive()
    duel = [each for each in told.rounds if each.stage == "duel"]
    assert told.done.estimate is not None
    assert told.done.estimate.count == len(duel) >= 6


def test_equal_settings_crown_none_and_say_so() -> None:
    told = Lab(FLAT).drive()
    assert (told.done.winner, told.done.verdict) == ("default", OPEN)
    assert "default stays" in told.done.reason


def test_a_first_round_has_everything_and_the_default_twice() -> None:
    first = Search(SPACE, Rounds(Objective(), budget=300)).ask()
    assert isinstance(first, Measure)
    assert first.stage == "threads"
    names = {"default", "upstream", "performance", "1 thread", "2 threads", "3 threads"}
    assert {*first.order} == {*names, "8 threads"}
    assert first.order.count("default") == 2


def test_orders_turn_from_round_to_round() -> None:
    asks = [ask for ask in Lab(FLAT).drive().asks if isinstance(ask, Measure)]
    assert asks[0].order[:-1] == asks[1].order[1:]


def test_clear_losers_are_dropped_early() -> None:
    runs = Lab(PEAK).drive().runs
    assert runs.count("1 thread") <= 3 < runs.count("3 threads")


def test_fixed_settings_get_enough_rounds_and_never_win() -> None:
    def speed(setting: Setting) -> float:
        return 40.0 if setting.nice else FLAT(setting)

    told = Lab(speed).drive()
    assert told.done.winner == "default"
    for name in ("upstream", "performance"):
        standing = told.search.rounds.judge(name).ratio
        assert standing is not None
        assert standing.count >= 6
    assert told.search.rounds.judge("performance").verdict == FASTER


def test_alike_and_better_than_the_default_means_fewer_threads() -> None:
    told = Lab(curve({1: 0.4, 2: 1.2, 3: 1.2, 4: 1.0, 8: 1.2})).drive()
    assert told.done.winner == "2 threads"


def test_a_setting_that_hangs_runs_once() -> None:
    told = Lab(PEAK, {"3 threads": "did not finish within 60 s"}).drive()
    assert told.runs.count("3 threads") == 1
    assert told.search.rounds.problem("3 threads") == "did not finish within 60 s"
    assert told.done.winner != "3 threads"


def test_a_setting_that_crashes_runs_twice() -> None:
    told = Lab(PEAK, {"upstream": "signal 11", "8 threads": "signal 11"}).drive()
    assert told.runs.count("upstream") == told.runs.count("8 threads") == 2
    assert told.done.winner == "3 threads"


def test_a_default_that_crashes_ends_it() -> None:
    told = Lab(PEAK, {"default": "signal 11"}).drive()
    assert told.done.winner == "default"
    assert told.search.rounds.problem("default") == "signal 11"


def test_wrong_output_is_out_and_the_search_goes_on() -> None:
    lab = Lab(curve({1: 0.4, 2: 1.15, 3: 1.3, 4: 1.0, 8: 0.5}), wrong=("3 threads",))
    told = lab.drive()
    assert told.search.rounds.problem("3 threads") == "other text"
    assert told.done.winner == "2 threads"
    assert all("3 threads" not in ask.name for ask in told.asks[-1:] if isinstance(ask, Check))


def test_a_replay_asks_the_same() -> None:
    told = Lab(PEAK).drive()
    again, rounds = Search(SPACE, Rounds(Objective(), budget=300)), iter(told.rounds)
    for expected in told.asks:
        step = again.ask()
        assert step == expected == again.ask()
        if isinstance(step, Check):
            again.tell_check(step.name, None)
        else:
            again.tell(next(rounds))
    assert again.ask() == told.done


def test_an_interrupted_round_is_asked_for_again_without_what_is_out() -> None:
    search = Search(SPACE, Rounds(Objective(), budget=57))
    step = search.ask()
    assert isinstance(step, Measure)
    runs = (
        Run("default", {TG: (1.0,)}, 1.0),
        Run("8 threads", {}, 1.0, "did not finish within 60 s"),
    )
    search.tell(Round(1, step.stage, runs, 20.0))
    rest = tuple(name for name in step.order if name != "8 threads")
    assert search.ask() == step._replace(order=rest)
    assert search.rounds.measured("default") == 1
    search.tell(Round(2, step.stage, tuple(Run(n, {TG: (1.0,)}, 1.0) for n in rest), 28.0))
    again = search.ask()
    assert isinstance(again, Measure)
    assert again.stage != "threads" or again.order != rest


def test_an_interrupted_round_does_not_hide_that_the_default_is_out() -> None:
    search = Search(SPACE, Rounds(Objective(), budget=57))
    search.tell(Round(1, "threads", (Run("default", {}, 1.0, "did not finish within 60 s"),), 20.0))
    assert isinstance(search.ask(), Decision)


@pytest.mark.parametrize("budget", [0.0, 1.0, 8.0, 16.0, 25.0, 40.0])
def test_a_tiny_budget_is_kept_and_concludes_honestly(budget: float) -> None:
    told = Lab(PEAK).drive(budget=budget)
    first = len(told.rounds[0].runs)
    assert told.rounds[-1].elapsed <= max(budget, first)
    if len(told.runs) < 30:
        assert (told.done.winner, told.done.verdict) == ("default", OPEN)


def test_costly_runs_mean_fewer() -> None:
    told = Lab(PEAK, seconds=10.0).drive()
    assert told.rounds[-1].elapsed <= 300


def test_a_space_without_choices_shows_the_fixed_ones() -> None:
    told = Lab(FLAT).drive(Space(Setting(4, 4), FIXED, (), ()))
    assert told.done.winner == "default"
    assert told.runs.count("upstream") == 6


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.7])
def test_any_budget_comes_to_an_end(seconds: float) -> None:
    """Also where time is left for one more pair, but not for a round of the duel."""

    def late(_number: int, _frame: object) -> None:
        raise AssertionError("it asks for nothing and does not end either")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    try:
        for tenths in range(0, 600, 7):
            Lab(curve({1: 1.3, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5}), seconds=seconds).drive(
                budget=tenths / 10
            )
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


KNOBBY = curve({1: 0.4, 2: 0.7, 3: 0.8, 4: 1.0, 8: 0.5}, mmap=1.3)


def test_where_time_was_too_short_to_try_everything_it_says_so() -> None:
    told = Lab(KNOBBY).drive(budget=18.0)
    done = told.done
    assert (done.winner, told.search.short) == ("default", True)
    assert "too short to try no mmap" in done.reason


def test_a_duel_that_time_cut_short_shows_nothing_and_says_so() -> None:
    told = Lab(KNOBBY).drive(budget=25.0)
    done = told.done
    assert (done.winner, told.search.short) == ("default", True)
    assert "too few rounds (3) for a verdict" in done.reason


def test_a_gain_that_no_time_was_left_to_confirm_is_not_called_noise() -> None:
    told = Lab(PEAK).drive(Space(SPACE.default, (), SPACE.threads, ()), budget=12.0)
    done = told.done
    assert (done.winner, told.search.short) == ("default", True)
    assert "3 threads looked faster" in done.reason
    assert "noise" not in done.reason


def test_where_nothing_is_searched_nothing_is_claimed() -> None:
    told = Lab(FLAT).drive(Space(Setting(4, 4), FIXED, (), ()))
    assert told.search.short
    assert "No other setting was tried" in told.done.reason


def test_a_search_that_had_time_for_all_is_not_short() -> None:
    assert not Lab(FLAT).drive().search.short


def test_a_change_that_came_on_top_by_luck_does_not_ride_along() -> None:
    """Flash attention gains nothing, but seems to until it meets what it was built on."""
    slower = {1: 0.4, 2: 0.6, 3: 0.8, 4: 1.0, 8: 0.5}
    told = Lab(curve(slower, mmap=1.3, flash=1.004)).drive()
    assert told.done.winner == "no mmap"


def test_a_duel_has_what_its_finalist_is_built_on() -> None:
    speed = curve({1: 0.4, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5}, mmap=1.2)
    told = Lab(speed).drive()
    assert told.done.winner == "3 threads + no mmap"
    duel = {run.setting for each in told.rounds if each.stage == "duel" for run in each.runs}
    assert {"3 threads", "3 threads + no mmap", "default"} <= duel


def test_upstream_is_compared_for_longer_where_that_is_open() -> None:
    space = Space(Setting(4, 4), FIXED, (), ())
    clear = Lab(curve({2: 0.5, 4: 1.0})).drive(space)
    assert clear.runs.count("upstream") == 6

    def noisy(setting: Setting, calls: list[int] = []) -> float:  # noqa: B006
        calls.append(1)
        return 20.0 * (1.3 if len(calls) * 7 % 5 < 2 else 1.0)

    open_ = Lab(noisy).drive(space)
    assert open_.runs.count("upstream") > 12
    assert open_.runs.count("performance") == 6
