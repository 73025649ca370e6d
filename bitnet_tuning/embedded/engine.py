"""Load a model into this process with xllamacpp, stream its answers, and report their times."""

from __future__ import annotations

import importlib
import os
import queue
import secrets
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from bitnet_tuning.embedded.flags import Options
from bitnet_tuning.errors import MissingError, TuningError
from bitnet_tuning.model.gguf import read_model

POLL_SECONDS = 0.25
"""Seconds between two looks for signals while waiting for text. Only Windows needs them:
elsewhere a signal interrupts the wait."""
BITNET_ONLY = ("i2_s", "tl1", "tl2")
"""Tensor types that only bitnet.cpp has."""
PREFIX = "llama_perf_context_print:"
"""Beginning of llama.cpp's lines of timings."""

ERRORS_ONLY = 1
"""llama.cpp's level of the log at which it prints errors only."""

_servers: list[Any] = []
"""Every server of this process, so that none is ever destroyed: its destructor holds the
interpreter's lock while it joins threads, and hangs if one of them waits for that lock."""


class ContextFullError(TuningError):
    """The prompt is longer than the context."""


class PhaseTimes(NamedTuple):
    """The tokens of one request and their times in milliseconds, by the engine's clock. ``runs``
    are the steps after the prompt, whose last step gives the first token."""

    prompt_n: int = 0
    prompt_ms: float = 0.0
    runs: int = 0
    predicted_ms: float = 0.0


class TextPiece(NamedTuple):
    """A part of an answer, in whole characters; ``finish`` is "stop" or "length" at its end."""

    text: str
    finish: str
    times: PhaseTimes | None


def listen_privately(params: Any) -> None:
    """Set ``params`` so that no other process can use the server."""
    # Requests are calls within this process, but the engine's HTTP server always listens.
    params.api_keys = [secrets.token_hex(32)]
    params.port = 0
    set_host(params, "127.0.0.1")


class EmbeddedEngine:
    """A model in memory. ``load_ms`` is the time of loading and warming up, in milliseconds."""

    def __init__(self, options: Options, listen: Callable[[Any], None] = listen_privately) -> None:
        """Load the model; ``listen`` sets the address of the server in its parameters. Raise
        TuningError for an unusable model, and MissingError without xllamacpp."""
        _check_readable(options.model)
        self.options = options
        self.binding = load_binding()
        params = fill(self.binding, options)
        listen(params)
        started = time.perf_counter()
        with _signals_kept():
            try:
                self.server: Any = self.binding.Server(params)
            except RuntimeError as error:
                cause = f"failed to load model '{options.model}'"
                raise TuningError(cause, _reason(options.model)) from error
        _servers.append(self.server)
        self.loaded_at = time.perf_counter()
        self.load_ms = 1e3 * (self.loaded_at - started)

    def system_info(self) -> str:
        """Return llama.cpp's ``system_info`` line: threads and instruction sets."""
        return (
            f"system_info: n_threads = {self.options.threads} "
            f"(n_threads_batch = {self.options.threads_batch}) / {os.cpu_count()} | "
            f"{self.binding.get_system_info().strip()}"
        )

    def perf(self, rows: Sequence[PhaseTimes]) -> str:
        """Return the lines of timings for all requests since loading."""
        return perf_lines(self.load_ms, 1e3 * (time.perf_counter() - self.loaded_at), rows)

    def complete(self, request: Mapping[str, Any]) -> Iterator[TextPiece]:
        """Yield the answer to ``prompt``, or to ``messages`` through the chat template; closing the
        iterator stops the engine. Raise TuningError if it refuses the request or fails."""
        chat = "messages" in request
        call = self.server.handle_chat_completions if chat else self.server.handle_completions
        return _stream(call, request)


def _check_readable(model: str) -> None:
    """Raise TuningError if the file cannot be opened. This is quicker than importing xllamacpp."""
    if not model:
        raise TuningError("no model given", "name one with -m FNAME")
    try:
        model.encode()
        with open(model, "rb"):
            pass
    except (OSError, UnicodeEncodeError) as error:
        reason = getattr(error, "strerror", "") or "xllamacpp needs a path in UTF-8"
        shown = os.fsencode(model).decode("utf-8", "replace")
        raise TuningError(f"failed to open model '{shown}': {reason}") from None


