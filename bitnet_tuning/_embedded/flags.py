"""A command line as llama.cpp reads it.

Not argparse: llama.cpp takes the argument after a flag as its value whatever it
looks like (``-p -foo``, ``-n -1``), knows single-dash flags of several letters
(``-ngl``), and ends with 1 on a usage error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bitnet_tuning._embedded.errors import EngineError

FLAG_COLUMN = 40


class Flag(NamedTuple):
    """One flag and what it changes.

    ``field`` is the option that it sets, "" for a flag that is only tolerated.
    ``metavar`` is "" for a switch, which sets ``constant``. ``optional`` lists the
    words that a flag takes as its value where they follow, and no others.
    """

    names: tuple[str, ...]
    field: str
    help: str
    metavar: str = ""
    convert: Callable[[str], Any] = str
    constant: Any = True
    optional: tuple[str, ...] = ()
    append: bool = False


def parse(argv: Sequence[str], table: Sequence[Flag]) -> dict[str, Any]:
    """The options that ``argv`` sets; a flag given again replaces its value.

    Raises EngineError for an unknown flag, a missing value and an unusable one.
    """
    by_name = {name: flag for flag in table for name in flag.names}
    options: dict[str, Any] = {}
    words = list(reversed(argv))
    while words:
        word = words.pop()
        flag = by_name.get(word.replace("_", "-") if word.startswith("--") else word)
        if flag is None:
            raise EngineError(f"invalid argument: {word}")
        value = _value(flag, word, words)
        if flag.append:
            value = (*options.get(flag.field, ()), *value)
        options[flag.field] = value
    options.pop("", None)
    return options


def _value(flag: Flag, word: str, rest: list[str]) -> Any:
    if not flag.metavar or (flag.optional and not (rest and rest[-1] in flag.optional)):
        return flag.constant
    if not rest:
        raise EngineError(f'error while handling argument "{word}": expected value for argument')
    text = rest.pop()
    try:
        return flag.convert(text)
    except ValueError as error:
        raise EngineError(f'error while handling argument "{word}": {error}') from None


def whole(text: str) -> int:
    """An integer, or ValueError in words that a user understands."""
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"not a whole number: {text!r}") from None


def real(text: str) -> float:
    """A floating-point number, or ValueError in words that a user understands."""
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"not a number: {text!r}") from None


def one_of(*allowed: str) -> Callable[[str], str]:
    """A converter that lets only the given words pass."""

    def convert(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"{text!r} is none of {', '.join(allowed)}")
        return text

    return convert


def render(title: str, table: Sequence[Flag]) -> str:
    """The help text: one line for each flag, laid out as llama.cpp does."""
    lines = [title, "", "----- flags -----", ""]
    for flag in table:
        short, *long = flag.names
        names = f"{short + ', ':<7}{', '.join(long)}" if long else short
        lines.append(f"{(names + ' ' + flag.metavar).rstrip():<{FLAG_COLUMN - 1}} {flag.help}")
    return "\n".join(lines) + "\n"
