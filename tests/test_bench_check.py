"""Checking a setting's output: by the self-test, and by comparison with the default's text."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench.resident import Residents
from bitnet_tuning.bench.runner import Patience
from bitnet_tuning.bench.words import QUESTION, Checker
from bitnet_tuning.engine.find import EMBEDDED
from bitnet_tuning.launch.failure import NO_END
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.serve.server import server_of
from bitnet_tuning.verify import selftest
from tests.bench_engines import FOLDERS, Engines, compiled, facts_of
from tests.engines import FakeEngine

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")

DEFAULT, TWO = Setting(1, 1), Setting(2, 2)
FLASH = DEFAULT._replace(flash=True)
KNOWN = {case.prompt: case.text for case in selftest.load_cases()}
SOON = Patience(first=60.0, least=5.0, factor=1.0)

Make = Callable[..., tuple[FakeEngine, Checker]]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    return Engines(tmp_path_factory.mktemp("engines"))


@pytest.fixture
def make(engines: Engines) -> Make:
    """Make a fake engine that knows the demo model's texts, and a checker of its settings."""

    def made(
        generation: str = "bitnet", context: int | None = None, **curve: object
    ) -> tuple[FakeEngine, Checker]:
        fake, facts, _ = engines.get(generation)
        fake.curve(**{"texts": KNOWN, **curve})
        model = facts.model._replace(context_length=context or facts.model.context_length)
        return fake, Checker(facts._replace(model=model), DEFAULT, SOON)

    return made


def altered(folder: Path, old: str, new: str, **curve: object) -> tuple[FakeEngine, Checker]:
    """Make a fake engine with a changed program, and a checker of its settings."""
    fake = FakeEngine(folder / "checkout").curve(**curve)
    source = fake.cli.read_text()
    assert old in source
    fake.cli.write_text(source.replace(old, new))
    facts = facts_of(str(fake.cli), folder)
    model = facts.model._replace(context_length=8192)
    return fake, Checker(facts._replace(model=model), DEFAULT, SOON)


def prompts(fake: FakeEngine) -> list[str]:
    """Return the prompts other than the demo model's."""
    found = [run["argv"][run["argv"].index("-p") + 1] for run in fake.prompts()]
    return [prompt for prompt in found if prompt not in KNOWN]


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_the_same_words_are_right(make: Make, generation: str) -> None:
    fake, checker = make(generation)
    assert checker.problem(TWO) is None
    assert checker.problem(TWO._replace(mmap=False)) is None
    assert not checker.notes
    assert prompts(fake) == [QUESTION] * 3, "the default's text is made once"