def _reason(model: str) -> str:
    """Return why llama.cpp may have refused the file, as far as its header tells."""
    try:
        kind = read_model(model).quantization
    except TuningError as error:
        return error.cause
    if kind in BITNET_ONLY:
        return f"{kind} files need bitnet.cpp: the embedded engine runs TQ2_0 and TQ1_0 files"
    return "see llama.cpp's message above"


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Let signals end the process in the block, and restore their handlers afterwards."""
    # While it loads a model, xllamacpp holds the interpreter's lock, so Python could not act on
    # Ctrl-C. Some of its releases also leave handlers of their own behind.
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    if before[signal.SIGINT] is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not set by Python, which cannot restore it.
                signal.signal(number, handler)


def _stream(call: Callable[..., Any], request: Mapping[str, Any]) -> Iterator[TextPiece]:
    """Yield the pieces that ``call`` delivers. It runs in a thread: the main thread must be free
    to act on signals during a long prompt."""
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
    """Return the piece in one object of a stream; raise TuningError for one that is an error."""
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
        remedy = "shorten the prompt, or ask for a larger context with -c N, if the model has one"
        cause = f"prompt is too long ({count} tokens, the context holds {size})"
        return ContextFullError(cause, remedy)
    return TuningError(f"the engine refused the request: {error.get('message', error)}")


def read_times(result: Mapping[str, Any]) -> PhaseTimes:
    """Return the times in the ``timings`` object of a result."""
    # The engine starts predicted_ms when it has sampled the first token, from the prompt's last
    # step. So predicted_n tokens take one step less.
    runs = max(int(result["predicted_n"]) - 1, 0)
    # Without a step after the prompt, there is only the time of reading the clock.
    predicted_ms = float(result["predicted_ms"]) if runs else 0.0
    return PhaseTimes(int(result["prompt_n"]), float(result["prompt_ms"]), runs, predicted_ms)


def perf_lines(load_ms: float, wall_ms: float, rows: Sequence[PhaseTimes]) -> str:
    """Return the four lines of timings with which llama.cpp's programs end; ``wall_ms`` are the
    milliseconds since loading, and the ``rows`` are added up."""
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


def load_binding() -> Any:
    """Return the module ``xllamacpp``. Raise MissingError if it cannot be imported."""
    try:
        return importlib.import_module("xllamacpp")
    except ImportError as error:
        cause = f"the embedded engine needs the package xllamacpp ({error})"
        remedy = "install it: pip install xllamacpp"
        if "libgomp" in str(error):
            remedy = "install GNU's OpenMP runtime; on Debian and Ubuntu: apt-get install libgomp1"
        raise MissingError(cause, remedy) from error


def version_line() -> str:
    """Return the line ``version: embedded (…)``; raise MissingError without xllamacpp."""
    binding = load_binding()
    build = {"build_number": 0, "commit": "unknown", "compiler": "?", "build_target": "?"}
    build.update(getattr(binding, "BUILD_INFO", {}))
    # Wheels are built outside llama.cpp's repository, which makes its number 0. The third part of
    # xllamacpp's version is the llama.cpp release in it: 2026.10.11549.
    number = build["build_number"] or "".join(str(binding.__version__).split(".")[2:3])
    return (
        f"version: embedded (xllamacpp {binding.__version__}, "
        f"llama.cpp b{number} ({build['commit']}), "
        f"{build['compiler']} for {build['build_target']})"
    )


# llama.cpp's server reduced to one sequence for this process. fit_params would measure the
# machine's memory and change parameters.
QUIET_SERVER: dict[str, Any] = {
    **dict.fromkeys(("n_parallel", "n_threads_http"), 1),
    **dict.fromkeys(("cache_ram_mib", "n_ctx_checkpoints", "n_gpu_layers"), 0),
    **dict.fromkeys(("cont_batching", "cache_idle_slots", "ctx_shift", "fit_params"), False),
    **dict.fromkeys(("endpoint_slots", "endpoint_props", "endpoint_metrics"), False),
    **dict.fromkeys(("ui", "webui"), False),
    **dict.fromkeys(("offline", "no_kv_offload", "no_op_offload"), True),
    "sse_ping_interval": -1,
}


def fill(binding: Any, options: Options) -> Any:
    """Return the CommonParams for ``options``: one sequence, on CPUs, without a network."""
    params = binding.CommonParams()
    params.model.path = options.model
    params.cpuparams.n_threads = options.threads
    params.cpuparams_batch.n_threads = options.threads_batch
    params.n_ctx = options.context
    params.n_batch = options.batch
    params.n_ubatch = options.ubatch
    if options.chat_template:
        params.chat_template = options.chat_template
    params.verbosity = ERRORS_ONLY
    if options.numa:
        strategies = binding.ggml_numa_strategy
        params.numa = getattr(strategies, f"GGML_NUMA_STRATEGY_{options.numa.upper()}")
    flash = {True: "ENABLED", False: "DISABLED", None: "AUTO"}[options.flash]
    kinds = binding.llama_flash_attn_type
    params.flash_attn_type = getattr(kinds, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
    if not hasattr(params, "load_mode"):
        set_known(params, {"use_mmap": options.mmap is not False, "use_mlock": bool(options.mlock)})
    elif options.mmap is not None or options.mlock:
        mapped, copied = ("MMAP_MLOCK", "MLOCK") if options.mlock else ("MMAP", "NONE")
        name = copied if options.mmap is False else mapped
        params.load_mode = getattr(binding.llama_load_mode, f"LLAMA_LOAD_MODE_{name}")
    # Reasoning of models is part of their text, as in llama-cli.
    params.reasoning_format = binding.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    set_known(params, QUIET_SERVER)
    return params


def set_known(params: Any, values: dict[str, Any]) -> None:
    """Set those parameters that this release of xllamacpp has."""
    for name, value in values.items():
        if hasattr(params, name):
            setattr(params, name, value)


def set_host(params: Any, host: str) -> None:
    """Set the address to listen on: a list in newer releases, a single name in older ones."""
    if hasattr(params, "hostnames"):
        params.hostnames = [host]
    else:
        params.hostname = host
