"""A loaded model and the pieces of text that it answers with."""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from bitnet_tuning._embedded import timings
from bitnet_tuning._embedded.binding import Setup, fill, load_binding
from bitnet_tuning._embedded.errors import ContextFullError, EngineError
from bitnet_tuning._embedded.listener import guarded
from bitnet_tuning._embedded.timings import Timings
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.gguf import read_model

# How long a wait for the next piece may go on before Python looks for signals.
# Only Windows needs it: elsewhere a signal ends the wait.
POLL_SECONDS = 0.25
BITNET_ONLY = ("i2_s", "tl1", "tl2")


class Piece(NamedTuple):
    """Some text, all of its characters complete; ``finish`` is "stop" or "length" at the end."""

    text: str
    finish: str
    timings: Timings | None


class Engine:
    """A model in memory. ``load_ms`` is how long loading and warming up took."""

    def __init__(self, setup: Setup) -> None:
        """Load. Raises EngineError for an unusable model, MissingError without xllamacpp."""
        check_readable(setup.model)
        self.setup = setup
        self.binding = load_binding()
        params = fill(self.binding, setup)
        started = time.perf_counter()
        with guarded(params), signals_kept():
            self._server: Any = start_server(self.binding, params, setup.model)
        self.loaded_at = time.perf_counter()
        self.load_ms = 1e3 * (self.loaded_at - started)

    def close(self) -> None:
        """Free the model. Not needed at the end of a process."""
        self._server = None

    def system_info(self) -> str:
        """llama.cpp's line about threads and instruction sets."""
        setup = self.setup
        return (
            f"system_info: n_threads = {setup.threads} "
            f"(n_threads_batch = {setup.threads_batch}) / {os.cpu_count()} | "
            f"{self.binding.get_system_info().strip()}"
        )

    def perf(self, rows: list[Timings]) -> str:
        """The timing lines for all completions since loading."""
        wall_ms = 1e3 * (time.perf_counter() - self.loaded_at)
        return timings.perf_lines(self.load_ms, wall_ms, timings.total(rows))

    def complete(self, request: Mapping[str, Any]) -> Iterator[Piece]:
        """Stream a completion. Closing the iterator stops it at the next token.

        Raises EngineError for what the engine refuses.
        """
        return _stream(self._server.handle_completions, request)

    def chat(self, request: Mapping[str, Any]) -> Iterator[Piece]:
        """Stream the answer to ``messages`` through the model's chat template."""
        return _stream(self._server.handle_chat_completions, request)


def check_readable(model: str) -> None:
    """Say what is wrong with a path before anything is imported. Raises EngineError."""
    if not model:
        raise EngineError("no model given", "name one with -m FNAME")
    try:
        model.encode()
        with open(model, "rb"):
            pass
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", "") or "its path is not UTF-8"
        shown = os.fsencode(model).decode("utf-8", "replace")
        raise EngineError(f"failed to open model '{shown}': {reason}") from None


def start_server(binding: Any, params: Any, model: str) -> Any:
    """xllamacpp's server with this model loaded. Raises EngineError where it is unusable."""
    try:
        return binding.Server(params)
    except RuntimeError as error:
        raise EngineError(f"failed to load model '{model}'", _reason(model)) from error


def _reason(model: str) -> str:
    """Why a file may be unusable, as far as its header tells."""
    try:
        kind = read_model(model).quantization
    except TuningError as error:
        return error.cause
    if kind in BITNET_ONLY:
        return f"{kind} is bitnet.cpp's own format: the embedded engine reads TQ2_0 and TQ1_0"
    return "llama.cpp's reason stands above"


@contextmanager
def signals_kept() -> Iterator[None]:
    """Loading must neither outlive a signal nor change what signals do.

    The binding holds the interpreter's lock while it loads, so that Python could
    not act on Ctrl-C: let it end the process the way it ends a compiled program.
    Some releases leave handlers of their own behind.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None is one that Python did not set and cannot restore.
                signal.signal(number, handler)


def _stream(call: Callable[..., Any], request: Mapping[str, Any]) -> Iterator[Piece]:
    """Run ``call`` in a thread, so that signals reach Python during a long prompt."""
    pieces: queue.SimpleQueue[Any] = queue.SimpleQueue()
    halt = threading.Event()

    def deliver(chunk: Any) -> bool:
        pieces.put(chunk)
        return halt.is_set()

    def work() -> None:
        try:
            call({**request, "stream": True, "timings_per_token": True}, deliver)
            pieces.put(None)
        except Exception as error:
            pieces.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        while (chunk := _next(pieces)) is not None:
            yield _read(chunk)
    finally:
        halt.set()


def _next(pieces: queue.SimpleQueue[Any]) -> Any:
    while True:
        try:
            return pieces.get(timeout=POLL_SECONDS)
        except queue.Empty:
            continue


def _read(chunk: Any) -> Piece:
    """A piece from one object of the stream, whichever of the two forms it has."""
    if isinstance(chunk, Exception):
        raise EngineError(f"the engine failed: {chunk}") from chunk
    if "choices" not in chunk:
        _refuse(chunk.get("error", chunk))
    times = chunk.get("timings")
    choice = chunk["choices"][0] if chunk["choices"] else {}
    delta = choice.get("delta", {})
    return Piece(
        choice.get("text") or delta.get("content") or "",
        choice.get("finish_reason") or "",
        timings.from_result(times) if times else None,
    )


def _refuse(error: Any) -> None:
    if isinstance(error, dict) and error.get("type") == "exceed_context_size_error":
        count, size = error.get("n_prompt_tokens"), error.get("n_ctx")
        cause = f"prompt is too long ({count} tokens, the context holds {size})"
        raise ContextFullError(
            cause, "give a larger context with -c N, as far as the model can, or a shorter prompt"
        )
    message = error.get("message", error) if isinstance(error, dict) else error
    raise EngineError(f"the engine refused the request: {message}")