def test_loaded_servers_write_the_texts_of_the_users_model(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout", server=True)
    fake.curve(texts=KNOWN, text={"mmap=0": " other words"})
    facts = facts_of(str(fake.cli), tmp_path)
    facts = facts._replace(model=facts.model._replace(context_length=8192))
    with closing(Residents(facts, server_of(facts.engine))) as residents:
        checker = Checker(facts, DEFAULT, SOON, residents)
        assert checker.problem(TWO) is None
        assert checker.problem(TWO._replace(ubatch=64)) is None
        asked = [each["prompt"] for each in fake.asked()]
        assert asked == [QUESTION] * 3, "the default's text is made once"
        assert len(prompts(fake)) == 2, "the servers' context is too short for the long prompt"
        unmapped = TWO._replace(mmap=False)
        assert "self-test" in str(checker.problem(unmapped))
        fake.curve(text={"mmap=0": " other words"})
        problem = Checker(facts, DEFAULT, SOON, residents).problem(unmapped)
        assert str(problem).startswith('writes other words than the default: "other words" instead')
        assert not checker.notes
    assert len(fake.servers()) == 4, "each is loaded once"


@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_a_setting_that_fails_the_self_test_alone_is_out(make: Make, generation: str) -> None:
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
    (note,) = checker.notes.values()
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
    assert "/nowhere/demo.gguf" in checker.notes["demo"]


@pytest.mark.parametrize(("setting", "count"), [(FLASH, 512), (DEFAULT._replace(ubatch=64), 64)])
def test_a_setting_that_computes_prompts_differently_gets_a_long_one(
    make: Make, setting: Setting, count: int
) -> None:
    fake, checker = make(context=8192)
    assert checker.problem(setting) is None
    first, second, theirs, ours = prompts(fake)
    assert first == second == QUESTION, "the quick comparison comes first"
    assert theirs == ours and theirs.endswith(QUESTION)
    assert len(theirs.split()) == count + len(QUESTION.split())


def test_a_difference_after_the_short_question_needs_no_long_prompt(make: Make) -> None:
    fake, checker = make(context=8192, text={"flash=1": " other"})
    wrong = checker.problem(FLASH)
    assert wrong and "other" in wrong
    assert set(prompts(fake)) <= {QUESTION}


def test_letters_as_tokens_need_fewer_words(tmp_path: Path) -> None:
    fake, checker = altered(tmp_path, "len(prompt.split())", "len(prompt)", texts=KNOWN)
    assert checker.problem(FLASH) is None
    assert 512 < len(prompts(fake)[-1]) < 1024


def test_a_slow_default_is_not_the_settings_fault(
    engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, facts, _ = engines.get()
    fake.curve(texts={}, hang=["threads=1"])
    monkeypatch.setattr(selftest, "RUN_SECONDS", 0.5)
    checker = Checker(facts, DEFAULT, Patience(first=0.5))
    assert checker.problem(TWO) is None
    assert any(
        f"the default setting failed: {NO_END} 0.5 s" in note for note in checker.notes.values()
    )


def test_a_long_prompt_fits_into_the_context(make: Make) -> None:
    fake, checker = make()
    assert checker.problem(FLASH) is None
    run = fake.prompts()[-1]["argv"]
    limit = read_model(demo.TQ2_0).context_length
    assert limit is not None
    assert int(run[run.index("-c") + 1]) <= limit
    assert len(prompts(fake)[-1]) < limit, "even with a token for each letter"


def test_a_default_that_varies_cannot_be_compared_with(tmp_path: Path) -> None:
    same = 'os.environ.get("FAKE_OUTPUT", " and more text")'
    varying = 'os.environ.get("FAKE_OUTPUT", f" text of {os.getpid()}")'
    fake, checker = altered(tmp_path, same, varying)
    assert checker.problem(TWO) is None
    assert checker.problem(TWO._replace(mmap=False)) is None
    assert any("does not repeat its own" in note for note in checker.notes.values())
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
    [({"crash": {"threads=2": 11}}, "SIGSEGV"), ({"hang": ["threads=2"]}, NO_END)],
)
def test_a_setting_that_crashes_or_hangs_is_out(
    make: Make, monkeypatch: pytest.MonkeyPatch, curve: dict[str, object], words: str
) -> None:
    monkeypatch.setattr(selftest, "RUN_SECONDS", 2.0)
    _, checker = make(**curve)
    assert words in str(checker.problem(TWO))
    assert checker.problem(DEFAULT._replace(mmap=False)) is None


def test_a_knob_that_the_cli_lacks_is_out(make: Make, engines: Engines) -> None:
    _, facts, _ = engines.get("mainline")
    flags = facts.engine.flags - {"--numa"}
    without = facts._replace(engine=facts.engine._replace(flags=flags))
    numa = DEFAULT._replace(numa="distribute")
    problem = Checker(without, DEFAULT, SOON).problem(numa)
    assert problem == "the program has no flag --numa"
    assert make("mainline")[1].problem(numa) is None


def test_a_default_that_crashes_is_told(make: Make) -> None:
    _, checker = make(crash={"threads=1": 11})
    assert checker.problem(TWO) is None
    reason = "the default setting failed: the engine was killed"
    assert any(reason in note for note in checker.notes.values())


@pytest.mark.slow
def test_the_embedded_engine_is_right_with_every_knob_that_it_has(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    checker = Checker(facts_of(EMBEDDED, tmp_path), DEFAULT)
    every = Setting(2, 1, mmap=False, flash=True, ubatch=8, numa="distribute")
    assert checker.problem(every) is None
    assert not checker.notes


@pytest.mark.skipif(not FOLDERS, reason="BITNET_TEST_ENGINES names no engine")
@pytest.mark.parametrize("folder", FOLDERS)
def test_compiled_engines_write_the_same_with_other_threads(folder: str, tmp_path: Path) -> None:
    checker = Checker(compiled(folder, tmp_path)[0], DEFAULT)
    assert checker.problem(TWO) is None
    assert checker.problem(TWO._replace(mmap=False)) is None
    assert not any("texts" in note for note in checker.notes.values())
