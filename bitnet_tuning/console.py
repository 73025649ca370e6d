"""Print messages, tables, progress, and the error that ends a program."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from itertools import zip_longest

from bitnet_tuning.errors import TuningError, cause_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TextIO

    import rich.progress

NAME = "bitnet-tuning"
ADDRESS = "https://github.com/bitnet-tuning/bitnet-tuning"

MEBIBYTE, GIBIBYTE = 1 << 20, 1 << 30
"""Bytes in the units in which messages show sizes."""

LINE_SECONDS = 10.0
"""Seconds between two lines of progress if nothing but the time has changed."""

LEAST_COLUMNS = 20
"""Smallest width in characters that a terminal is taken to have."""

NARROWEST, WIDEST = 60, 100
"""Smallest and largest width of folded text in characters, whatever the terminal's width."""

LEAST_COLUMN, BAR = 12, 20
"""Smallest width in characters to which a column is folded, and that of a bar of progress."""


def say(*messages: str | None) -> None:
    """Print messages to stderr, since stdout belongs to the engine; leave out empty ones."""
    for message in filter(None, messages):
        text = f"{NAME}: {printable(message)}"
        tell(folded(text, columns(2)) if at_terminal() else text)


def at_terminal() -> bool:
    """Return whether stderr, where messages go, is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def folded(text: str, width: int) -> str:
    """Return a text in lines of at most ``width`` characters, the second and later ones indented.
    What may be copied stays whole: words, quotations, and commands after a colon."""
    if max(map(len, text.splitlines()), default=0) <= width:
        return text
    lines = ((line, " " * (len(line) - len(line.lstrip()) + 2)) for line in text.splitlines())
    return "\n".join("\n".join(_wrapped(line, width, to)) for line, to in lines)


def fitted(text: str) -> str:
    """Return a text for stdout, folded on a terminal; elsewhere lines stay whole, for grep."""
    is_terminal, text = sys.stdout is not None and sys.stdout.isatty(), printable(text)
    return folded(text, text_width()) if is_terminal else text


def printable(text: str) -> str:
    """Return a text, such as a file's name, without control characters but for ends of lines."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def tell(text: str) -> None:
    """Print a text to stderr if that can be written; nothing fails for want of a message."""
    if sys.stderr is None:  # print would write to stdout instead
        return
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def guarded(body: Callable[[list[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Run ``body`` with the arguments, print the error that ends it, and return the exit code.
    Tracebacks are printed only if BITNET_TUNING_DEBUG is set."""
    try:
        if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # prints any file name
        try:
            code = body(list(sys.argv[1:] if arguments is None else arguments))
        except SystemExit:  # argparse has printed its help
            code = 0
        if sys.stdout is not None:
            sys.stdout.flush()  # what does not fit on the disk is an error
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except Exception as error:
        code = code_of(error, say)
        if not isinstance(error, (TuningError, OSError)):
            say("this is a bug in bitnet-tuning; to see where, run it with BITNET_TUNING_DEBUG=1")
        return code
    finally:
        _flush()


def code_of(error: Exception, show: Callable[[str], None]) -> int:
    """Show an error, after its traceback if BITNET_TUNING_DEBUG is set; return its exit code."""
    if os.environ.get("BITNET_TUNING_DEBUG"):
        import traceback  # noqa: PLC0415 (slow to import, rarely wanted)

        tell(traceback.format_exc())
    if isinstance(error, TuningError):
        show(f"error: {error}")
        return error.exit_code
    show(f"error: {cause_of(error)}")
    return 1


def _flush() -> None:
    # If a stream cannot be written, its text is dropped: the interpreter would try again at its
    # end, print an error and change the exit code.
    for handle, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), handle)


def word(path: str) -> str:
    """Return a path as a word of a shell command that no program takes for a flag."""
    if path.startswith("-"):
        path = f"./{path}"
    if path and path.isascii() and all(each.isalnum() or each in "_./:=+-" for each in path):
        return path
    from shlex import quote  # noqa: PLC0415 (most names need none, and it imports re)

    return quote(path)


_DOORS = {
    "run": "run_inference.py",
    "bench": "benchmark_optimized.py",
    "test": "test_optimizations.py",
}
"""Scripts for commands."""


def command(name: str) -> str:
    """Return one of our commands as the user would type it, in the way this program was called:
    as an installed program, as a module or as one of the scripts."""
    called, typed = sys.argv[0], sys.orig_argv
    folder, file = os.path.split(called)
    is_beside = file.startswith("bitnet-") and os.path.exists(os.path.join(folder, NAME))
    if os.path.islink(called) and not is_beside:  # one such as bt, in a folder without the others
        called = os.path.realpath(called)
        folder, file = os.path.split(called)
    here = os.path.dirname(os.path.realpath(__file__))
    home = os.path.dirname(here)
    if file.startswith("bitnet-"):
        on_path = folder in os.environ.get("PATH", "").split(os.pathsep)
        return f"{NAME if on_path else word(os.path.join(folder, NAME))} {name}"
    python = word(typed[0])
    if os.path.realpath(folder) == here and called not in typed:
        return f"{python} -m bitnet_tuning {name}"
    if here in (os.path.realpath(called), os.path.realpath(folder)):
        return f"{python} {word(called)} {name}"
    if not file.endswith(".py") or os.path.dirname(os.path.realpath(called)) != home:
        python, folder = "python3", ""  # another program imported the package
    if name in _DOORS:
        door = file if file.startswith(_DOORS[name].removesuffix(".py")) else _DOORS[name]
        return f"{python} {word(os.path.join(folder, door))}"
    if os.path.abspath(folder) == os.getcwd() or not folder:
        return f"{python} -m bitnet_tuning {name}"
    return f"{python} {word(os.path.join(folder, 'bitnet_tuning'))} {name}"


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, such as ``1 thread`` or ``1.5 CPUs``."""
    shown = number if isinstance(number, int) else f"{number:g}"
    return f"{shown} {noun}{'' if number == 1 else 's'}"


def painted(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return a text in ``red``, ``yellow``, ``green`` or ``cyan`` for a stream (default: stdout)
    that is a terminal with colours, unless NO_COLOR is set (no-color.org); else the text itself."""
    stream, environ = stream or sys.stdout, os.environ
    kind = environ.get("TERM") or environ.get("WT_SESSION") or "dumb"  # Windows Terminal's
    if not text or kind == "dumb" or environ.get("NO_COLOR") or not (stream and stream.isatty()):
        return text
    return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"


_COLOURS = {"red": "1;31", "green": "32", "yellow": "33", "cyan": "36"}  # SGR of ECMA-48


def size_text(size: float) -> str:
    """Return a number of bytes as people read it: ``1.2 GiB``, ``794 MiB``, ``12.0 KiB``."""
    units = ((GIBIBYTE, "GiB"), (MEBIBYTE, "MiB"), (1024, "KiB"))
    unit, name = next((each for each in units if size >= each[0]), units[-1])
    number = size / unit
    return f"{number:.{1 if 0 < number < 100 else 0}f} {name}"


LEAST_COUNT = 6
"""Fewest values that an interval of 95 % needs (see ``bench.statistics.least_rounds``)."""


def times(median: float, low: float, high: float, count: int = LEAST_COUNT) -> str:
    """Return a ratio such as ``×1.21 (1.15–1.27)``, with its rounds if too few for an interval."""
    few = counted(count, "round") if count < LEAST_COUNT else ""
    # A small ratio has two digits, too, and never becomes ×0.00.
    shown = [f"{each:.2f}" if each >= 0.1 else f"{each:#.2g}" for each in (median, low, high)]
    return f"×{shown[0]} ({few or '–'.join(shown[1:])})"


def duration(seconds: float) -> str:
    """Return a rough duration, such as ``45 s``, ``20 min`` or ``8 h``."""
    sizes = ((3600, "h"), (60, "min"), (1, "s"))
    size, unit = next(each for each in sizes if seconds >= 3 * each[0] or each[0] == 1)
    return f"{max(1.0, seconds / size):.0f} {unit}"


def clock(seconds: float) -> str:
    """Return a duration in minutes and seconds, such as ``4:05``."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02}"


def columns(handle: int = 1) -> int:
    """Return the width in characters of a terminal, as ``shutil.get_terminal_size`` does, but one
    in which text can be folded."""
    try:
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(handle).columns)
        return max(LEAST_COLUMNS, width) if width else 80
    except (OSError, ValueError):
        return 80


def text_width() -> int:
    """Return the width in characters at which text is folded."""
    return max(NARROWEST, min(WIDEST, columns()))


def aligned(
    rows: Sequence[Sequence[str]], width: int | None = None, kept: Container[int] = ()
) -> str:
    """Return rows as text in columns two spaces apart. A cell may have several lines. Rows longer
    than ``width`` are folded between words, the widest column first, but none that is ``kept``."""
    cells = [[cell.splitlines() or [""] for cell in row] for row in rows]
    widths = [
        max(len(line) for cell in column for line in cell) for column in zip(*cells, strict=True)
    ]
    while width and sum(widths) + 2 * len(widths) - 2 > width:
        foldable = [at for at, _ in enumerate(widths) if at not in kept]
        widest = max(foldable, key=lambda at: widths[at])
        if widths[widest] <= LEAST_COLUMN:
            break
        widths[widest] -= 1
    lines = []
    for row in cells:
        folded = [
            [part for line in cell for part in (_wrapped(line, at) if len(line) > at else [line])]
            for cell, at in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*folded, fillvalue=""):
            padded = (f"{part:{at}}" for part, at in zip(parts, widths, strict=True))
            lines.append("  ".join(padded).rstrip())
    return printable("\n".join(lines))


def _wrapped(line: str, width: int, indent: str = "") -> list[str]:
    import re  # noqa: PLC0415 (few lines are too long)
    from textwrap import TextWrapper  # noqa: PLC0415

    starts = rf"sudo|\S*python\S*|{NAME}|apt-get|chmod|cmake|dd|echo|export|llama-[\w.-]+|pip|unset"
    begin = r"(?:(?<=: )|^(?:-> )?(?!.*: ))"
    whole = rf"`[^`]*`|\"[^\"]*\"|(?<!\w)'[^']*'|{begin}(?:{starts}) [^;(]*[^;( ]"
    line = re.sub(whole, lambda found: found[0].replace(" ", "\0"), line)
    # A long word stays whole, so that a path can be copied.
    wrapper = TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    wrapper.subsequent_indent = indent
    return [piece.replace("\0", " ") for piece in wrapper.wrap(line)]


def table(rows: Sequence[Sequence[str]], width: int) -> str:
    """Return rows, headings first, that have a name, figures and a verdict. Names and verdicts are
    folded to fit into ``width`` characters, or else stand above the figures, which stay whole."""
    text = aligned(rows, width, range(1, len(rows[0]) - 1))
    if max(map(len, text.splitlines())) <= width:
        return text
    left, lines = iter(aligned([row[1:-1] for row in rows]).splitlines()), []
    for row in rows:
        lines.append(aligned([[f"{row[0]}: {', '.join(row[-1].splitlines())}"]], width))
        height = max(len(cell.splitlines()) for cell in row[1:-1])
        lines += [f"  {next(left)}" for _ in range(height)]
    return "\n".join(lines)


class Progress:
    """Progress of a long task on stderr: a bar below messages on a terminal with rich, or lines."""

    def __init__(self, total: float, left: Callable[[float], str], quiet: bool = False) -> None:
        """``left`` returns the text beside the bar for what is done, in the unit of ``total``."""
        self._total = total
        self._left = left
        self._quiet = quiet
        self._bar: rich.progress.Progress | None = None
        self._aside = ""
        self._news: object = None
        self._said_at = time.monotonic()

    def __enter__(self) -> Progress:
        if self._quiet or not at_terminal():
            return self
        try:
            from rich import progress  # noqa: PLC0415
            from rich.console import Console  # noqa: PLC0415
            from rich.table import Column  # noqa: PLC0415
        except ImportError:
            return self
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        if console.is_dumb_terminal:
            return self
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=BAR),
            # On one line: where that is too long, the bar shrinks first, then the text's end goes.
            progress.TextColumn(
                "{task.fields[left]}  {task.description}",
                markup=False,
                table_column=Column(no_wrap=True, overflow="ellipsis"),
            ),
            console=console,
            transient=True,
            redirect_stdout=False,
        )
        self._bar.add_task("", total=self._total, left="")
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def running(self, what: str, done: float) -> None:
        """Show beside the bar what runs now. Without a bar nothing is printed."""
        if self._bar is not None:
            self._bar.update(
                self._bar.task_ids[0],
                completed=min(done, self._total),
                description=f"{what} | {self._aside}" if self._aside else what,
                left=self._left(done),
            )

    def apart(self, write: Callable[[], object]) -> None:
        """Take the bar away, call ``write``, which prints to stdout, and show the bar again."""
        if self._bar is not None:
            self._bar.stop()
        write()
        if self._bar is not None:
            self._bar.start()

    def tell(self, line: str, news: object = None, aside: str = "") -> None:
        """Print a line if ``news`` changed or some time passed; a bar shows ``aside`` instead."""
        self._aside = aside
        due = time.monotonic() >= self._said_at + LINE_SECONDS
        if self._bar is None and not self._quiet and (due or news != self._news):
            self._news, self._said_at = news, time.monotonic()
            say(line)
