"""Answers: records of what the server said, and where they are written."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from bitnet_tuning.errors import TuningError, UsageError
from bitnet_tuning.store.state import digest, hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.serve.prompts import Prompt


_STDOUT = 1
_HEAD = b'{"id": '
"""Every line of an answer file begins with this."""


class Answer(NamedTuple):
    """The answer to the prompt at ``place``."""

    place: int
    facts: dict[str, Any]
    """``id``, ``prompt`` and either ``text``, ``tokens``, ``prompt_tokens`` and ``stop``
    (``end``, ``length`` or ``word``), or ``error``."""
    timings: Mapping[str, Any] | None = None
    """The server's own, in tokens and milliseconds."""


def from_reply(prompt: Prompt, reply: Mapping[str, Any]) -> Answer:
    """Return the server's answer. Raise ValueError if the reply is not a completion."""
    try:
        # The server always generates at least one token, even if asked for none.
        wanted = prompt.n_predict != 0
        text = str(reply["content"]) if wanted else ""
        facts = {
            "id": prompt.id,
            "prompt": prompt.text,
            "text": text.encode("utf-8", "replace").decode(),
            "tokens": int(reply["tokens_predicted"]) if wanted else 0,
            "prompt_tokens": int(reply["tokens_evaluated"]),
            "stop": _stop(reply),
        }
        return Answer(prompt.place, facts, reply.get("timings"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the server's reply is not a completion: {error!r}") from None


def from_refusal(prompt: Prompt, reason: str) -> Answer:
    """Return the answer to a prompt that the engine refuses."""
    return Answer(prompt.place, {"id": prompt.id, "prompt": prompt.text, "error": reason})


def _stop(reply: Mapping[str, Any]) -> str:
    # Servers since 2025 have one ``stop_type``, earlier ones a flag for each reason.
    kind = reply.get("stop_type")
    if kind == "eos" or reply.get("stopped_eos"):
        return "end"
    return "word" if kind == "word" or reply.get("stopped_word") else "length"


class AnswerStream:
    """Standard output: answers in the order of the prompts, each as soon as its turn comes."""

    def __init__(self, interruptible: Callable[[], AbstractContextManager[object]]) -> None:
        self.answered: set[int] = set()
        self.refused = 0
        self._next = 0
        self._held_back: dict[int, Answer] = {}
        self._interruptible = interruptible

    def add(self, answer: Answer) -> None:
        """Write the answers whose turn it is. Raise BrokenPipeError if nobody reads them."""
        self.refused += "error" in answer.facts
        self._held_back[answer.place] = answer
        while self._next in self._held_back:
            ready = self._held_back.pop(self._next)
            self._next += 1
            with self._interruptible():  # a reader that does not read blocks the write
                _write(_STDOUT, _line(ready.facts))
            self.answered.add(ready.place)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class AnswerFile:
    """A file of answers, each appended as soon as it is complete, in the order of completion.

    An answer is on disk when ``add`` returns. Its line also holds ``request``, a digest of all
    that the answer depends on, so that a resumed run never mixes answers of different settings.
    Only one process at a time has the file. Use it as a context manager.
    """

    def __init__(self, path: str, prompts: tuple[Prompt, ...], setting: object) -> None:
        """Open or create the file. ``setting`` is what the answers depend on beside the
        prompts, as JSON has it. Raise UsageError if the file cannot be written, TuningError if
        another run has it."""
        self.path = path
        self.answered: set[int] = set()
        self.refused = 0
        self._requests = [digest(json.dumps([*prompt[1:], setting])) for prompt in prompts]
        self._prompts = {prompt.id: prompt for prompt in prompts}
        try:
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise UsageError(f"argument -o/--output: {path}: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._handle).st_mode):
            self._fail(UsageError(f"argument -o/--output: {path} is not a regular file"))
        if not hold(self._handle):
            remedy = "wait until it ends, or name another file with -o"
            self._fail(TuningError(f"another run is writing its answers to {path}", remedy))

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def _fail(self, error: TuningError) -> None:
        os.close(self._handle)
        raise error

    def require_empty(self) -> None:
        """Raise UsageError if the file holds anything."""
        if os.fstat(self._handle).st_size:
            raise UsageError(
                f"argument -o/--output: {self.path} is not empty",
                "add --resume to go on with it, or name another file",
            )

    def read(self) -> bool:
        """Count the answers that the file holds; return True if an incomplete last line, of a
        run that was killed or a disk that was full, was cut off.

        Raise UsageError if anything in the file is not an answer to one of the prompts with
        the same settings.
        """
        with open(self._handle, "rb", closefd=False) as file:  # Windows reads by no other
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
        """Return True if the line is a whole answer to one of the prompts; count it then."""
        try:
            facts = json.loads(line)
            prompt = self._prompts[facts["id"]]
            is_theirs = (
                facts["prompt"] == prompt.text
                and facts["request"] == self._requests[prompt.place]
                and isinstance(facts.get("text", facts.get("error")), str)
            )
        except (ValueError, RecursionError, KeyError, TypeError):
            return False
        if is_theirs and prompt.place not in self.answered:
            self.answered.add(prompt.place)
            self.refused += "error" in facts
        return is_theirs

    def _refuse(self, number: int) -> None:
        raise UsageError(
            f"cannot resume {self.path}: line {number} is not an answer to these prompts with "
            "this model and these flags",
            "repeat the command of the earlier run, or name another file with -o",
        )

    def add(self, answer: Answer) -> None:
        """Append an answer and flush it to disk. Raise TuningError if that fails."""
        line = _line({**answer.facts, "request": self._requests[answer.place]})
        try:
            _write(self._handle, line)
            os.fsync(self._handle)
        except OSError as error:
            raise TuningError(f"cannot write to {self.path}: {error.strerror}") from error
        self.answered.add(answer.place)
        self.refused += "error" in answer.facts


def _line(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False).encode() + b"\n"


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
