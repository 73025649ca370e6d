"""Load a model, stream the text that it answers with, and time it."""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bitnet_tuning.embedded.binding import fill, load_binding, set_host
from bitnet_tuning.embedded.options import LoadOptions
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.gguf import read_model

# Seconds until a wait for the next piece lets Python look for signals. Only Windows needs
# it: elsewhere a signal ends the wait.
POLL_SECONDS = 0.25
BITNET_ONLY = ("i2_s", "tl1", "tl2")
PREFIX = "llama_perf_context_print:"

LOOPBACK = "127.0.0.1"
# sockaddr_un holds 104 bytes on macOS and BSD, 108 on Linux, one of them the final NUL.
SOCKET_PATH_LIMIT = 103
FOLDER_PREFIX = "bitnet-embedded-"
# A folder lives as long as a model loads; one this old was left by a killed process.
STALE_SECONDS = 24 * 3600.0


class ContextFullError(TuningError):
    """A prompt is longer than the context that it was given."""


class PhaseTimes(NamedTuple):
    """Tokens processed and the milliseconds that they took, by the engine's clock.

    The engine starts ``predicted_ms`` when it has sampled the first token, which comes out
    of the prompt's last step and is paid for in ``prompt_ms``. So ``predicted_n`` tokens
    cost ``predicted_n - 1`` steps: the ``runs``.
    """

    prompt_n: int = 0
    prompt_ms: float = 0.0
    runs: int = 0
    predicted_ms: float = 0.0


class TextPiece(NamedTuple):
    """Text of whole characters; ``finish`` is "stop" or "length" at the end, else ""."""

    text: str
    finish: str
    times: PhaseTimes | None


@contextmanager
def private(params: Any) -> Iterator[None]:
    """Let nobody reach a server that is started in the block.

    Requests go through calls within the process, but the engine's HTTP server insists on
    listening. On POSIX it gets a socket file in a private folder that is deleted as soon as
    the server has started. Elsewhere, and if the path is too long for a socket, it gets a
    free port of 127.0.0.1. Either way a key that nobody knows guards it.
    """
    params.api_keys = [secrets.token_hex(32)]
    params.port = 0
    with _socket_path() as path:
        set_host(params, path or LOOPBACK)
        yield


class EmbeddedEngine:
    """A model in memory. ``load_ms`` is how long loading and warming up took."""

    def __init__(
        self,
        options: LoadOptions,
        listening: Callable[[Any], AbstractContextManager[None]] = private,
    ) -> None:
        """Load the model. ``listening`` sets where the server listens.

        Raise TuningError for an unusable model, MissingError without xllamacpp.
        """
        _check_readable(options.model)
        self.options = options
        self.binding = load_binding()
        params = fill(self.binding, options)
        started = time.perf_counter()
        with listening(params), _signals_kept():
            try:
                self.server: Any = self.binding.Server(params)
            except RuntimeError as error:
                cause = f"failed to load model '{options.model}'"
                raise TuningError(cause, _reason(options.model)) from error
        self.loaded_at = time.perf_counter()
        self.load_ms = 1e3 * (self.loaded_at - started)

    def system_info(self) -> str:
        """Return llama.cpp's line about threads and instruction sets."""
        return (
            f"system_info: n_threads = {self.options.threads} "
            f"(n_threads_batch = {self.options.threads_batch}) / {os.cpu_count()} | "
            f"{self.binding.get_system_info().strip()}"
        )

    def perf(self, rows: Sequence[PhaseTimes]) -> str:
        """Return the timing lines for all completions since loading."""
        return perf_lines(self.load_ms, 1e3 * (time.perf_counter() - self.loaded_at), rows)

    def complete(self, request: Mapping[str, Any]) -> Iterator[TextPiece]:
        """Stream the answer to ``prompt``, or to ``messages`` through the chat template.

        Closing the iterator stops it at the next token. Raise TuningError for what the
        engine refuses.
        """
        chat = "messages" in request
        call = self.server.handle_chat_completions if chat else self.server.handle_completions
        return _stream(call, request)


def _check_readable(model: str) -> None:
    """Raise TuningError for a path that cannot be opened, before anything is imported."""
    if not model:
        raise TuningError("no model given", "name one with -m FNAME")
    try:
        model.encode()
        with open(model, "rb"):
            pass
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", "") or "its path is not UTF-8"
        shown = os.fsencode(model).decode("utf-8", "replace")
        raise TuningError(f"failed to open model '{shown}': {reason}") from None


