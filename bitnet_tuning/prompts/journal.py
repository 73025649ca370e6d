"""What was answered so far, kept on disk until a run is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bitnet_tuning.errors import TuningError
from bitnet_tuning.prompts.answers import Answer, decoded, read_answer
from bitnet_tuning.store.state import alone, identity, write_atomically

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.plan.request import Request
    from bitnet_tuning.prompts.asks import Ask
    from bitnet_tuning.store.state import State


SCHEMA = 1


class Run(NamedTuple):
    """A set of prompts with all that their answers depend on, but for the engine."""

    asks: tuple[Ask, ...]
    mark: str
    """A digest, by which its journal is found."""


def identify(asks: tuple[Ask, ...], request: Request, model: str, context: int) -> Run:
    """The run for these prompts. Raises OSError where the model is gone."""
    path = os.path.realpath(model)
    parts = [SCHEMA, identity(path), context, request.extra, *asks]
    text = json.dumps(parts, ensure_ascii=True)
    return Run(asks, hashlib.sha256(text.encode()).hexdigest()[:32])


class Found(NamedTuple):
    """What was read from a journal."""

    answers: dict[int, Answer]
    damaged: bool = False
    """Whether more than the end of its last line was lost."""


class Journal:
    """The answers to one run, each on disk before it is shown. ``notes`` tells what the
    user should know of it, and is emptied by whoever says it."""

    def __init__(self, folder: str, run: Run) -> None:
        self.run = run
        self.path = os.path.join(folder, f"prompts-{run.mark}.jsonl")
        self.answers: dict[int, Answer] = {}
        self.notes: list[str] = []
        self.existed = False
        self._handle: int | None = None

    def open(self, resume: bool) -> None:
        """Reads what an earlier run left, and begins. Without ``resume`` it is set aside."""
        found = self._read()
        self.existed = found is not None
        if found is not None and found.damaged:
            self._set_aside("it was damaged; what could be read is used")
        if found is not None and found.answers and not resume:
            self._set_aside(
                f"{len(found.answers)} of {len(self.run.asks)} prompts were answered: "
                "--resume would have gone on from there"
            )
        if found is not None and resume:
            self.answers = found.answers
        self._begin()

    def add(self, answer: Answer) -> None:
        """Keeps an answer; it is on disk when this returns."""
        self.answers[answer.place] = answer
        if self._handle is None:
            return
        try:
            os.write(self._handle, _entry(answer))
            os.fsync(self._handle)
        except OSError as error:
            self._give_up(error)

    def close(self, complete: bool) -> None:
        """Removes it after a complete run."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
            if complete:
                os.unlink(self.path)

    def _read(self) -> Found | None:
        try:
            with open(self.path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            self.notes.append(f"warning: cannot read {self.path}: {error.strerror}")
            return None
        return read(content, self.run)

    def _set_aside(self, why: str) -> None:
        aside = f"{self.path}.{time.strftime('%Y%m%dT%H%M%S')}-{os.urandom(2).hex()}"
        with contextlib.suppress(OSError):
            os.replace(self.path, aside)
            self.notes.append(f"an unfinished run is set aside as {aside}: {why}")

    def _begin(self) -> None:
        """Writes it anew, without a torn end."""
        head = {"schema": SCHEMA, "run": self.run.mark, "prompts": len(self.run.asks)}
        entries = [_json_line(head), *map(_entry, self.answers.values())]
        before = os.umask(0o077)  # prompts are their owner's alone
        try:
            write_atomically(self.path, b"".join(entries))
            self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        except OSError as error:
            self._give_up(error)
        finally:
            os.umask(before)

    def _give_up(self, error: OSError) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self.notes.append(
            f"warning: answers cannot be kept in {self.path} ({error.strerror}): "
            "--resume will not know all of them"
        )


def read(content: bytes, run: Run) -> Found:
    """The answers in a journal. The last line may be torn; after a line that is damaged
    nothing is trusted."""
    answers: dict[int, Answer] = {}
    head, *lines = content.split(b"\n")
    facts = decoded(head)
    if not isinstance(facts, dict) or (facts.get("schema"), facts.get("run")) != (SCHEMA, run.mark):
        return Found({}, damaged=bool(content))
    for line in lines[:-1]:
        answer = _answer(decoded(line), run.asks)
        if answer is None:
            return Found(answers, damaged=True)
        answers[answer.place] = answer
    return Found(answers)


def _answer(entry: Any, asks: tuple[Ask, ...]) -> Answer | None:
    if not isinstance(entry, dict) or not isinstance(place := entry.get("place"), int):
        return None
    return read_answer(entry.get("answer"), asks[place]) if 0 <= place < len(asks) else None


def _entry(answer: Answer) -> bytes:
    return _json_line({"place": answer.place, "answer": answer.facts})


def _json_line(facts: dict[str, Any]) -> bytes:
    return json.dumps(facts, ensure_ascii=False).encode() + b"\n"


@contextlib.contextmanager
def journal_of(state: State, run: Run) -> Iterator[Journal]:
    """The run's journal, for nobody else meanwhile. Raises TuningError where another
    process has it."""
    journal = Journal(state.folder, run)
    with contextlib.suppress(OSError):
        os.makedirs(state.folder, exist_ok=True)
    with alone(journal.path + ".lock") as is_alone:
        if not is_alone:
            raise TuningError(
                "another run is answering these very prompts",
                "wait for its end, or end it and go on with --resume",
            )
        try:
            yield journal
        finally:
            journal.close(complete=False)
