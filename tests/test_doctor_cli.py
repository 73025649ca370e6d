"""``python3 -m bitnet_tuning doctor``: its output, its exit codes, and recorded machines."""

from __future__ import annotations

import builtins
import errno
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conditions, "spin", lambda seconds: None)


def doctor(
    machine: Machine, capsys: pytest.CaptureFixture[str], *flags: str
) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--root", str(machine.path), "--json", *flags])
    return code, json.loads(capsys.readouterr().out)


# Exit codes and JSON


def test_a_machine_without_problems_exits_with_0(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = doctor(machine, capsys, "--strict")
    assert code == 0
    assert (document["summary"]["bad"], document["summary"]["warn"]) == (0, 0)
    assert document["summary"]["good"] > 10
    assert list(document["findings"][0]) == ["name", "state", "text", "advice", "source"]
    assert {"threads", "SMT", "NUMA", "governor"} <= {each["name"] for each in document["findings"]}


def test_warnings_change_the_exit_code_only_with_strict(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.huge_pages("never")
    assert doctor(machine, capsys)[0] == 0
    code, document = doctor(machine, capsys, "--strict")
    assert (code, document["summary"]["exit_code"]) == (2, 2)


def test_something_bad_comes_first(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.huge_pages("never").clock(800, 4000)
    code, document = doctor(machine, capsys, "--strict")
    assert code == 1
    assert [each["state"] for each in document["findings"][:2]] == ["bad", "warn"]
    assert document["findings"][0]["name"] == "clock under load"
    assert "Begin with: clock under load." in document["summary"]["text"]


def test_counts_and_summary() -> None:
    assert case.counts(EVERY) == {"bad": 1, "warn": 1, "unknown": 1, "good": 1}
    assert case.summary(EVERY) == (
        "4 checks: 1 bad, 1 to improve, 1 not known, 1 good. Begin with: c."
    )
    assert case.summary([]).startswith("0 checks")
    for found, lax, strict in ((EVERY, 1, 1), (EVERY[1:], 0, 2), (EVERY[2:], 0, 0)):
        assert case.exit_code(found, strict=False) == lax
        assert case.exit_code(found, strict=True) == strict


# Text


def test_without_a_terminal_findings_are_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(EVERY)
    text = capsys.readouterr().out
    assert text.splitlines()[:3] == [
        "BAD   c  broken",
        "         -> mend it",
        "         (a manual)",
    ]
    assert "somewhere" not in text  # a good finding does not show its source
    assert text.splitlines()[-1] == case.summary(EVERY)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(patch: pytest.MonkeyPatch) -> str:
    """Return what a terminal with colours gets."""
    terminal = Terminal()
    patch.setenv("TERM", "xterm-256color")
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


def test_without_rich_a_terminal_gets_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real: Callable[..., Any] = builtins.__import__

    def without_rich(name: str, *rest: Any) -> Any:
        if name.startswith("rich"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_rich)
    show(EVERY)
    assert shown(monkeypatch) == capsys.readouterr().out


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
    assert (first.name, first.state, first.text, first.advice) == (
        "y",
        "bad",
        "senseless",
        "correct it",
    )
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
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resource", reason="fake engines are scripts: POSIX")
    fake = FakeEngine(tmp_path / "checkout")
    names = {each["name"] for each in doctor(machine, capsys)[1]["findings"]}
    assert not {"engine", "model", "self-test"} & names
    _, document = doctor(machine, capsys, "--engine", str(fake.cli), "-m", demo.I2_S)
    found = {each["name"]: each for each in document["findings"]}
    assert found["engine"]["state"] == "good"
    assert found["model"]["state"] == "good"
    assert (found["self-test"]["state"], fake.prompts()) == ("unknown", [])
    assert found["profile"]["state"] == "unknown"


def test_the_selftest_of_a_recorded_machine_runs_when_asked_for(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("resource", reason="fake engines are scripts: POSIX")
    fake = FakeEngine(tmp_path / "checkout")
    code, document = doctor(machine, capsys, "--engine", str(fake.cli), "--selftest")
    found = {each["name"]: each for each in document["findings"]}
    assert code == 1
    assert found["self-test"]["state"] == "bad"
    assert "0 of 8 runs" in found["self-test"]["text"]


def test_a_named_engine_or_model_that_does_not_exist_is_bad(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    code, document = doctor(machine, capsys, "--engine", "/nowhere", "-m", "/nowhere.gguf")
    found = {each["name"]: each for each in document["findings"]}
    assert code == 1
    assert (found["engine"]["state"], found["model"]["state"]) == ("bad", "bad")


def test_a_named_model_may_lie_below_the_root(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.kernel("5.15.90.1-microsoft-standard-WSL2").windows_drive()
    machine.write("mnt/c/m.gguf", Path(demo.I2_S).read_bytes())
    for named in ("/mnt/c/m.gguf", str(machine.path / "mnt/c/m.gguf")):
        found = {each["name"]: each for each in doctor(machine, capsys, "-m", named)[1]["findings"]}
        assert found["model"]["state"] == "good"
        assert found["model's drive"]["state"] == "warn"
        assert found["model's drive"]["text"].startswith("/mnt/c/m.gguf lies on a Windows drive")


def test_no_check_fails_on_this_machine(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("resource", reason="fake engines are scripts: POSIX")
    fake = FakeEngine(tmp_path / "checkout")
    monkeypatch.setattr(conditions, "LOAD_SECONDS", 0.05)
    code = main(["doctor", "--json", "--no-selftest", "--engine", str(fake.cli), "-m", demo.I2_S])
    document = json.loads(capsys.readouterr().out)
    assert code in (0, 1)
    assert not [each for each in document["findings"] if "this check failed" in each["text"]]
    found = {each["name"]: each["state"] for each in document["findings"]}
    assert (found["engine"], found["model"], found["self-test"]) == ("good", "good", "unknown")


# Real machines


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for archive in DUMPS:
        folders[archive.name] = tmp_path_factory.mktemp(archive.name.partition(".")[0])
        with tarfile.open(archive) as opened:
            opened.extractall(folders[archive.name], filter="tar")
    return folders


@pytest.mark.skipif(not DUMPS, reason="no dumps beside the checkout")
def test_every_dump_is_judged_without_a_failed_check(
    dumps: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in dumps.values():
        code = main(["doctor", "--root", str(folder), "--json"])
        document = json.loads(capsys.readouterr().out)
        assert code == document["summary"]["exit_code"]
        assert not [each for each in document["findings"] if "this check failed" in each["text"]]


@pytest.mark.skipif(not DUMPS, reason="no dumps beside the checkout")
@pytest.mark.parametrize(
    ("dump", "name", "state"),
    [
        ("xeon-4108-2s.tar.gz", "NUMA", "warn"),
        ("raptorlake-i7-1370p.tar.gz", "hybrid cores", "good"),
        ("dgx-gb10.tar.gz", "CPU for i2_s", "good"),
        ("s390-lpar-20.tar.gz", "CPU for i2_s", "bad"),
        ("nehalem-1s-smt.tar.gz", "CPU for i2_s", "bad"),
    ],
)
def test_findings_on_dumps_of_real_machines(
    dumps: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    dump: str,
    name: str,
    state: str,
) -> None:
    main(["doctor", "--root", str(dumps[dump]), "--json"])
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    assert found[name]["state"] == state


def test_sizes_are_in_gibibytes(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.meminfo(8 * GIBIBYTE, 6 * GIBIBYTE)
    found = {each["name"]: each for each in doctor(machine, capsys)[1]["findings"]}
    assert found["memory"]["text"] == (
        "6.0 GiB of memory are free, BitNet b1.58 2B-4T needs about 1.3 GiB"
    )
