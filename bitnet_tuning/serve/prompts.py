"""Prompts, and their parser: lines of JSON in, checked records out."""

from __future__ import annotations

import json
from typing import Any

from bitnet_tuning.errors import UsageError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.store.codec import Annotated, DamagedError, Record, Via

_SEED_MASK = (1 << 32) - 1
_MOST = (1 << 31) - 1


def _checked_id(value: object) -> str | int | float:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("must be a string or a number")
    if isinstance(value, str):
        return _encodable(value)
    if abs(value) == float("inf"):
        raise ValueError("must be a finite number")
    return value


def _checked_text(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return _encodable(text)


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain an unpaired surrogate") from None
    return text


Share = Annotated[float, {"minimum": 0, "maximum": 1}]


class Prompt(NamedTuple):
    """One prompt with its sampling parameters; None means the engine's default."""

    id: Annotated[str | int | float, Via(object, _checked_id, _checked_id)]
    text: Annotated[str, Via(str, _checked_text, str)]
    n_predict: Annotated[int, {"minimum": -2, "maximum": _MOST}]
    """Number of tokens to generate; negative: until the model ends or the context is full."""
    temperature: Annotated[float, {"minimum": 0}]
    seed: Annotated[int, {"minimum": -1, "maximum": _SEED_MASK}] | None = None
    top_k: Annotated[int, {"minimum": 0, "maximum": _MOST}] | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    repeat_penalty: Annotated[float, {"minimum": 0}] | None = None

    def body(self) -> dict[str, Any]:
        """Return the body of the request to llama.cpp's server."""
        # What is None is left out: the server has the same defaults as llama-cli.
        said = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        if self.seed is not None:
            said["seed"] = self.seed & _SEED_MASK
        # The server does not know llama-cli's -2; its -1 ends at a full context as well. With the
        # cache of an earlier prompt, an answer would depend on its slot.
        length = max(self.n_predict, -1)
        return {"prompt": self.text, **said, "n_predict": length, "cache_prompt": False}

    @property
    def is_reproducible(self) -> bool:
        """True if every run must give the same text: temperature 0, or a fixed seed."""
        return self.temperature == 0 or self.seed not in (None, -1)


_SAMPLING = Prompt._fields[3:]
_FORM = Record(Prompt, names={"text": "prompt"})


def parse(content: bytes, request: Request) -> tuple[Prompt, ...]:
    """Return the prompts in a file. What a line does not set is taken from ``request``.

    Raise UsageError, with the number of the line, if a line is not a prompt.
    """
    defaults = {name: getattr(request, name) for name in ("n_predict", *_SAMPLING)}
    prompts: list[Prompt] = []
    seen: dict[object, int] = {}
    # Not ``splitlines``: JSON strings may contain other characters at which it splits.
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            given = _FORM.read_fields(_decoded(line), ("text",))
            prompt = Prompt(**{"id": len(prompts), **defaults, **given})
            if prompt.id in seen:
                raise DamagedError(
                    f"{json.dumps(prompt.id)} is also that of line {seen[prompt.id]}", ".id"
                )
        except DamagedError as error:
            raise UsageError(
                f"argument --prompts: line {number}: {error}",
                'a line must be a JSON string, or an object such as {"prompt": "...", "id": 1}; '
                f"other keys: {', '.join(('n_predict', *_SAMPLING))}",
            ) from None
        seen[prompt.id] = number
        prompts.append(prompt)
    if not prompts:
        raise UsageError("argument --prompts: the file contains no prompt")
    return tuple(prompts)


def _decoded(line: bytes) -> object:
    """Return a line's JSON, an object with the prompt for a string. Raise DamagedError."""
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise DamagedError("it is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is not JSON ({error})") from None
    return {"prompt": value} if isinstance(value, str) else value


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")
