"""Columns, tables, progress and numbers as they are printed."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from bitnet_tuning import console
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.console import (
    LEAST_COUNT,
    Progress,
    aligned,
    clock,
    counted,
    duration,
    folded,
    painted,
    say,
    size_text,
    table,
    times,
)
from tests.processes import until


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


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environ", "shown"),
    [
        ({"TERM": "xterm"}, "\x1b[1;31mBAD\x1b[0m"),
        ({"WT_SESSION": "1"}, "\x1b[1;31mBAD\x1b[0m"),
        ({"TERM": "xterm", "NO_COLOR": ""}, "\x1b[1;31mBAD\x1b[0m"),
        ({"TERM": "xterm", "NO_COLOR": "1"}, "BAD"),
        ({"TERM": "dumb"}, "BAD"),
        ({}, "BAD"),
    ],
)
def test_colours_are_for_terminals_that_have_them(
    monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], shown: str
) -> None:
    for name in ("TERM", "WT_SESSION", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", _Terminal())
    assert painted("BAD", "red") == shown
    assert painted("BAD", "red", io.StringIO()) == "BAD"


def test_counts_are_whole_and_agree_with_their_nouns() -> None:
    shown = [counted(number, "token") for number in (0, 1, 1_500_000, 1.5)]
    assert shown == ["0 tokens", "1 token", "1500000 tokens", "1.5 tokens"]


def test_the_widest_column_is_folded_first() -> None:
    rows = [("short", "one two three four five six seven eight nine ten")]
    assert aligned(rows, 30).split("\n") == [
        "short  one two three four five",
        "       six seven eight nine",
        "       ten",
    ]


def test_a_command_in_a_cell_stays_in_one_line() -> None:
    slim = "/opt/python3 -m bitnet_tuning model slim /a/long/path/to/m.gguf"
    advice = f"a smaller embedding is read less per token\n-> make a smaller copy: {slim}"
    lines = aligned([("WARN", advice), ("WARN", f"a name\n{slim}")], 60).split("\n")
    assert lines[1:] == [
        "      -> make a smaller copy:",
        f"      {slim}",
        "WARN  a name",
        f"      {slim}",
    ]


def test_a_path_is_never_folded() -> None:
    path = "/a-b/" + "x" * 60
    assert path in aligned([("model", f"read {path} again")], 40)


ROWS = [
    ("setting", "pp\ntokens/s", "over\ndefault", "verdict"),
    ("four threads + no mmap *", "1235\n1190–1280", "×1.30\n1.24–1.37", "faster"),
    ("default", "950\n940–961", "-", "-"),
    ("two", "930\n890–999", "×0.98\n0.93–1.03", "not decided\n~12 s more"),
]


def test_a_table_folds_names_and_never_figures() -> None:
    lines = table(ROWS, 50).split("\n")
    assert lines[2:4] == [
        "four threads +   1235       ×1.30      faster",
        "no mmap *        1190–1280  1.24–1.37",
    ]
    assert max(map(len, lines)) <= 50


def test_figures_of_a_narrow_table_stand_below_the_names() -> None:
    assert table(ROWS, 40).split("\n") == [
        "setting: verdict",
        "  pp         over",
        "  tokens/s   default",
        "four threads + no mmap *: faster",
        "  1235       ×1.30",
        "  1190–1280  1.24–1.37",
        "default: -",
        "  950        -",
        "  940–961",
        "two: not decided, ~12 s more",
        "  930        ×0.98",
        "  890–999    0.93–1.03",
    ]


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


def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(10, str) as progress:
        progress.running("nothing", 1)
        progress.tell("a line", "news")
    assert terminal.getvalue() == f"{console.NAME}: a line\n"


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
    assert "━" in shown, "the bar has room"
    assert "3/10" in shown and "b [x] | a leads" in shown
    assert f"{console.NAME}: a message" in shown and "no line" not in shown


@pytest.mark.parametrize("width", [60, 80])
def test_progress_is_one_line_and_the_bar_goes_before_text_does(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr("sys.stderr", terminal)
    with Progress(60, lambda done: f"at most {60 - done:g} s left") as progress:
        progress.running("short", 3)
        until(lambda: "short" in terminal.getvalue())
        progress.running("x" * 90, 3)
        until(lambda: "…" in terminal.getvalue())
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    assert max(map(len, lines)) <= width
    assert any("━" in line and line.endswith("57 s left  short") for line in lines)
    assert any("━" not in line and line.endswith("…") and "57 s left" in line for line in lines)


@pytest.mark.parametrize(("seconds", "text"), [(-3, "0:00"), (59.6, "1:00"), (605, "10:05")])
def test_durations(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_an_interval_is_shown_from_as_many_rounds_as_it_needs() -> None:
    assert LEAST_COUNT == VERDICT_ROUNDS
    assert times(1.2, 1.1, 1.3, LEAST_COUNT - 1) == "×1.20 (5 rounds)"
    assert times(1.2, 1.1, 1.3, LEAST_COUNT) == "×1.20 (1.10–1.30)"


def test_a_small_ratio_never_becomes_zero() -> None:
    assert times(0.1, 0.0954, 0.11) == "×0.10 (0.095–0.11)"
    assert times(0.0035, 0.00301, 0.004) == "×0.0035 (0.0030–0.0040)"


def test_long_waits_are_rough() -> None:
    shown = [duration(each) for each in (0.2, 45, 179, 180, 10_799, 10_800, 27_212)]
    assert shown == ["1 s", "45 s", "179 s", "3 min", "180 min", "3 h", "8 h"]


def test_a_ratio_of_one_round_has_no_interval() -> None:
    assert times(1.214, 1.1, 1.35, 6) == "×1.21 (1.10–1.35)"
    assert times(1.214, 1.214, 1.214, 1) == "×1.21 (1 round)"


DOORS = {
    "python3 run_inference.py": ("python3 benchmark_optimized.py", "python3 -m bitnet_tuning host"),
    "python3 -m bitnet_tuning": (
        "python3 -m bitnet_tuning bench",
        "python3 -m bitnet_tuning host",
    ),
    "python3 bitnet_tuning": ("python3 bitnet_tuning bench", "python3 bitnet_tuning host"),
    "python3 ./run_inference.py": (
        "python3 ./benchmark_optimized.py",
        "python3 -m bitnet_tuning host",
    ),
    "python3 {0}/run_inference.py": (
        "python3 {0}/benchmark_optimized.py",
        "python3 -m bitnet_tuning host",
    ),
    "{0}/bitnet_tuning/bin/bitnet-run": (
        "{0}/bitnet_tuning/bin/bitnet-tuning bench",
        "{0}/bitnet_tuning/bin/bitnet-tuning host",
    ),
    "pytest": ("python3 benchmark_optimized.py", "python3 -m bitnet_tuning host"),
}


@pytest.mark.parametrize("typed", DOORS)
def test_commands_are_named_as_the_program_was_called(
    typed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(__file__).parents[1]
    words = typed.format(home).split()
    called = words[-1]
    if "-m" in words:
        called = str(home / "bitnet_tuning" / "__main__.py")
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "argv", [called])
    monkeypatch.setattr(sys, "orig_argv", words)
    found = tuple(console.command(name) for name in ("bench", "host"))
    assert found == tuple(each.format(home) for each in DOORS[typed])


def test_linked_programs_are_named_by_what_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, links, home = tmp_path / "bin", tmp_path / "links", Path(__file__).parents[1]
    programs.mkdir()
    links.mkdir()
    for name in ("bitnet-tuning", "bitnet-run"):
        (programs / name).touch()
    monkeypatch.setenv("PATH", str(links))
    for link in (links / "bt", programs / "bt", links / "bitnet-run"):
        target = "bitnet-tuning" if link.name == "bt" else link.name
        link.symlink_to(programs / target)
        monkeypatch.setattr(sys, "argv", [str(link)])
        assert console.command("run") == f"{programs / 'bitnet-tuning'} run"
    (links / "bitnet-tuning").symlink_to(programs / "bitnet-tuning")  # as pipx does
    assert console.command("run") == "bitnet-tuning run"
    (links / "package").symlink_to(home / "bitnet_tuning")
    file = str(links / "package" / "__main__.py")
    monkeypatch.setattr(sys, "argv", [file])
    monkeypatch.setattr(sys, "orig_argv", ["python3", file])
    assert console.command("host") == f"python3 {file} host"


@pytest.mark.parametrize("width", ["1", "-5", "2", "20"])
def test_a_message_fits_any_terminal(width: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setattr(sys, "stderr", shown := _Terminal())
    say("a message of several words that are folded")
    assert console.columns() == 20 and "several" in shown.getvalue()


def test_an_installed_program_on_the_path_needs_no_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"/bin:{tmp_path}")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bitnet-benchmark")])
    assert console.command("run") == "bitnet-tuning run"


def test_a_linked_script_names_the_folder_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Path(__file__).parents[1]
    (tmp_path / "bn.py").symlink_to(home / "run_inference.py")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "bn.py")])
    monkeypatch.setattr(sys, "orig_argv", ["python3", str(tmp_path / "bn.py")])
    monkeypatch.chdir(tmp_path)
    assert console.command("run") == f"python3 {home / 'run_inference.py'}"


def test_long_messages_are_folded_but_not_what_is_copied() -> None:
    slim = "/opt/python3.11/bin/python3 -m bitnet_tuning model slim '/a b/m.gguf'"
    text = f"bitnet-tuning: a small copy reads less per token; make a smaller copy: {slim}"
    assert folded(text, 60).split("\n") == [
        "bitnet-tuning: a small copy reads less per token; make a",
        "  smaller copy:",
        f"  {slim}",
    ]
    assert folded("short\n  and two", 60) == "short\n  and two"
    error = "bitnet-tuning: error: there is no engine in the folder\n  run `a b c d e f g` or more"
    assert folded(error, 20).split("\n") == [
        "bitnet-tuning:",
        "  error: there is no",
        "  engine in the",
        "  folder",
        "  run",
        "    `a b c d e f g`",
        "    or more",
    ]
    both = "it is the user's: sudo a --b c (or: echo 1 | sudo tee /proc/sys/vm/drop_caches)"
    assert folded(both, 30).split("\n") == [
        "it is the user's: sudo a --b c",
        "  (or:",
        "  echo 1 | sudo tee /proc/sys/vm/drop_caches)",
    ]
