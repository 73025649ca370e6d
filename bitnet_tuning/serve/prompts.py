"""Prompts and their parser, and the answers to them, on standard output or in a file."""

from __future__ import annotations

import json
import os
import stat
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from bitnet_tuning.errors import TuningError, UsageError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.store.codec import Annotated, DamagedError, Record, Via
from bitnet_tuning.store.state import digest, hold

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
    """Return the prompts in a file. What a line does not set is taken from ``request``. Raise
    UsageError, with the number of the line, if a line is not a prompt."""
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
                cause = f"{json.dumps(prompt.id)} is also that of line {seen[prompt.id]}"
                raise DamagedError(cause, ".id")
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
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"it is not JSON ({error})") from None
    return {"prompt": value} if isinstance(value, str) else value


def _no_constant(name: str) -> None:
    raise ValueError(f"JSON has no {name}")


_HEAD = b'{"id": '
"""The first bytes of every line in a file of answers."""


class Answer(NamedTuple):
    """The answer to one prompt."""

    facts: dict[str, Any]
    """The line that is written: ``id`` and ``prompt``, and either ``error`` or ``text``,
    ``tokens``, ``prompt_tokens`` and ``stop`` (``end``, ``length`` or ``word``)."""
    timings: Mapping[str, Any] | None = None
    """The server's timings, in tokens and milliseconds; None if it reports none."""


def from_reply(prompt: Prompt, reply: Mapping[str, Any]) -> Answer:
    """Return the answer in a server's reply. Raise ValueError if the reply is not a completion."""
    try:
        # The server generates at least one token, even if it is asked for none.
        wanted = prompt.n_predict != 0
        text = str(reply["content"]) if wanted else ""
        # Servers since 2025 report a ``stop_type``, earlier ones have a flag for each reason.
        kind = reply.get("stop_type")
        ends, word = (kind == each or reply.get(f"stopped_{each}") for each in ("eos", "word"))
        facts = {
            "id": prompt.id,
            "prompt": prompt.text,
            "text": text.encode("utf-8", "replace").decode(),
            "tokens": int(reply["tokens_predicted"]) if wanted else 0,
            "prompt_tokens": int(reply["tokens_evaluated"]),
            "stop": "end" if ends else "word" if word else "length",
        }
        return Answer(facts, reply.get("timings"))
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise ValueError(f"the server's reply is not a completion ({what})") from None


def from_refusal(prompt: Prompt, reason: str) -> Answer:
    return Answer({"id": prompt.id, "prompt": prompt.text, "error": reason})


class AnswerStream:
    """Standard output. Answers are written in the order of the prompts."""

    def __init__(
        self, prompts: Sequence[Prompt], interruptible: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self.answered: set[object] = set()
        self.refused: list[object] = []
        self._order = deque(prompt.id for prompt in prompts)
        self._held_back: dict[object, Answer] = {}
        self._interruptible = interruptible

    def add(self, answer: Answer) -> None:
        """Write the answers whose turn it is. Raise BrokenPipeError if the reader is gone."""
        self.refused += [answer.facts["id"]] if "error" in answer.facts else []
        self._held_back[answer.facts["id"]] = answer
        while self._order and self._order[0] in self._held_back:
            ready = self._held_back.pop(self._order.popleft())
            with self._interruptible():  # the write blocks while the reader does not read
                _write(1, _line(ready.facts))
            self.answered.add(ready.facts["id"])


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class AnswerFile:
    """A context manager for a file of answers in the order of completion, open in one process at a
    time. An answer is on disk when ``add`` returns. Its line also contains ``request``, a digest of
    all that the answer depends on: a resumed run never mixes answers of different settings."""

    def __init__(self, path: str, prompts: tuple[Prompt, ...], setting: object) -> None:
        """Open or create the file; raise UsageError or, if another run has it open, TuningError.
        ``setting`` is a JSON value of what the answers depend on besides the prompts."""
        self.path = path
        self.answered: set[object] = set()
        self.refused: list[object] = []
        self._requests = {each.id: digest(json.dumps([*each, setting])) for each in prompts}
        self._prompts = {prompt.id: prompt for prompt in prompts}
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UsageError(f"argument -o/--output: {path}: {error.strerror}") from error
        try:
            if not stat.S_ISREG(os.fstat(self._handle).st_mode):
                raise UsageError(f"argument -o/--output: {path} is not a regular file")
            if not hold(self._handle):
                remedy = "wait until it ends, or name another file with -o"
                raise TuningError(f"another run is writing answers to {path}", remedy)
        except TuningError:
            os.close(self._handle)
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def require_empty(self) -> None:
        """Raise UsageError if the file is not empty."""
        if os.fstat(self._handle).st_size:
            cause = f"argument -o/--output: {self.path} is not empty"
            raise UsageError(cause, "add --resume to continue it, or name another file with -o")

    def read(self) -> bool:
        """Read the answers of earlier runs. Return True if the last line was removed because it was
        incomplete: a run was killed, or the disk was full. Raise UsageError, without a change, if
        the file contains anything but answers to these prompts with these settings."""
        # On Windows, a second handle could not read what this one has locked.
        with open(self._handle, "rb", closefd=False) as file:
            content = file.read()
        whole, _, rest = content.rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n"), 1):
            if line.strip() and not self._count(line):
                self._refuse(number)
        if not rest:
            return False
        if self._count(rest):
            _write(self._handle, b"\n")
            return False
        if _is_json(rest) or (not _HEAD.startswith(rest[: len(_HEAD)]) and rest.strip(b"\0")):
            self._refuse(content.count(b"\n") + 1)
        os.ftruncate(self._handle, len(content) - len(rest))
        return True

    def _count(self, line: bytes) -> bool:
        """Count the line if it is a complete answer to one of the prompts, else return False."""
        try:
            facts = json.loads(line)
            prompt = self._prompts[facts["id"]]
            is_theirs = (
                facts["prompt"] == prompt.text
                and facts["request"] == self._requests[prompt.id]
                and isinstance(facts.get("text", facts.get("error")), str)
            )
        except (ValueError, RecursionError, KeyError, TypeError):
            return False
        if is_theirs and prompt.id not in self.answered:
            self.answered.add(prompt.id)
            self.refused += [prompt.id] if "error" in facts else []
        return is_theirs

    def _refuse(self, number: int) -> None:
        raise UsageError(
            f"cannot resume {self.path}: line {number} is not an answer to these prompts with "
            "this model and these flags",
            "use the flags of the earlier run, or name another file with -o",
        )

    def add(self, answer: Answer) -> None:
        """Append an answer and flush it to disk. Raise TuningError if that fails."""
        line = _line({**answer.facts, "request": self._requests[answer.facts["id"]]})
        try:
            _write(self._handle, line)
            os.fsync(self._handle)
        except OSError as error:
            raise TuningError(f"cannot write to {self.path}: {error.strerror}") from error
        self.answered.add(answer.facts["id"])
        self.refused += [answer.facts["id"]] if "error" in answer.facts else []


def _line(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False).encode() + b"\n"


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
