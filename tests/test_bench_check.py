"""Whether the output of a setting is right: the self-test, and the default's own words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench.runner import Patience
from bitnet_tuning.bench.words import QUESTION, Checker
from bitnet_tuning.engine.find import EMBEDDED
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.verify import selftest
from tests.engines import FakeEngine
from tests.test_bench_runner import FOLDERS, place, real

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

DEFAULT, TWO = Setting(1, 1), Setting(2, 2)
FLASH = DEFAULT._replace(flash=True)
KNOWN = {case.prompt: case.text for case in selftest.load_cases()}
SOON = Patience(first=20.0, least=5.0, factor=1.0)

Make = Callable[..., tuple[FakeEngine, Checker]]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A fake engine that knows the demo model's texts, and what checks it."""

    def made(generation: str = "bitnet", **curve: object) -> tuple[FakeEngine, Checker]:
        fake = FakeEngine(tmp_path / "checkout", generation).curve(**{"texts": KNOWN, **curve})
        return fake, Checker(place(str(fake.cli), tmp_path), DEFAULT, SOON)

    return made


def prompts(fake: FakeEngine) -> list[str]:
    """Those that were not of the demo model's texts."""
    found = [run["argv"][run["argv"].index("-p") + 1] for run in fake.prompts()]
    return [prompt for prompt in found if prompt not in KNOWN]


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_the_same_words_are_right(make: Make, generation: str) -> None:
    fake, checker = make(generation)
    assert checker.problem(TWO) is None
    assert checker.problem(TWO._replace(mmap=False)) is None
    assert checker.notes == ()
    assert prompts(fake) == [QUESTION] * 3, "the default's text is made once"


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_other_words_are_out(make: Make, generation: str) -> None:
    texts = {**KNOWN, "": ""}
    _, checker = make(generation, texts=texts, text={"flash=1,OMP_X=1": " and some text"})
    wrong = FLASH._replace(env=(("OMP_X", "1"),))
    problem = str(checker.problem(wrong))
    assert "self-test" in problem
    assert checker.problem(FLASH) is None


