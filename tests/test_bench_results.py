"""Files of results: saved completely, read strictly, and as their schema and manual say."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from bitnet_tuning.bench import compare, results, summary
from bitnet_tuning.bench import summary as export
from bitnet_tuning.bench.comparison import Round, Run
from bitnet_tuning.bench.limits import Energy
from bitnet_tuning.bench.results import (
    Part,
    Surroundings,
    engine_facts,
    from_document,
    git_commit,
    load,
    model_facts,
    new_path,
    program,
    save,
    to_document,
)
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.errors import UsageError
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.host import host_facts
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.profile import PP, TG
from bitnet_tuning.store.codec import to_json
from tests.bench_samples import SNAPSHOT, SPEEDS, Simulator, sample_results
from tests.machines import Machine as FakeMachine
from tools.results_schema import document_schema

REPOSITORY = Path(__file__).resolve().parents[1]
NOW = "2026-01-31T20:59:59Z"


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    content = json.loads((REPOSITORY / "docs" / "results.schema.json").read_text())
    Draft202012Validator.check_schema(content)
    return Draft202012Validator(content)


def problems(schema: Draft202012Validator, document: object) -> list[str]:
    return [error.message for error in schema.iter_errors(document)]


def test_saved_results_are_loaded_unchanged(tmp_path: Path) -> None:
    path = str(tmp_path / "new folder" / "results.json")
    before = sample_results()
    save(path, before)
    assert load(path) == before
    assert os.listdir(os.path.dirname(path)) == ["results.json"]


def test_results_follow_their_schema(schema: Draft202012Validator, tmp_path: Path) -> None:
    whole = sample_results()
    assert problems(schema, to_document(whole)) == []
    begun = whole._replace(
        state="running", rounds=(), checks=(), decision=None, profile=None, settings={}
    )
    assert problems(schema, to_document(begun)) == []
    assert from_document(to_document(begun), "here") == begun


def test_failed_runs_follow_the_schema(schema: Draft202012Validator) -> None:
    made = Simulator()
    made.add("threads", ["default", "upstream"], SPEEDS, {"upstream": "killed by SIGSEGV"})
    document = to_document(sample_results()._replace(rounds=tuple(made.rounds)))
    assert problems(schema, document) == []
    document["rounds"][0]["runs"][1]["samples"] = {"tg": []}
    assert problems(schema, document) != []


def test_other_modules_facts_follow_the_schema(schema: Draft202012Validator) -> None:
    seen = SNAPSHOT
    around = Surroundings(
        seen,
        seen,
        conditions.between(seen, seen._replace(time=seen.time + 60)),
    )
    document = sample_results()._replace(
        conditions=around,
        energy=Part(to_json(Energy(1.5, (1.5, 1.2, 1.7), 64, "1.5 tokens per joule"))),
    )
    written = json.loads(results.to_text(document))
    assert problems(schema, written) == []
    assert from_document(written, "here") == document


def test_any_machine_follows_the_schema(schema: Draft202012Validator, tmp_path: Path) -> None:
    facts = host_facts(FakeMachine(tmp_path).regular(4, 2).host())
    document = sample_results()._replace(host=facts)
    assert problems(schema, to_document(document)) == []
    assert from_document(json.loads(results.to_text(document)), "here") == document


def test_the_schema_in_the_documentation_is_current(repository: Path) -> None:
    """`python3 tools/results_schema.py` writes it."""
    kept = json.loads((repository / "docs" / "results.schema.json").read_text())
    assert kept == document_schema()


def test_every_field_is_in_the_schema_and_in_the_manual(repository: Path) -> None:
    manual = (repository / "docs" / "results.md").read_text(encoding="utf-8")
    schema = json.loads((repository / "docs" / "results.schema.json").read_text())
    document = to_document(sample_results())
    assert list(document) == list(schema["properties"])
    names = {name for name in _names(schema) if re.fullmatch(r"[a-z_]+", name)}
    missing = {name for name in names if f"`{name}`" not in manual}
    assert missing == set()


def _names(schema: Any) -> set[str]:
    """Return the names of all properties at any depth."""
    found: set[str] = set()
    if isinstance(schema, Mapping):
        found |= set(schema.get("properties", {})) if "type" in schema else set()
        return found.union(*map(_names, schema.values()))
    return found.union(*map(_names, schema)) if isinstance(schema, list) else found


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("state",), "paused", "state"),
        (("created",), "yesterday", "created"),
        (("options", "budget"), "300", "options.budget"),
        (("options", "budget"), True, "options.budget"),
        (("options", "budget"), 10**400, "options.budget"),
        (("options", "objective", "name"), "speed", "options.objective.name"),
        (("host",), [], "host"),
        (("host", "logical_cpus", 3), 1.5, "host.logical_cpus[3]"),
        (("engine", "files", 0, "size"), None, "engine.files[0].size"),
        (("model", "extra"), 1, "model.extra"),
        (("settings", "default", "threads"), 0, "settings.default.threads"),
        (("settings", "default", "cpus"), "x", "settings.default.cpus"),
        (("settings", "default", "colour"), None, "settings.default.colour"),
        (("rounds", 2, "runs", 0, "setting"), "unheard of", "rounds[2]"),
        (("rounds", 2, "runs", 0, "samples", "tg", 0), -1.0, "rounds[2].runs[0].samples.tg[0]"),
        (("rounds", 2, "runs", 0, "samples", "tg"), [], "rounds[2].runs[0].samples.tg"),
        (("rounds", 2, "runs", 0, "samples", "xx"), [1.0], "rounds[2].runs[0].samples"),
        (("rounds", 2, "runs", 0, "samples", "tg", 0), "fast", "rounds[2].runs[0].samples.tg[0]"),
        (("rounds", 2, "runs", 0, "samples"), {}, "rounds[2].runs[0]"),
        (("checks", 0, "setting"), "unheard of", "checks"),
        (("decision", "winner"), "unheard of", "decision.winner"),
        (("decision", "estimate"), 1.2, "decision.estimate"),
    ],
)
def test_a_damaged_field_is_named(
    tmp_path: Path, path: tuple[Any, ...], value: Any, named: str
) -> None:
    document = json.loads(results.to_text(sample_results()))
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    file = tmp_path / "damaged.json"
    file.write_text(json.dumps(document))
    with pytest.raises(UsageError) as caught:
        load(str(file))
    assert str(file) in caught.value.cause
    assert f"damaged: {named}: " in caught.value.cause
    assert caught.value.remedy


def test_a_missing_field_is_named() -> None:
    document = to_document(sample_results())
    del document["model"]["size"]
    with pytest.raises(UsageError, match=re.escape("damaged: model.size: missing")):
        from_document(document, "here")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"schema": true}', '{"schema": "1"}', "[" * 100_000, '{"a": NaN}',
     '{"schema": 0}', "\x00"],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(UsageError, match=r"other\.json is damaged"):
        load(str(file))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.json"
    text = results.to_text(sample_results())
    file.write_text(text[: len(text) // 2])
    with pytest.raises(UsageError, match="damaged: not valid JSON"):
        load(str(file))


def test_numbers_that_json_lacks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "nan.json"
    file.write_text(results.to_text(sample_results()).replace('"budget": 300.0', '"budget": NaN'))
    with pytest.raises(UsageError, match="NaN is not a number"):
        load(str(file))
    spoilt = sample_results()._replace(rounds=(Round(1, "threads", (), float("nan")),))
    with pytest.raises(ValueError):
        save(str(file), spoilt)


def test_results_of_a_newer_version_are_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="newer") as caught:
        from_document({"schema": 2, "something": "else"}, "future.json")
    assert "update" in caught.value.remedy


def test_files_that_cannot_be_read_or_written_are_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"absent\.json: No such file"):
        load(str(tmp_path / "absent.json"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write") as caught:
        save(str(tmp_path / "file" / "results.json"), sample_results())
    assert "--output" in caught.value.remedy


def test_a_failed_save_keeps_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    save(str(path), sample_results())
    before = path.read_bytes()
    with pytest.raises(ValueError):
        save(str(path), sample_results()._replace(rounds=(Round(1, "x", (), float("inf")),)))
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["results.json"]


def test_results_that_were_edited_by_hand_are_refused_with_a_reason() -> None:
    facts = to_document(sample_results())
    options = {**facts["options"], "sizes": {"n_prompt": 8, "n_gen": 8, "repetitions": 10**6}}
    with pytest.raises(UsageError, match="repetitions: 1000000 is more than 100"):
        from_document({**facts, "options": options}, "x.json")
    default = {**facts["settings"]["default"], "embedding": "q6_k"}
    spoilt = {**facts, "settings": {**facts["settings"], "default": default}}
    with pytest.raises(UsageError, match='"default" runs another file, but there is none'):
        from_document(spoilt, "x.json")
    fixed = {"slim file": {**facts["space"]["default"], "embedding": "q6_k"}}
    with pytest.raises(UsageError, match='"slim file" runs another file'):
        from_document({**facts, "space": {**facts["space"], "fixed": fixed}}, "x.json")


def test_unprintable_names_are_kept(tmp_path: Path) -> None:
    odd = "m\udcff\n<script>\u4f60.gguf"  # bytes that are not UTF-8, as os.fsdecode has them
    before = sample_results()
    before = before._replace(model=before.model._replace(path=odd))
    save(str(tmp_path / "odd.json"), before)
    assert load(str(tmp_path / "odd.json")).model.path == odd


def test_a_new_file_gets_a_name_that_is_free(tmp_path: Path) -> None:
    assert Path(new_path(str(tmp_path), NOW)).name == "results-2026-01-31T20-59-59Z.json"
    os.symlink("nowhere", tmp_path / "results-2026-01-31T20-59-59Z-2.json")
    assert new_path(str(tmp_path), NOW).endswith("Z-3.json")


def test_benchmarks_that_begin_in_the_same_second_get_different_files(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    names = {new_path(str(folder), NOW) for _ in range(3)}
    assert {os.path.basename(name) for name in names} == {path.name for path in folder.iterdir()}
    assert len(names) == 3


def test_a_folder_that_cannot_be_written_is_an_error_of_the_save(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = new_path(str(tmp_path / "file"), NOW)
    with pytest.raises(UsageError, match="cannot write results"):
        save(path, sample_results())


def test_every_sample_is_a_line_of_csv() -> None:
    run = Run("upstream", {PP: (50.0, 51.5), TG: (17.0,)}, 1.5)
    rounds = (
        Round(1, "threads", (run, Run("default", {}, 0.2, 'said "no", and\nended')), 1.7),
        Round(2, "duel", (run._replace(samples={TG: (18.0,)}),), 3.2),
    )
    text = export.to_csv(sample_results()._replace(rounds=rounds))
    lines = list(csv.DictReader(io.StringIO(text)))
    assert tuple(lines[0]) == export.COLUMNS
    speeds = [(line["phase"], line["sample"], line["tokens_per_second"]) for line in lines]
    assert speeds == [
        ("pp", "1", "50.0"), ("pp", "2", "51.5"), ("tg", "1", "17.0"), ("", "", ""),
        ("tg", "1", "18.0"),
    ]  # fmt: skip
    assert lines[3]["problem"] == 'said "no", and\nended'
    assert (lines[0]["words"], lines[3]["position"], lines[4]["round"]) == ("2 threads", "2", "2")


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder: Path, *words: str) -> str:
    """Run git in a folder as some author and return what it prints."""
    author = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    found = subprocess.run(
        ("git", *author, *words), cwd=folder, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "check out"
    (folder / "bitnet_tuning").mkdir(parents=True)
    git(folder, "init", "--quiet")
    return folder


def commit(folder: Path) -> str:
    git(folder, "commit", "--quiet", "--allow-empty", "-m", "first")
    return git(folder, "rev-parse", "HEAD")


@needs_git
def test_a_checkouts_commit_is_read(checkout: Path, tmp_path: Path) -> None:
    assert git_commit(str(checkout)) is None, "nothing is committed yet"
    now = commit(checkout)
    assert git_commit(str(checkout)) == now
    git(checkout, "worktree", "add", "--quiet", str(tmp_path / "other"))
    assert git_commit(str(tmp_path / "other")) == now
    assert git_commit(str(checkout / "bitnet_tuning")) is None, "a folder in a checkout is none"


def test_a_commit_is_read_from_gits_files(tmp_path: Path) -> None:
    git, name = tmp_path / ".git", "refs/heads/main"
    (git / "refs" / "heads").mkdir(parents=True)
    for text in ("", "0123456\n", f"ref: {name}\n"):
        (git / "HEAD").write_text(text)
        assert git_commit(str(tmp_path)) is None
    (git / "HEAD").write_text("0" * 40 + "\n")
    assert git_commit(str(tmp_path)) == "0" * 40
    (git / "HEAD").write_text(f"ref: {name}\n")
    (git / "packed-refs").write_text(f"# pack-refs\n{'1' * 40} refs/heads/x\n{'2' * 40} {name}\n")
    assert git_commit(str(tmp_path)) == "2" * 40
    (git / name).write_text("3" * 40 + "\n")
    assert git_commit(str(tmp_path)) == "3" * 40
    assert git_commit(str(tmp_path / "other")) is None


@needs_git
def test_a_checkout_that_the_package_was_copied_into_is_not_its_commit(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = commit(checkout)
    monkeypatch.setattr("bitnet_tuning.__file__", str(checkout / "bitnet_tuning" / "__init__.py"))
    assert program().git_commit is None
    (checkout / "pyproject.toml").write_text('[project]\nname = "bitnet-tuning"\n')
    assert program().git_commit == now


def test_engine_and_model_follow_the_schema(
    schema: Draft202012Validator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {str(tmp_path): "0123456789abcdef" * 4}
    monkeypatch.setattr(results, "git_commit", commits.get)
    (tmp_path / "build" / "bin").mkdir(parents=True)
    cli = str(tmp_path / "build" / "bin" / "llama-cli")
    Path(cli).write_text("program")
    engine = Engine(
        location=Location(cli, "named"),
        version="1",
        flags=frozenset(),
        chat_flags=frozenset(),
        openmp=None,
        isa=frozenset(("NEON", "AVX2")),
        i2_s=None,
        architectures={},
        files=(cli,),
        completion=None,
    )
    model = ModelFile("m.gguf", 5, "bitnet", "m", "i2_s", (), None, None, None, None, False)
    facts = engine_facts(engine, None)
    assert (facts.generation, facts.isa) == ("classic", ("AVX2", "NEON"))
    assert facts.git_commit == commits[str(tmp_path)]
    assert [(file.path, file.size) for file in facts.files] == [(cli, 7)]
    document = sample_results()._replace(engine=facts, model=model_facts(model))
    assert problems(schema, to_document(document)) == []


WHOLE = json.loads(results.to_text(sample_results()))


def places(content: Any) -> list[tuple[Any, ...]]:
    """Return the paths to all values; of lists, to the first two entries."""
    inner: list[tuple[Any, Any]] = list(content.items()) if isinstance(content, dict) else []
    if isinstance(content, list):
        inner = list(enumerate(content[:2]))
    below = [(key, *rest) for key, part in inner for rest in places(part)]
    return [(), *below]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(places(WHOLE)[1:]),
    st.sampled_from(
        [None, True, -1, 0, 1.5, 10**400, "", "x", "0-3", [], {}, [1], ["x"], {"a": 1}]
    ),
)
@example(("rounds", 0, "runs", 0, "samples", "tg", 0), 1e308)
@example(("rounds", 0, "runs", 0, "samples", "tg", 0), 5e-324)
@example(("rounds", 0, "runs", 0, "seconds"), 1e308)
@example(("decision", "estimate", "low"), 5e-324)
def test_whatever_is_damaged_is_refused_or_harmless(path: tuple[Any, ...], value: Any) -> None:
    document = copy.deepcopy(WHOLE)
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    try:
        found = from_document(document, "damaged.json")
    except UsageError as error:
        assert error.remedy
        return
    assert from_document(json.loads(results.to_text(found)), "again") == found
    assert summary.Summary(found).rows and summary.Summary(found).answer
    assert compare.as_text(compare.compare(found, sample_results()))
