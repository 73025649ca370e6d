"""Prompts, and their parser: lines of JSON in, checked records out."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from bitnet_tuning.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from bitnet_tuning.plan.facts import Request


_SEED_MASK = (1 << 32) - 1


class Prompt(NamedTuple):
    """One prompt with its sampling parameters; None means the engine's default."""

    place: int
    """Position in the file, from 0."""
    id: str | int | float
    text: str
    n_predict: int
    """Number of tokens to generate; negative: until the model ends or the context is full."""
    temperature: float
    seed: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None

    def body(self) -> dict[str, Any]:
        """Return the body of the request to llama.cpp's server."""
        # What is None is left out: the server has the same defaults as llama-cli.
        said = {name: getattr(self, name) for name in _SAMPLING if getattr(self, name) is not None}
        if self.seed is not None:
            said["seed"] = self.seed & _SEED_MASK
        # The server does not know llama-cli's -2; its -1 ends at a full context as well.
        length = max(self.n_predict, -1)
        # With the cache of an earlier prompt, an answer would depend on its slot.
        return {"prompt": self.text, **said, "n_predict": length, "cache_prompt": False}

    @property
    def is_reproducible(self) -> bool:
        """True if every run must give the same text: temperature 0, or a fixed seed."""
        return self.temperature == 0 or self.seed not in (None, -1)


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
    """Raised for a line that is not a prompt; the message says why."""


def parse(content: bytes, request: Request) -> tuple[Prompt, ...]:
    """Return the prompts in a file. What a line does not set is taken from ``request``.

    Raise UsageError, with the number of the line, if a line is not a prompt.
    """
    prompts: list[Prompt] = []
    seen: dict[object, int] = {}
    for number, line in _lines(content):
        try:
            prompt = _prompt(len(prompts), _decoded(line), request)
            if prompt.id in seen:
                what = json.dumps(prompt.id)
                raise _BadLineError(f"its id {what} is also the id of line {seen[prompt.id]}")
        except _BadLineError as error:
            raise UsageError(
                f"argument --prompts: line {number}: {error}",
                'a line must be a JSON string, or an object such as {"id": 1, "prompt": "..."}',
            ) from None
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise UsageError("argument --prompts: the file contains no prompt")
    return tuple(prompts)


def _lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number, from 1, and the content of each line that is not blank."""
    # Not ``splitlines``: JSON strings may contain other characters at which it splits.
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
        raise _BadLineError("it is neither a string nor an object")
    return value


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


def _prompt(index: int, line: dict[str, Any], request: Request) -> Prompt:
    unknown = sorted(set(line) - set(_KEYS))
    if unknown:
        raise _BadLineError(
            f"unknown key {json.dumps(unknown[0])}; the keys are {', '.join(_KEYS)}"
        )
    if "prompt" not in line:
        raise _BadLineError('it has no key "prompt"')
    values = {name: getattr(request, name) for name in (*_WHOLE, *_REAL)}
    for name in set(line) - {"prompt", "id"}:
        values[name] = _number(name, line[name])
    return Prompt(index, _id(line.get("id", index)), _text(line["prompt"]), **values)


def _number(name: str, value: object) -> float:
    kinds = int if name in _WHOLE else (int, float)
    low, high = _WHOLE[name] if name in _WHOLE else _REAL[name]
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise _BadLineError(f"{name} is not a {'whole ' if name in _WHOLE else ''}number")
    if not low <= value <= high or value == float("inf"):
        limits = f"finite and at least {low}" if high == float("inf") else f"from {low} to {high}"
        raise _BadLineError(f"{name} is {value}, but must be {limits}")
    return value


def _id(value: object) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise _BadLineError("its id is neither a string nor a number")
    if isinstance(value, str):
        _check_text(value, "its id")
    elif abs(value) == float("inf"):
        raise _BadLineError("its id is not a finite number")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _BadLineError("its prompt is not a string")
    if not value:
        raise _BadLineError("its prompt is empty")
    _check_text(value, "its prompt")
    return value


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _BadLineError(f"{what} contains an unpaired surrogate") from None