def test_words_that_differ_from_the_defaults_are_shown(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checker = make(texts={})
    monkeypatch.setenv("FAKE_FA_TEXT", " and some text")
    assert checker.problem(FLASH) == (
        'writes other words than the default: "and some text" instead of "and more text"'
    )
    assert checker.problem(TWO) is None


def test_a_failing_self_test_is_named(make: Make) -> None:
    _, checker = make(text={"threads=2": " GGGG"})
    problem = str(checker.problem(TWO))
    assert problem.startswith('the self-test failed: writes other words than expected: "GGGG"')


def test_without_a_self_test_the_texts_decide(make: Make) -> None:
    _, checker = make(texts={})
    assert checker.problem(TWO) is None
    (note,) = checker.notes
    assert note.startswith(
        "no setting is self-tested, since the default setting fails the self-test"
    )


def test_an_engine_that_cannot_load_the_demo_model_is_told(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, checker = make()
    monkeypatch.setattr(demo, "I2_S", "/nowhere/demo.gguf")
    monkeypatch.setattr(demo, "TQ2_0", "/nowhere/demo.gguf")
    assert checker.problem(TWO) is None
    assert "/nowhere/demo.gguf" in checker.notes[0]


@pytest.mark.parametrize(
    ("setting", "count"),
    [
        (FLASH, 512),
        (DEFAULT._replace(ubatch=64), 64),
        (DEFAULT._replace(ubatch=1024), 512),
    ],
)
def test_what_computes_prompts_otherwise_gets_a_long_one(
    tmp_path: Path, setting: Setting, count: int
) -> None:
    fake = FakeEngine(tmp_path / "checkout").curve(texts=KNOWN)
    here = place(str(fake.cli), tmp_path)
    large = here.model._replace(context_length=8192)
    assert Checker(here._replace(model=large), DEFAULT, SOON).problem(setting) is None
    first, second, theirs, ours = prompts(fake)
    assert first == second == QUESTION, "a quick look comes before"
    assert theirs == ours and theirs.endswith(QUESTION)
    assert len(theirs.split()) == count + len(QUESTION.split())


def test_what_a_short_question_shows_needs_no_long_prompt(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout").curve(texts=KNOWN, text={"flash=1": " other"})
    here = place(str(fake.cli), tmp_path)
    large = here.model._replace(context_length=8192)
    wrong = Checker(here._replace(model=large), DEFAULT, SOON).problem(FLASH)
    assert wrong and "other" in wrong
    assert set(prompts(fake)) <= {QUESTION}


def test_letters_as_tokens_need_fewer_words(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout").curve(texts=KNOWN)
    source = fake.cli.read_text()
    assert "len(prompt.split())" in source
    fake.cli.write_text(source.replace("len(prompt.split())", "len(prompt)"))
    here = place(str(fake.cli), tmp_path)
    large = here.model._replace(context_length=8192)
    assert Checker(here._replace(model=large), DEFAULT, SOON).problem(FLASH) is None
    assert 512 < len(prompts(fake)[-1]) < 1024


def test_a_slow_default_is_not_the_settings_fault(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, _ = make(texts={}, hang=["threads=1"])
    monkeypatch.setattr(selftest, "RUN_SECONDS", 0.5)
    checker = Checker(place(str(fake.cli), fake.checkout), DEFAULT, Patience(first=0.5))
    assert checker.problem(TWO) is None
    assert any(
        "the default setting failed: did not finish within 0.5 seconds" in note
        for note in checker.notes
    )


def test_a_long_prompt_fits_into_the_context(make: Make) -> None:
    fake, checker = make()
    assert checker.problem(FLASH) is None
    run = fake.prompts()[-1]["argv"]
    limit = read_model(demo.TQ2_0).context_length
    assert limit is not None
    assert int(run[run.index("-c") + 1]) <= limit
    assert len(prompts(fake)[-1]) < limit, "even with a token for each letter"


def test_a_default_that_varies_cannot_be_compared_with(make: Make) -> None:
    fake, checker = make(texts={})
    varying = 'os.environ.get("FAKE_OUTPUT", f" text of {os.getpid()}")'
    source = fake.cli.read_text()
    plain = 'os.environ.get("FAKE_OUTPUT", " and more text")'
    assert plain in source
    fake.cli.write_text(source.replace(plain, varying))
    assert checker.problem(TWO) is None
    assert checker.problem(TWO._replace(mmap=False)) is None
    assert any("does not repeat its own" in note for note in checker.notes)
    assert prompts(fake).count(QUESTION) == 3, "no more runs once that is known"


def test_text_that_got_lost_is_made_again(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, checker = make("mainline", texts={})
    assert checker.problem(TWO) is None
    monkeypatch.setenv("FAKE_LOSES", "0.5")
    assert checker.problem(TWO._replace(mmap=False)) is None
    assert prompts(fake).count(QUESTION) == 4


def test_a_default_that_lost_its_text_is_made_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, checker = make("mainline", texts={})
    assert checker.problem(TWO) is None
    monkeypatch.setenv("FAKE_LOSES", "0.5")
    monkeypatch.setenv("FAKE_LOSES_THREADS", "1")
    assert checker.problem(TWO._replace(flash=True)) is None
    long = [run["argv"] for run in fake.prompts() if run["argv"][-1] != QUESTION][-3:]
    assert [run[run.index("-t") + 1] for run in long] == ["1", "2", "1"]


def test_a_text_that_always_ends_early_is_out(make: Make) -> None:
    fake, checker = make("mainline", texts={}, text={"mmap=0": " and"})
    problem = str(checker.problem(DEFAULT._replace(mmap=False)))
    assert 'writes other words than the default: "and" instead of "and more text"' in problem
    assert prompts(fake).count(QUESTION) == 6


@pytest.mark.parametrize(
    ("curve", "words"),
    [
        ({"crash": {"threads=2": 11}}, "SIGSEGV"),
        ({"crash": {"threads=2": "exit 3"}}, "exit code 3"),
        ({"hang": ["threads=2"]}, "did not finish within"),
    ],
)
def test_a_setting_that_ends_badly_is_out(
    make: Make, monkeypatch: pytest.MonkeyPatch, curve: dict[str, object], words: str
) -> None:
    monkeypatch.setattr(selftest, "RUN_SECONDS", 2.0)
    _, checker = make(**curve)
    assert words in str(checker.problem(TWO))
    assert checker.problem(DEFAULT._replace(mmap=False)) is None


def test_a_knob_that_the_cli_lacks_is_out(make: Make) -> None:
    fake, checker = make("mainline")
    text = fake.completion.read_text().replace("--numa TYPE", "other TYPE")
    fake.completion.write_text(text)
    again = Checker(place(str(fake.cli), fake.checkout), DEFAULT, SOON)
    numa = DEFAULT._replace(numa="distribute")
    assert again.problem(numa) == "the program has no flag for NUMA (--numa)"
    assert checker.problem(numa) is None


def test_a_default_that_crashes_is_told(make: Make) -> None:
    _, checker = make(crash={"threads=1": 11})
    assert checker.problem(TWO) is None
    assert any(
        "the default setting failed: the engine was killed" in note for note in checker.notes
    )


def test_the_embedded_engine_is_right_with_every_knob(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    checker = Checker(place(EMBEDDED, tmp_path), DEFAULT)
    every = Setting(2, 1, mmap=False, flash=True, ubatch=8, poll=0, numa="distribute")
    assert checker.problem(every) is None
    assert checker.notes == ()


@pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")
@pytest.mark.parametrize("folder", FOLDERS)
def test_real_engines_repeat_their_words_with_other_threads(folder: str, tmp_path: Path) -> None:
    here, _ = real(folder, tmp_path)
    checker = Checker(here, DEFAULT)
    assert checker.problem(TWO) is None
    assert checker.problem(TWO._replace(mmap=False)) is None
    assert not any("texts" in note for note in checker.notes)
