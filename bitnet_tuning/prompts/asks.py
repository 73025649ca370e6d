"""The prompts of a file: JSON lines in, checked records out; pure."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from bitnet_tuning.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bitnet_tuning.plan.request import Request


_SEED_MASK = (1 << 32) - 1


class Ask(NamedTuple):
    """One prompt with all that is asked of the engine. None leaves a value to the engine."""

    place: int
    """Among the prompts, from 0."""
    id: str | int | float
    prompt: str
    n_predict: int
    """Tokens; negative: until the model ends or the context is full."""
    temperature: float
    seed: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    def body(self) -> dict[str, Any]:
        """The request, as llama.cpp's server takes it. What is not said is not sent: the
        server's defaults are llama-cli's, from the same library.

        Nothing of an earlier prompt is used again, so that an answer does not depend on
        which slot it gets.
        """
        said = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        if self.seed is not None:
            said["seed"] = self.seed & _SEED_MASK
        # The server has no "until the context is full": -1 ends there as well.
        length = max(self.n_predict, -1)
        return {"prompt": self.prompt, **said, "n_predict": length, "cache_prompt": False}


_SAMPLING = ("temperature", "seed", "top_k", "top_p", "min_p", "repeat_penalty")

_WHOLE: dict[str, tuple[int, int]] = {
    "n_predict": (-2, (1 << 31) - 1),
    "seed": (-1, (1 << 32) - 1),
    "top_k": (0, (1 << 31) - 1),
}
_REAL: dict[str, tuple[float, float]] = {
    "temperature": (0, float("inf")),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "repeat_penalty": (0, float("inf")),
}
_KEYS = ("prompt", "id", *_WHOLE, *_REAL)


class _BadLineError(Exception):
    """What is wrong with a line, in words."""


def parse(content: bytes, request: Request) -> tuple[Ask, ...]:
    """The prompts of a file, its defaults from ``request``. Raises UsageError, which names
    the line."""
    asks: list[Ask] = []
    seen: dict[object, int] = {}
    for number, line in _lines(content):
        try:
            ask = _ask(len(asks), _decoded(line), request)
            if ask.id in seen:
                raise _BadLineError(f"the id {ask.id!r} stands in line {seen[ask.id]} already")
        except _BadLineError as error:
            raise UsageError(
                f"argument --prompts: line {number}: {error}",
                'a line is a JSON text, or an object such as {"id": 1, "prompt": "..."}',
            ) from None
        seen[ask.id] = number
        asks.append(ask)
    if not asks:
        raise UsageError("argument --prompts: there is no prompt in it")
    return tuple(asks)


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Those that are not blank, with their numbers. Only a newline ends a line: JSON texts
    may hold other characters at which Python would part them."""
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            yield number, line


def _decoded(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise _BadLineError("it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _BadLineError(f"it is not JSON ({error})") from None
    if isinstance(value, str):
        return {"prompt": value}
    if not isinstance(value, dict):
        raise _BadLineError("it is neither a text nor an object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _ask(index: int, line: dict[str, Any], request: Request) -> Ask:
    unknown = sorted(set(line) - set(_KEYS))
    if unknown:
        raise _BadLineError(f"unknown key {unknown[0]!r}; known are {', '.join(_KEYS)}")
    if "prompt" not in line:
        raise _BadLineError("it has no prompt")
    values = {name: getattr(request, name) for name in (*_WHOLE, *_REAL)}
    for name in set(line) - {"prompt", "id"}:
        values[name] = _number(name, line[name])
    return Ask(index, _id(line.get("id", index)), _prompt(line["prompt"]), **values)


def _number(name: str, value: object) -> float:
    kinds = int if name in _WHOLE else (int, float)
    low, high = _WHOLE[name] if name in _WHOLE else _REAL[name]
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise _BadLineError(f"{name} is no {'whole ' if name in _WHOLE else ''}number")
    if not low <= value <= high or value == float("inf"):
        raise _BadLineError(f"{name} {value} is out of its range")
    return value


def _id(value: object) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _BadLineError("its id is neither a text nor a number")
    if isinstance(value, str):
        _check_text(value, "its id")
    elif abs(value) == float("inf"):
        raise _BadLineError("its id is not a finite number")
    return value


def _prompt(value: object) -> str:
    if not isinstance(value, str):
        raise _BadLineError("its prompt is no text")
    if not value:
        raise _BadLineError("its prompt is empty")
    _check_text(value, "its prompt")
    return value


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _BadLineError(f"{what} holds half of a surrogate pair") from None
