"""Comparing the results of two benchmarks."""

from __future__ import annotations

import json
import re

import pytest

from bitnet_tuning.bench import compare
from bitnet_tuning.bench.compare import as_text
from bitnet_tuning.bench.comparison import Sizes
from bitnet_tuning.bench.results import Results
from bitnet_tuning.engine import builds
from bitnet_tuning.plan.profile import TG
from bitnet_tuning.store.codec import to_json
from tests.bench_samples import SETTINGS, SPEEDS, Simulator, sample_results

FASTER = {name: (pp, tg * 1.4) for name, (pp, tg) in SPEEDS.items()}


def verdicts(found: compare.Comparison, phase: str) -> dict[str, str]:
    return {pair.name: pair.verdict for pair in found.settings if pair.phase == phase}


def test_a_phase_that_became_faster_is_shown() -> None:
    found = compare.compare(sample_results(1), sample_results(2, FASTER))
    generation, prompts = verdicts(found, "tg"), verdicts(found, "pp")
    assert generation["default"] == generation["upstream"] == builds.FASTER
    assert set(prompts.values()) == {builds.OPEN}
    ratio = next(
        pair.ratio for pair in found.settings if (pair.name, pair.phase) == ("default", TG)
    )
    assert ratio.median == pytest.approx(1.4, rel=0.1)
    assert ratio.low < ratio.median < ratio.high


def test_the_other_way_round_it_is_slower() -> None:
    found = compare.compare(sample_results(2, FASTER), sample_results(1))
    assert verdicts(found, "tg")["default"] == builds.SLOWER


def test_equal_machines_seldom_differ() -> None:
    seen = [
        verdict
        for seed in range(10, 20, 2)
        for phase in ("pp", "tg")
        for verdict in verdicts(
            compare.compare(sample_results(seed), sample_results(seed + 1)), phase
        ).values()
    ]
    assert seen.count(builds.OPEN) >= 0.97 * len(seen) > 50


def renamed(results: Results, old: str, new: str) -> Results:
    settings = {new if name == old else name: each for name, each in results.settings.items()}
    rounds = tuple(
        each._replace(
            runs=tuple(
                run._replace(setting=new) if run.setting == old else run for run in each.runs
            )
        )
        for each in results.rounds
    )
    return results._replace(settings=settings, rounds=rounds, decision=None, checks=())


def test_equal_values_are_the_same_setting_whatever_its_name() -> None:
    found = compare.compare(sample_results(1), renamed(sample_results(2), "4 threads", "four"))
    assert ("4 threads", "four") in {(pair.name, pair.other) for pair in found.settings}
    assert found.only_a == found.only_b == ()
    assert "4 threads = four" in as_text(found)


def test_another_file_is_never_taken_for_the_default() -> None:
    slim = sample_results(2)
    setting = SETTINGS["default"]._replace(embedding="q6_k")
    found = compare.compare(
        sample_results(1), slim._replace(settings={**slim.settings, "slim file": setting})
    )
    assert found.only_b == ("slim file",)
    assert ("default", "default") in {(pair.name, pair.other) for pair in found.settings}


def test_other_values_are_another_setting_with_the_same_name() -> None:
    other = sample_results(2)
    changed = {**other.settings, "default": SETTINGS["default"]._replace(threads=5)}
    found = compare.compare(sample_results(1), other._replace(settings=changed))
    assert (found.only_a, found.only_b) == (("default",), ("default",))
    assert "default" not in {pair.name for pair in found.settings}
    text = as_text(found, ("before.json", "after.json"))
    assert "Speed of B (after.json) over A (before.json):" in text
    assert "Only in A: default\nOnly in B: default" in text


def test_other_differences_come_first_with_advice() -> None:
    one = sample_results(1)
    engine = one.engine._replace(
        version="4000", files=(one.engine.files[0]._replace(size=1),), git_commit=None
    )
    two = sample_results(2)._replace(engine=engine, warnings=(), host=one.host._replace(brand="X"))
    two = two._replace(options=one.options._replace(sizes=Sizes(128, 16, 2)))
    found = compare.compare(one, two)
    assert {each.what for each in found.differences} == {
        "machine", "engine", "engine's files", "engine's commit", "tokens measured", "warnings",
    }  # fmt: skip
    files = next(each for each in found.differences if each.what == "engine's files")
    assert "2412344 bytes" in files.a and "1 bytes" in files.b
    text = as_text(found, width=200)
    assert "a prompt of 128 tokens" in text and "with the same --n-prompt and --n-gen" in text
    assert re.search(r"\nengine +A: version 3960 \(5eb47b72\)\n +B: version 4000\n", text)
    assert text.startswith("Not the same in both:\n")
    assert compare.compare(one, one).differences == ()


def test_other_models_are_named_in_a_line_and_no_ratio_becomes_zero() -> None:
    small = {name: (500 * pp, 500 * tg) for name, (pp, tg) in SPEEDS.items()}
    one = sample_results(1, small)
    one = one._replace(model=one.model._replace(name="tiny", size=1 << 20))
    text = as_text(compare.compare(one, sample_results(2)), width=100)
    assert [" ".join(each.split()) for each in text.splitlines()[:5]] == [
        "Not the same in both:",
        "model A: tiny, 1.0 MiB",
        "B: BitNet b1.58 2B 4T, 1.1 GiB",
        "(the ratios tell how the models differ, whatever else does)",
        "",
    ]
    assert "×0.0020" in text and "0.0019–0.0021" in text


def test_json_has_the_whole_comparison() -> None:
    found = compare.compare(sample_results(1), sample_results(2, FASTER))
    facts = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert set(facts) == {"differences", "settings", "only_a", "only_b", "resolution"}
    pair = facts["settings"][0]
    assert set(pair) == {"name", "other", "phase", "ratio", "verdict"}
    assert pair["ratio"]["low"] <= pair["ratio"]["median"] <= pair["ratio"]["high"]


def test_results_without_a_common_setting_are_reported() -> None:
    one = sample_results(1)
    found = compare.compare(one, one._replace(settings={}, rounds=(), checks=(), decision=None))
    assert found.settings == ()
    assert "No setting was measured in both." in as_text(found)


def test_results_with_many_rounds_are_compared() -> None:
    made = Simulator(4)
    for _ in range(600):
        made.add("threads", ["default", "default", "upstream"], SPEEDS)
    long = sample_results()._replace(rounds=tuple(made.rounds), decision=None, checks=())
    found = compare.compare(long, long)
    assert verdicts(found, TG)["default"] == builds.OPEN
