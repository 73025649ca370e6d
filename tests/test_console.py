"""Columns, tables, progress and numbers as they are printed."""

from __future__ import annotations

import io

import pytest

from bitnet_tuning import console
from bitnet_tuning.console import Progress, aligned, clock, print_table, say, size_text, times


def test_columns_are_as_wide_as_their_cells() -> None:
    rows = [("name", "value"), ("a", "1\n2"), ("", "")]
    assert aligned(rows).split("\n") == ["name  value", "a     1", "      2", ""]
    assert aligned([]) == ""


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 KiB"),
        (1536, "1.5 KiB"),
        (1.1 * (1 << 20), "1.1 MiB"),
        (794 << 20, "794 MiB"),
        (6 << 30, "6.0 GiB"),
        (125 << 30, "125 GiB"),
    ],
)
def test_sizes_use_the_largest_fitting_unit(size: float, text: str) -> None:
    assert size_text(size) == text


def test_the_widest_column_is_folded_first() -> None:
    rows = [("short", "one two three four five six seven eight nine ten")]
    assert aligned(rows, 30).split("\n") == [
        "short  one two three four five",
        "       six seven eight nine",
        "       ten",
    ]


def test_a_path_is_never_folded() -> None:
    path = "/a-b/" + "x" * 60
    assert path in aligned([("model", f"read {path} again")], 40)


def test_a_table_outside_a_terminal_is_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([("a", "1")], ("name", "value"), ["bold"])
    assert capsys.readouterr().out == "name  value\na     1\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_news_is_printed_at_once_and_other_lines_every_ten_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress(10, str) as progress:
        for now, news in ((1.0, "a"), (2.0, "a"), (3.0, "b"), (14.0, "b")):
            progress.running("nothing", now)
            progress.tell(f"at {now:g}", news)
    assert capsys.readouterr().err.splitlines() == [
        f"{console.NAME}: at {when}" for when in (1, 3, 14)
    ]


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(10, str, quiet=True) as progress:
        progress.tell("a", "b")
    assert capsys.readouterr().err == ""


def test_messages_appear_above_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(10, lambda done: f"{done:g}/10") as progress:
        progress.tell("no line beside a bar", "news", aside="a leads")
        progress.running("b [x]", 3)
        say("a message")
    shown = terminal.getvalue()
    assert "3/10" in shown and "b [x] | a leads" in shown
    assert f"{console.NAME}: a message" in shown and "no line" not in shown


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0:00"), (59.6, "1:00"), (605, "10:05")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_a_ratio_of_one_round_has_no_interval() -> None:
    assert times(1.214, 1.1, 1.35, 6) == "×1.21 (1.10–1.35)"
    assert times(1.214, 1.214, 1.214, 1) == "×1.21 (one round)"
