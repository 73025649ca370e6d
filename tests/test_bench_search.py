"""The search on simulated curves: no engine runs, and time is computed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import pytest

from bitnet_tuning.bench.comparison import Round, Rounds, Run
from bitnet_tuning.bench.knobs import Knob, Space
from bitnet_tuning.bench.search import Check, Decision, Measure, Search
from bitnet_tuning.engine.builds import EQUAL, FASTER, OPEN, SLOWER
from bitnet_tuning.errors import UsageError
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting
from tests.bench_samples import with_threads

NO_MMAP = Knob("mmap", (Change("no mmap", (("mmap", False),)),))
FLASH = Knob("flash attention", (Change("flash attention", (("flash", True),)),))
FIXED = (("upstream", UPSTREAM), ("performance", Setting(4, 4, nice=-5)))
SPACE = Space(Setting(4, 4), FIXED, tuple(map(with_threads, (1, 2, 3, 8))), (NO_MMAP, FLASH))

Speed = Callable[[Setting], float]


def curve(threads: Mapping[int, float], mmap: float = 1.0, flash: float = 1.0) -> Speed:
    """Return a speed by threads, with factors for no mmap and flash attention."""

    def speed(setting: Setting) -> float:
        factor = mmap if setting.mmap is False else 1.0
        return 20 * threads[setting.threads] * factor * (flash if setting.flash else 1.0)

    return speed


PEAK = curve({1: 0.4, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5})
FLAT = curve(dict.fromkeys((1, 2, 3, 4, 8), 1.0))


def wobble(number: int) -> float:
    """Return the noise of a run: a factor within 1 % of 1, the same in every test."""
    return 1 + 0.01 * ((number * 7919 % 101) / 50 - 1)


class Told(NamedTuple):
    """A whole search, with what it asked and was told."""

    search: Search
    asks: list[Measure | Check]
    rounds: list[Round]
    done: Decision

    @property
    def runs(self) -> list[str]:
        return [run.setting for each in self.rounds for run in each.runs]


class Lab(NamedTuple):
    """A simulated machine that answers a search."""

    speed: Speed
    problems: Mapping[str, str] = {}
    """Why runs fail, by name of the setting."""
    wrong: tuple[str, ...] = ()
    """Names of the settings whose output is wrong."""
    seconds: float = 1.0

    def run(self, name: str, setting: Setting, number: int) -> Run:
        if name in self.problems:
            return Run(name, {}, self.seconds, self.problems[name])
        speed = self.speed(setting) * wobble(number)
        return Run(name, {TG: (speed,)}, self.seconds)

    def drive(self, space: Space = SPACE, budget: float = 300.0, resolution: float = 0.02) -> Told:
        search = Search(space, Rounds(Objective(), budget=budget, resolution=resolution))
        asks: list[Measure | Check] = []
        rounds: list[Round] = []
        total = 0
        while not isinstance(step := search.ask(), Decision):
            assert len(asks) < 1000, "it never ends"
            asks.append(step)
            if isinstance(step, Check):
                wrong = step.name.split(" + ")[0] in self.wrong
                search.tell_check(step.name, "other text" if wrong else None)
                continue
            runs = []
            for name in step.order:
                total += 1
                runs.append(self.run(name, search.settings[name], total))
            told = Round(len(rounds) + 1, step.stage, tuple(runs), total * self.seconds)
            rounds.append(told)
            search.tell(told)
        return Told(search, asks, rounds, step)


def test_the_peak_is_found_and_confirmed_in_few_runs_if_noise_is_low() -> None:
    told = Lab(PEAK).drive()
    assert (told.done.winner, told.done.verdict) == ("3 threads", FASTER)
    assert told.done.estimate is not None
    assert told.done.estimate.median == pytest.approx(1.2, abs=0.02)
    assert told.done.estimate.low > 1.18
    assert len(told.runs) < 150
    assert Check("3 threads") in told.asks
    assert "too short" not in told.done.reason


def test_a_knob_on_top_of_threads_is_named_by_both() -> None:
    told = Lab(curve({1: 0.4, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5}, mmap=1.1, flash=0.9)).drive()
    assert told.done.winner == "3 threads + no mmap"
    assert told.search.settings[told.done.winner] == Setting(3, 3, mmap=False)


def test_only_fresh_samples_decide() -> None:
    told = Lab(PEAK).drive()
    duel = [each for each in told.rounds if each.stage == "duel" and "3 threads" in run_names(each)]
    assert told.done.estimate is not None
    assert told.done.estimate.count == len(duel) >= 6


def test_the_default_stays_if_all_settings_are_equal() -> None:
    told = Lab(FLAT).drive()
    assert (told.done.winner, told.done.verdict) == ("default", EQUAL)
    assert "is equal within 2 %" in told.done.reason
    assert told.done.resolution == 0.02


def test_a_default_that_is_best_is_decided_by_a_duel_with_the_next_best() -> None:
    told = Lab(curve({1: 0.4, 2: 0.7, 3: 0.8, 4: 1.0, 8: 0.5}, mmap=0.9, flash=0.7)).drive()
    assert (told.done.winner, told.done.verdict) == ("default", SLOWER)
    assert "The best other setting, no mmap, is slower." in told.done.reason


def test_what_is_not_decided_says_how_long_it_would_take() -> None:
    told = Lab(noisy(FLAT, 0.1, 1)).drive(SPACE._replace(fixed=()), budget=60.0)
    assert (told.done.winner, told.done.verdict) == ("default", OPEN)
    assert re.search(r"would need about \d+ (s|min) more \(see --budget\)", told.done.reason)


def test_a_smaller_gain_than_the_resolution_is_equal() -> None:
    small = curve({1: 0.4, 2: 0.7, 3: 1.03, 4: 1.0, 8: 0.5})
    space = SPACE._replace(fixed=())
    assert Lab(small).drive(space).done.winner == "3 threads"
    told = Lab(small).drive(space, resolution=0.05)
    assert (told.done.winner, told.done.verdict) == ("default", EQUAL)


def test_the_second_round_has_all_thread_counts_and_the_default() -> None:
    """The first one only tells what the others cost."""
    first, second = (ask for ask in Lab(PEAK).drive().asks[:2] if isinstance(ask, Measure))
    assert {*first.order} == {"default", "upstream"}
    assert second.stage == "threads"
    names = {"default", "upstream", "performance", "1 thread", "2 threads", "3 threads"}
    assert {*second.order} == {*names, "8 threads"}
    assert second.order.count("default") == 1


def slow_to_load(budget: float, loading: float) -> tuple[Search, Decision, float]:
    """Return a search where each setting but the default takes so many seconds to load, its
    decision and the seconds that it spent."""
    search, loaded, spent = Search(SLIM, Rounds(Objective(), budget=budget)), {"default"}, 0.0
    while not isinstance(step := search.ask(), Decision):
        if isinstance(step, Check):
            search.tell_check(step.name, None, spent)
            continue
        runs = []
        for name in step.order:
            seconds = 0.5 if name in loaded else 0.5 + loading
            loaded.add(name)
            spent += seconds
            runs.append(Run(name, {TG: (PEAK(search.settings[name]),)}, seconds))
        search.tell(Round(len(search.rounds) + 1, step.stage, tuple(runs), spent))
    return search, step, spent


def test_what_cannot_be_loaded_in_time_is_left_out_and_said() -> None:
    search, done, spent = slow_to_load(40.0, 10.0)
    assert spent <= 40
    assert search.rounds.measured("1 thread") > 0
    assert "too short to try" in done.reason
    assert "8 threads" in done.reason and "slim file" in done.reason
    assert slow_to_load(400.0, 10.0)[1].winner == "3 threads"


def test_a_decision_can_be_given_more_time() -> None:
    lab = Lab(PEAK)
    short = lab.drive(budget=20.0)
    assert short.done.verdict == OPEN
    search, number = short.search, len(short.runs)
    spent = search.rounds.spent
    search.extend(spent, 300.0)
    while not isinstance(step := search.ask(), Decision):
        if isinstance(step, Check):
            search.tell_check(step.name, None, search.rounds.spent)
            continue
        runs = []
        for name in step.order:
            number += 1
            runs.append(lab.run(name, search.settings[name], number))
        search.tell(Round(len(search.rounds) + 1, step.stage, tuple(runs), float(number)))
    assert (step.winner, step.verdict) == ("3 threads", FASTER)
    again = Search(SPACE, Rounds(Objective(), budget=20.0))
    again.replay(search.rounds, search.rounds.checks, [(spent, 300.0)])
    assert again.ask() == step


@pytest.mark.parametrize("speed", [PEAK, FLAT])
def test_no_row_lacks_rounds_that_there_was_time_for(speed: Speed) -> None:
    rounds = Lab(speed).drive().search.rounds
    for name in {run.setting for each in rounds for run in each.runs} - {"default"}:
        _, ratio, verdict = rounds.shown(name)
        assert ratio is not None and verdict != OPEN, name


def test_prompts_are_measured_later_and_not_for_losers() -> None:
    told = Lab(PEAK).drive()
    rounds = Rounds(Objective())
    both = []
    for each in told.rounds:
        if rounds.phases("default") == (PP, TG):
            both.append(each.number)
            assert rounds.phases("upstream") == (PP, TG)
            assert rounds.phases("8 threads") == (TG,)
            assert rounds.phases("3 threads") == (PP, TG)
        rounds.add(each)
    assert both[:2] == [3, 11]


def test_the_order_changes_from_round_to_round() -> None:
    asks = [ask for ask in Lab(PEAK).drive().asks if isinstance(ask, Measure)]
    assert len({ask.order for ask in asks[:4]}) == 4
    duel = [ask.order[0] for ask in asks if ask.stage == "duel"]
    assert 0.2 < duel.count("default") / len(duel) < 0.6


def test_clear_losers_are_dropped_early() -> None:
    rounds = [each for each in Lab(PEAK).drive().rounds if each.stage == "threads"]
    runs = [name for each in rounds for name in run_names(each)]
    assert runs.count("1 thread") <= 4 <= runs.count("3 threads")  # which a level of 80 % needs


SLIM = SPACE._replace(fixed=(*FIXED, ("slim file", Setting(4, 4, embedding="q6_k"))))
"""The space of a model with a slim copy."""
BEST = curve({1: 0.4, 2: 0.7, 3: 0.8, 4: 1.0, 8: 0.5})
"""A machine whose default is best."""


@pytest.mark.parametrize("budget", [60.0, 300.0])
@pytest.mark.parametrize("speed", [BEST, PEAK])
def test_another_file_is_measured_early_costs_threads_no_round_and_never_wins(
    speed: Speed, budget: float
) -> None:
    lab = Lab(lambda setting: speed(setting) * (1.4 if setting.embedding else 1.0))
    told, plain = lab.drive(SLIM, budget), lab.drive(SPACE, budget)
    assert told.done.winner == plain.done.winner == ("default" if speed is BEST else "3 threads")
    stages, alone = ([each.stage for each in each.rounds] for each in (told, plain))
    assert stages.count("threads") >= alone.count("threads")
    judged = told.search.rounds.shown("slim file")
    assert judged.verdict == FASTER
    assert judged.ratio is not None
    assert judged.ratio.median == pytest.approx(1.4, abs=0.03)


MANY = (2, 8, 12, 16, 20, 24, 28, 31, 32, 64)


def test_of_many_thread_counts_those_halfway_to_the_best_are_tried() -> None:
    speed = curve({count: min(count, 20) / 32 - max(0, count - 20) / 100 for count in MANY})
    space = Space(Setting(32, 32), (), tuple(with_threads(n) for n in MANY if n != 32), ())
    told = Lab(speed).drive(space)
    assert told.done.winner == "20 threads"
    assert len(told.rounds[1].runs) == 3
    assert "2 threads" not in told.runs
    assert "too short" not in told.done.reason


def test_a_first_run_that_loads_the_model_does_not_make_later_rounds_dear() -> None:
    """After a first round of 10.5 s, the next ones take 3.5 s."""
    source = Lab(PEAK)
    search = Search(SPACE, Rounds(Objective(), budget=60.0))
    seen, spent, number = {"default"}, 10.0, 0
    while not isinstance(step := search.ask(), Decision):
        number += 1
        if isinstance(step, Check):
            spent += 3
            search.tell_check(step.name, None, spent)
            continue
        runs = []
        for place, name in enumerate(step.order):
            seconds = 0.5 if name in seen else 1.5
            seen.add(name)
            spent += seconds
            found = source.run(name, search.settings[name], 10 * number + place)
            runs.append(found._replace(seconds=seconds))
        search.tell(Round(len(search.rounds) + 1, step.stage, tuple(runs), spent))
    assert (step.winner, step.verdict) == ("3 threads", FASTER)
    assert spent <= 60


def test_another_file_that_fails_is_left_out() -> None:
    told = Lab(PEAK, {"slim file": "failed to load model"}).drive(SLIM)
    assert told.done.winner == "3 threads"
    assert told.runs.count("slim file") == 2


def test_without_a_search_another_file_gets_its_rounds_too() -> None:
    lab = Lab(lambda setting: 28.0 if setting.embedding else 20.0)
    told = lab.drive(SLIM._replace(threads=(), knobs=()))
    assert told.search.rounds.shown("slim file").verdict == FASTER


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


def test_of_equal_winners_the_one_with_fewest_threads_is_taken() -> None:
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


def test_a_default_that_crashes_ends_the_search() -> None:
    told = Lab(PEAK, {"default": "signal 11"}).drive()
    assert told.done.winner == "default"
    assert told.search.rounds.problem("default") == "signal 11"


def test_the_search_goes_on_without_a_setting_whose_output_is_wrong() -> None:
    lab = Lab(curve({1: 0.4, 2: 1.15, 3: 1.3, 4: 1.0, 8: 0.5}), wrong=("3 threads",))
    told = lab.drive()
    assert told.search.rounds.problem("3 threads") == "other text"
    assert told.done.winner == "2 threads"
    assert all("3 threads" not in ask.name for ask in told.asks[-1:] if isinstance(ask, Check))


def test_a_search_that_is_told_the_same_asks_the_same() -> None:
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


def test_an_interrupted_round_is_repeated_without_settings_that_are_out() -> None:
    search = Search(SPACE, Rounds(Objective(), budget=57))
    first = search.ask()
    assert isinstance(first, Measure)
    search.tell(Round(1, first.stage, tuple(Run(n, {TG: (1.0,)}, 1.0) for n in first.order), 2.0))
    step = search.ask()
    assert isinstance(step, Measure)
    runs = (
        Run("default", {TG: (1.0,)}, 1.0),
        Run("8 threads", {}, 1.0, "did not finish within 60 s"),
    )
    search.tell(Round(2, step.stage, runs, 20.0))
    rest = tuple(name for name in step.order if name != "8 threads")
    assert search.ask() == step._replace(order=rest)
    assert search.rounds.measured("default") == 2
    search.tell(Round(3, step.stage, tuple(Run(n, {TG: (1.0,)}, 1.0) for n in rest), 28.0))
    assert search.ask() != step._replace(order=rest)


def test_rounds_of_another_search_are_refused() -> None:
    search = Search(SPACE, Rounds(Objective(), budget=57))
    old = tuple(Run(name, {TG: (1.0,)}, 1.0) for name in ("default", "2 threads", "default"))
    with pytest.raises(UsageError, match="another version of the search"):
        search.replay([Round(1, "threads", old, 3.0)], ())


def test_an_interrupted_round_does_not_hide_that_the_default_is_out() -> None:
    search = Search(SPACE, Rounds(Objective(), budget=57))
    search.tell(Round(1, "threads", (Run("default", {}, 1.0, "did not finish within 60 s"),), 20.0))
    assert isinstance(search.ask(), Decision)


@pytest.mark.parametrize("budget", [0.0, 1.0, 8.0, 16.0, 25.0, 40.0])
def test_a_tiny_budget_is_kept_and_leads_to_no_winner(budget: float) -> None:
    told = Lab(PEAK).drive(budget=budget)
    first = len(told.rounds[0].runs)
    assert told.rounds[-1].elapsed <= max(budget, first)
    if len(told.runs) < 30:
        assert (told.done.winner, told.done.verdict) == ("default", OPEN)


def test_costly_runs_mean_fewer() -> None:
    told = Lab(PEAK, seconds=10.0).drive()
    assert told.rounds[-1].elapsed <= 300


def test_without_a_search_the_fixed_settings_are_measured() -> None:
    told = Lab(FLAT).drive(Space(Setting(4, 4), FIXED, (), ()))
    assert told.done.winner == "default"
    assert told.runs.count("upstream") == 11  # which a level of 99.9 % needs


@pytest.mark.parametrize("seconds", [0.3, 2.7])
def test_any_budget_comes_to_an_end(seconds: float) -> None:
    """Even if time is left for one more pair, but not for a round of the duel."""
    lab = Lab(curve({1: 1.3, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5}), seconds=seconds)
    for tenths in range(0, 600, 13):
        assert lab.drive(budget=tenths / 10).done


KNOBBY = curve({1: 0.4, 2: 0.7, 3: 0.8, 4: 1.0, 8: 0.5}, mmap=1.3)


def test_the_reason_names_what_there_was_no_time_to_try() -> None:
    told = Lab(KNOBBY).drive(budget=18.0)
    done = told.done
    assert (done.winner, done.verdict) == ("default", OPEN)
    assert "too short" in done.reason and "flash attention" in done.reason


def test_a_duel_that_time_cut_short_has_no_winner() -> None:
    told = Lab(KNOBBY).drive(budget=25.0)
    done = told.done
    assert (done.winner, done.verdict) == ("default", OPEN)


def test_a_gain_that_no_time_was_left_to_confirm_is_not_decided() -> None:
    told = Lab(PEAK).drive(Space(SPACE.default, (), SPACE.threads, ()), budget=12.0)
    done = told.done
    assert (done.winner, done.verdict, done.estimate) == ("default", OPEN, None)
    assert "too short to confirm the best" in done.reason


def test_settings_that_were_tried_and_failed_are_no_untried_ones() -> None:
    lab = Lab(PEAK, {"3 threads": "killed by SIGILL"})
    told = lab.drive(Space(SPACE.default, (), SPACE.threads[2:3], ()))
    assert told.done.reason == "No other setting that was tried works."


def test_what_every_good_thread_count_changes_too_is_no_untried_change() -> None:
    """The planned binding goes with fewer threads, so the binding itself is left out."""
    bound = (("OMP_PLACES", "cores"), ("OMP_PROC_BIND", "close"))
    unset = tuple(name for name, _ in bound)
    threads = tuple(with_threads(count)._replace(unset_env=unset) for count in (2, 3))
    binding = Knob("binding", (Change("not bound", unset_env=unset),))
    space = Space(Setting(4, 4, env=bound), (), threads, (binding,))
    told = Lab(curve({2: 1.3, 3: 1.2, 4: 1.0})).drive(space)
    assert told.done.winner == "2 threads"
    assert "too short" not in told.done.reason


def test_without_a_search_the_reason_claims_nothing() -> None:
    told = Lab(FLAT).drive(Space(Setting(4, 4), FIXED, (), ()))
    assert told.done.verdict == OPEN
    assert "No other setting was tried" in told.done.reason


def test_a_change_that_only_seems_to_help_is_left_out() -> None:
    # Flash attention seems to gain something until the duel compares it with "no mmap" alone.
    slower = {1: 0.4, 2: 0.6, 3: 0.8, 4: 1.0, 8: 0.5}
    told = Lab(curve(slower, mmap=1.3, flash=1.004)).drive()
    assert told.done.winner == "no mmap"


def test_the_duel_includes_what_its_finalist_is_built_on() -> None:
    speed = curve({1: 0.4, 2: 0.7, 3: 1.2, 4: 1.0, 8: 0.5}, mmap=1.2, flash=0.9)
    told = Lab(speed).drive()
    assert told.done.winner == "3 threads + no mmap"
    duel = {run.setting for each in told.rounds if each.stage == "duel" for run in each.runs}
    assert {"3 threads", "3 threads + no mmap", "default"} <= duel


# Rules that a search keeps whatever it finds


def noisy(speed: Speed, spread: float, seed: int) -> Speed:
    """The same speeds with log-normal noise, alike for the same seed."""
    source = random.Random(seed)
    return lambda setting: speed(setting) * source.lognormvariate(0, spread)


def named(told: Told) -> set[str]:
    return set(told.search.settings)


def test_a_replay_of_a_whole_search_ends_with_the_same_checks_and_decision() -> None:
    lab = Lab(curve({1: 0.4, 2: 1.15, 3: 1.3, 4: 1.0, 8: 0.5}, mmap=1.1), wrong=("3 threads",))
    told = lab.drive()
    again = Search(SPACE, Rounds(Objective(), budget=300))
    again.replay(told.rounds, told.search.rounds.checks)
    assert again.rounds.checks == told.search.rounds.checks
    assert (again.ask(), again.settings) == (told.done, told.search.settings)


def test_two_values_of_one_knob_are_never_stacked() -> None:
    loading = Knob(
        "loading", (*NO_MMAP.changes, Change("locked", (("mlock", True),))), *NO_MMAP[2:]
    )

    def speed(setting: Setting) -> float:
        factor = 1.3 if setting.mmap is False else 1.0
        return 20 * factor * (1.2 if setting.mlock else 1.0) * (1.1 if setting.flash else 1.0)

    told = Lab(speed).drive(Space(Setting(4, 4), (), (), (loading, FLASH)))
    assert told.done.winner == "no mmap + flash attention"
    assert not any("no mmap" in name and "locked" in name for name in named(told))


def test_what_changes_nothing_is_not_measured() -> None:
    threads = tuple(map(with_threads, (2, 4)))
    told = Lab(PEAK).drive(Space(Setting(4, 4), (), threads, (NO_MMAP,)))
    assert named(told) == {"default", "2 threads", "no mmap"}


def test_the_simplest_of_those_alike_is_built_upon() -> None:
    alike = curve({1: 0.4, 2: 1.2, 3: 1.205, 4: 1.0, 8: 0.5}, mmap=1.2)
    told = Lab(noisy(alike, 0.02, 1)).drive(SPACE._replace(fixed=()))
    assert "2 threads + no mmap" in named(told)
    assert "3 threads + no mmap" not in named(told)


def test_a_duel_has_two_finalists_at_most() -> None:
    alike = noisy(curve({1: 1.3, 2: 1.3, 3: 1.3, 4: 1.0, 8: 1.3}), 0.02, 6)
    told = Lab(alike).drive(SPACE._replace(fixed=(), knobs=()))
    duels = [{*run_names(each)} - {"default"} for each in told.rounds if each.stage == "duel"]
    assert max(map(len, duels)) == 2


def run_names(told: Round) -> list[str]:
    return [run.setting for run in told.runs]


def test_a_finalist_meets_what_it_was_built_on_last() -> None:
    lock = Knob("lock", (Change("locked", (("mlock", True),)),))

    def speed(setting: Setting) -> float:
        return (
            PEAK(setting)
            * (1.3 if setting.mmap is False else 1.0)
            * ((1.2 if setting.flash else 1.0) * (1.1 if setting.mlock else 1.0))
        )

    told = Lab(speed).drive(SPACE._replace(fixed=(), knobs=(NO_MMAP, FLASH, lock)), 600.0)
    assert told.done.winner == "3 threads + no mmap + flash attention + locked"
    duel = {name for each in told.rounds if each.stage == "duel" for name in run_names(each)}
    assert "3 threads + no mmap + flash attention" in duel


def test_a_short_duel_has_enough_rounds() -> None:
    alike = curve({1: 1.3, 2: 1.31, 3: 1.3, 4: 1.0, 8: 1.3})
    told = Lab(alike).drive(SPACE._replace(fixed=(), knobs=()), budget=27.0)
    assert [each.stage for each in told.rounds].count("duel") >= 6
    assert told.done.verdict == FASTER


def test_one_bad_run_of_two_does_not_throw_a_setting_out() -> None:
    seen: list[Setting] = []

    def stumbling(setting: Setting) -> float:
        seen.append(setting)
        is_first = setting.threads == 3 and sum(each.threads == 3 for each in seen) == 1
        return PEAK(setting) * (0.2 if is_first else 1.0)

    assert Lab(stumbling).drive().done.winner == "3 threads"


def test_settings_that_cannot_win_get_six_rounds_and_no_more() -> None:
    told = Lab(noisy(curve({2: 1.0, 4: 1.0}), 0.1, 1)).drive(SPACE._replace(threads=(), knobs=()))
    assert told.runs.count("performance") == 6 < told.runs.count("upstream") <= 24


def test_a_simpler_setting_that_is_clearly_slower_is_no_finalist() -> None:
    told = Lab(curve({1: 0.4, 2: 1.1, 3: 1.3, 4: 1.0, 8: 0.5})).drive()
    assert told.done.winner == "3 threads"
    duel = [run_names(each) for each in told.rounds if each.stage == "duel"]
    assert not any({"2 threads", "3 threads"} <= {*names} for names in duel)


def test_fewer_threads_are_simpler_whatever_serves_the_prompt() -> None:
    threads = tuple(Change(f"{count}", (("threads", count),)) for count in (3, 2))
    told = Lab(lambda setting: {2: 24.0, 3: 23.8}.get(setting.threads, 20.0)).drive(
        Space(Setting(4, 4), (), threads, ())
    )
    assert told.done.winner == "2"