def _reason(model: str) -> str:
    """Return why a file may be unusable, as far as its header tells."""
    try:
        kind = read_model(model).quantization
    except TuningError as error:
        return error.cause
    if kind in BITNET_ONLY:
        return f"{kind} is bitnet.cpp's own format: the embedded engine reads TQ2_0 and TQ1_0"
    return "llama.cpp's reason stands above"


@contextmanager
def _socket_path() -> Iterator[str | None]:
    """Yield a path to listen on that is deleted after the block, or None for a port."""
    if os.name != "posix" or not hasattr(socket, "AF_UNIX"):
        yield None
        return
    with suppress(OSError):  # Remove what processes that were killed while loading left.
        for folder in Path(tempfile.gettempdir()).glob(FOLDER_PREFIX + "*"):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
    try:
        fresh = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with fresh as name:
        # The suffix is how the server tells a socket file from a host name.
        path = f"{name}/s.sock"
        yield path if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT else None


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Let signals end the process while a model loads, and restore their handlers after.

    The binding holds the interpreter's lock while it loads, so that Python could not act on
    Ctrl-C: let it end the process the way it ends a compiled program. Some releases leave
    handlers of their own behind.
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


def _stream(call: Callable[..., Any], request: Mapping[str, Any]) -> Iterator[TextPiece]:
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
        while True:
            try:
                chunk = pieces.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if chunk is None:
                return
            yield _read(chunk)
    finally:
        halt.set()


def _read(chunk: Any) -> TextPiece:
    """Return a piece from one object of the stream, of a chat or of a completion."""
    if isinstance(chunk, Exception):
        raise TuningError(f"the engine failed: {chunk}") from chunk
    if "choices" not in chunk:
        raise _refusal(chunk.get("error", chunk))
    times = chunk.get("timings")
    choice = chunk["choices"][0] if chunk["choices"] else {}
    text = choice.get("text") or choice.get("delta", {}).get("content") or ""
    return TextPiece(text, choice.get("finish_reason") or "", read_times(times) if times else None)


def _refusal(error: Any) -> TuningError:
    error = error if isinstance(error, dict) else {"message": error}
    if error.get("type") == "exceed_context_size_error":
        count, size = error.get("n_prompt_tokens"), error.get("n_ctx")
        return ContextFullError(
            f"prompt is too long ({count} tokens, the context holds {size})",
            "give a larger context with -c N, as far as the model can, or a shorter prompt",
        )
    return TuningError(f"the engine refused the request: {error.get('message', error)}")


def read_times(result: Mapping[str, Any]) -> PhaseTimes:
    """Read the ``timings`` object of a completion's result."""
    runs = max(int(result["predicted_n"]) - 1, 0)
    # With no step after the prompt, what the clock shows is the reading of the clock.
    predicted_ms = float(result["predicted_ms"]) if runs else 0.0
    return PhaseTimes(int(result["prompt_n"]), float(result["prompt_ms"]), runs, predicted_ms)


def perf_lines(load_ms: float, wall_ms: float, rows: Sequence[PhaseTimes]) -> str:
    """Return the four lines that every llama.cpp program ends with, times in milliseconds.

    ``wall_ms`` counts from the end of loading; ``rows`` are added up.
    """
    prompt_n, runs = sum(row.prompt_n for row in rows), sum(row.runs for row in rows)
    prompt = _rate(sum(row.prompt_ms for row in rows), prompt_n, "tokens")
    generation = _rate(sum(row.predicted_ms for row in rows), runs, "runs  ")
    return (
        f"\n{PREFIX}        load time = {load_ms:10.2f} ms\n"
        f"{PREFIX} prompt eval time = {prompt}\n"
        f"{PREFIX}        eval time = {generation}\n"
        f"{PREFIX}       total time = {wall_ms:10.2f} ms / {prompt_n + runs:5d} tokens"
    )


def _rate(milliseconds: float, count: int, noun: str) -> str:
    each = milliseconds / count if count else 0.0
    per_second = 1e3 * count / milliseconds if milliseconds else 0.0
    return (
        f"{milliseconds:10.2f} ms / {count:5d} {noun} "
        f"({each:8.2f} ms per token, {per_second:8.2f} tokens per second)"
    )
