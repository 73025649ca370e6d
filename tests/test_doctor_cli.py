"""``python3 -m bitnet_tuning doctor``: its output, its exit codes, and recorded machines."""

from __future__ import annotations

import errno
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bitnet_tuning import demo
from bitnet_tuning.__main__ import main
from bitnet_tuning.cli.doctor import show
from bitnet_tuning.doctor import CHECKS, case, examine, gather
from bitnet_tuning.doctor.case import Check, Finding
from bitnet_tuning.errors import TuningError, UsageError
from bitnet_tuning.machine import conditions
from tests.conftest import REPOSITORY
from tests.doctor_cases import case_of, laptop
from tests.engines import FakeEngine
from tests.gguf_files import write_bitnet
from tests.machines import GIBIBYTE, Machine

DUMPS = sorted((REPOSITORY.parent / "shared" / "hosts").glob("*.tar.gz"))

EVERY = [
    Finding("c", "bad", "broken", "mend it", "a manual"),
    Finding("d", "warn", "worn", "oil it", "experience"),
    Finding("b", "unknown", "dark", None, "a lamp"),
    Finding("a", "good", "fine", None, "somewhere"),
]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without anything that is worth a warning."""
    made = laptop(tmp_path / "root").lock_limit("unlimited").huge_pages("madvise")
    return made.clock(4000, 4000).governors(dict.fromkeys(range(8), "performance"))


@pytest.fixture
def fake(tmp_path: Path) -> FakeEngine:
    pytest.importorskip("resource", reason="fake engines are scripts: POSIX")
    return FakeEngine(tmp_path / "checkout")


class Answer(NamedTuple):
    """The exit code of the doctor, and the JSON document that it printed."""

    code: int
    document: dict[str, Any]

    @property
    def found(self) -> dict[str, dict[str, str]]:
        """The findings by their names."""
        return {each["name"]: each for each in self.document["findings"]}


Doctor = Callable[..., Answer]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """The command, for a root folder and with other flags."""

    def call(root: Path | str, *flags: str) -> Answer:
        code = main(["doctor", "--root", str(root), "--json", *flags])
        return Answer(code, json.loads(capsys.readouterr().out))

    return call


# Exit codes and JSON


def test_a_machine_without_problems_exits_with_0(machine: Machine, doctor: Doctor) -> None:
    code, document = doctor(machine.path, "--strict")
    assert code == 0
    assert (document["summary"]["bad"], document["summary"]["warn"]) == (0, 0)
    assert document["summary"]["good"] > 10
    assert list(document["findings"][0]) == ["name", "state", "text", "advice", "source"]
    assert {"threads", "SMT", "NUMA", "governor"} <= {each["name"] for each in document["findings"]}


def test_warnings_change_the_exit_code_only_with_strict(machine: Machine, doctor: Doctor) -> None:
    machine.huge_pages("never")
    assert doctor(machine.path).code == 0
    code, document = doctor(machine.path, "--strict")
    assert (code, document["summary"]["exit_code"]) == (2, 2)


def test_something_bad_comes_first(machine: Machine, doctor: Doctor) -> None:
    machine.huge_pages("never").clock(800, 4000)
    code, document = doctor(machine.path, "--strict")
    assert code == 1
    assert [each["state"] for each in document["findings"][:2]] == ["bad", "warn"]
    assert document["findings"][0]["name"] == "clock under load"
    assert "Begin with: clock under load." in document["summary"]["text"]


def test_sizes_are_in_gibibytes(machine: Machine, doctor: Doctor) -> None:
    machine.meminfo(8 * GIBIBYTE, 6 * GIBIBYTE)
    assert doctor(machine.path).found["memory"]["text"] == (
        "6.0 GiB of memory is available, BitNet b1.58 2B-4T needs about 1.3 GiB"
    )


def test_counts_and_summary() -> None:
    text = "4 checks: 1 bad, 1 warning, 1 unknown, 1 good. Begin with: c."
    counts = {"bad": 1, "warn": 1, "unknown": 1, "good": 1}
    assert case.summary(EVERY) == {**counts, "exit_code": 1, "text": text}
    assert case.summary([])["text"].startswith("0 checks")
    for found, lax, strict in ((EVERY, 1, 1), (EVERY[1:], 0, 2), (EVERY[2:], 0, 0)):
        assert case.summary(found, strict=False)["exit_code"] == lax
        assert case.summary(found, strict=True)["exit_code"] == strict


# Text


def test_without_a_terminal_findings_are_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(EVERY)
    assert capsys.readouterr().out.splitlines() == [
        "?     b: dark",
        "WARN  d: worn",
        "      -> oil it",
        "BAD   c: broken",
        "      -> mend it",
        "",
        "1 bad, 1 warning, 1 unknown; 1 check is fine (-v shows them)",
    ]
    show(EVERY, verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "ok    a: fine",  # without its source
        "?     b: dark",
        "      (source: a lamp)",
        "WARN  d: worn",
        "      -> oil it",
        "      (source: experience)",
        "BAD   c: broken",
        "      -> mend it",
        "      (source: a manual)",
        "",
        "1 bad, 1 warning, 1 unknown; 1 check is fine",
    ]


def test_where_nothing_is_wrong_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show([EVERY[3]] * 14)
    assert capsys.readouterr().out == "14 checks are fine (-v shows them)\n"


def test_a_command_that_does_not_fit_stands_in_its_own_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    command = "bitnet-tuning model slim /models/of-mine/m.gguf"
    show([Finding("embedding", "warn", "wide", f"make a smaller copy: {command}", "")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == ["      -> make a smaller copy:", f"      {command}"]


def test_text_is_folded_and_paths_stay_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "/home/some-body/models/" + "a-long-name-" * 6 + ".gguf"
    finding = Finding("model's drive", "warn", f"{path} lies on a slow drive", f"cp {path} ~/", "")
    for width in (80, 60):
        monkeypatch.setenv("COLUMNS", str(width))
        show([finding])
        lines = capsys.readouterr().out.splitlines()
        assert sum(path in line for line in lines) == 2
        assert all(len(line) <= width for line in lines if path not in line)
        assert all(line.startswith("      ") for line in lines[1:-2])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(patch: pytest.MonkeyPatch, kind: str = "xterm-256color") -> str:
    """Return what a terminal of that kind gets."""
    terminal = Terminal()
    patch.setenv("TERM", kind)
    with patch.context() as context:
        context.setattr("sys.stdout", terminal)
        show(EVERY)
    return terminal.getvalue()


def test_a_terminal_gets_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = shown(monkeypatch)
    assert "\x1b[1;31mBAD" in coloured
    assert "-> mend it" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    plain = shown(monkeypatch)
    assert "BAD" in plain
    assert "\x1b[1;31m" not in plain
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" not in shown(monkeypatch, "dumb")


def test_closed_output_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    show(EVERY)


# Errors


def test_a_check_that_fails_becomes_a_finding(machine: Machine) -> None:
    def broken(_: object) -> Finding:
        raise ZeroDivisionError("by zero")

    def refused(_: object) -> Finding:
        raise UsageError("senseless", "correct it")

    checks: list[Check] = [("x", broken, "nowhere"), ("y", refused, "nowhere")]
    first, second = examine(case_of(machine), checks)
    assert first == Finding("y", "bad", "senseless", "correct it", "nowhere")
    assert (second.state, "ZeroDivisionError: by zero" in second.text) == ("unknown", True)


def test_names_are_unique_and_every_source_is_stated() -> None:
    names = [name for name, _, _ in CHECKS]
    assert len(set(names)) == len(names)
    assert all(source for _, _, source in CHECKS)


def test_what_cannot_be_read_becomes_an_error_with_a_remedy() -> None:
    def fails() -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file", "x")

    found = gather.attempt(fails)
    assert isinstance(found, TuningError)
    assert (found.cause, bool(found.remedy)) == ("No such file: x", True)


# Engines and models


def test_on_a_recorded_machine_only_a_named_engine_is_checked(
    machine: Machine, fake: FakeEngine, doctor: Doctor
) -> None:
    assert not {"engine", "model", "self-test"} & set(doctor(machine.path).found)
    found = doctor(machine.path, "--engine", str(fake.cli), "-m", demo.I2_S).found
    assert found["engine"]["state"] == "good"
    assert found["model"]["state"] == "good"
    assert (found["self-test"]["state"], fake.prompts()) == ("unknown", [])
    assert found["profile"]["state"] == "unknown"


def test_a_named_engine_or_model_that_does_not_exist_is_bad(
    machine: Machine, doctor: Doctor
) -> None:
    answer = doctor(machine.path, "--engine", "/nowhere", "-m", "/nowhere.gguf")
    assert answer.code == 1
    assert {answer.found[name]["state"] for name in ("engine", "model")} == {"bad"}


def test_a_named_model_may_lie_below_the_root(machine: Machine, doctor: Doctor) -> None:
    machine.kernel("5.15.90.1-microsoft-standard-WSL2").windows_drive()
    machine.write("mnt/c/m.gguf", Path(demo.I2_S).read_bytes())
    for named in ("/mnt/c/m.gguf", str(machine.path / "mnt/c/m.gguf")):
        found = doctor(machine.path, "-m", named).found
        assert found["model"]["state"] == "good"
        assert found["model's drive"]["state"] == "warn"
        assert found["model's drive"]["text"].startswith("/mnt/c/m.gguf lies on a Windows drive")


def test_the_doctor_finds_the_copy_beside_the_model(
    fake: FakeEngine, doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "LOAD_SECONDS", 0.05)
    model = write_bitnet(tmp_path / "m.gguf")
    copy = write_bitnet(tmp_path / "m-embd-q6_k.gguf", embedding="q6_k")
    flags = ("--no-selftest", "--engine", str(fake.cli))
    found = doctor("/", *flags, "-m", str(model)).found["embedding"]
    assert (found["state"], found["advice"].endswith(f"-m {copy}")) == ("warn", True)
    assert doctor("/", *flags, "-m", str(copy)).found["embedding"]["state"] == "good"


def test_no_check_fails_on_this_machine(
    fake: FakeEngine, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "LOAD_SECONDS", 0.05)
    answer = doctor("/", "--no-selftest", "--engine", str(fake.cli), "-m", demo.I2_S)
    code, found = answer.code, answer.found
    assert code in (0, 1)
    assert not [name for name in found if "this check failed" in found[name]["text"]]
    states = [found[name]["state"] for name in ("engine", "model", "self-test")]
    assert states == ["good", "good", "unknown"]


# Real machines


@pytest.mark.slow
@pytest.mark.skipif(not DUMPS, reason="no dumps beside the checkout")
def test_no_check_fails_on_dumps_of_real_machines(tmp_path: Path, doctor: Doctor) -> None:
    answers = {}
    for archive in DUMPS:
        name = archive.name.partition(".")[0]
        with tarfile.open(archive) as opened:
            opened.extractall(tmp_path / name, filter="tar")
        answers[name] = doctor(tmp_path / name)
    for code, document in answers.values():
        assert code == document["summary"]["exit_code"]
        assert not [each for each in document["findings"] if "this check failed" in each["text"]]
    for dump, name, state in (
        ("xeon-4108-2s", "NUMA", "warn"),
        ("raptorlake-i7-1370p", "hybrid cores", "good"),
        ("dgx-gb10", "CPU for i2_s", "good"),
        ("s390-lpar-20", "CPU for i2_s", "bad"),
        ("nehalem-1s-smt", "CPU for i2_s", "bad"),
    ):
        assert answers[dump].found[name]["state"] == state, dump
