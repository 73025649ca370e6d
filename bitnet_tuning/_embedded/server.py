"""llama-server's part of the embedded engine: xllamacpp's own server, on a port.

    python3 -m bitnet_tuning.embedded server -m MODEL -np 4 --host 127.0.0.1 --port 8080

xllamacpp brings llama.cpp's server with it; here it only gets an address, its slots
and the key in LLAMA_API_KEY, and this process stays until somebody ends it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

from bitnet_tuning._embedded import flags, output
from bitnet_tuning._embedded.flags import Flag, whole
from bitnet_tuning._embedded.options import FLAGS as CLI_FLAGS
from bitnet_tuning._embedded.options import Options, allowed_cpus

TITLE = "embedded server: llama-server over xllamacpp (mainline llama.cpp on CPUs)"
KEY_VARIABLE = "LLAMA_API_KEY"

_SPARE_HTTP_THREADS = 2
"""Beyond one for each slot: for questions about its health."""


class ServerOptions(NamedTuple):
    """What only a server has."""

    slots: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str = ""


_OWN = (
    Flag(("-np", "--parallel"), "slots", "prompts at a time (default: 1)", "N", whole),
    Flag(("-cb", "--cont-batching"), "", "accepted; continuous batching is always on"),
    Flag(("--no-context-shift",), "", "accepted; a full context ends the text"),
    Flag(("--host",), "host", "address to listen on (default: 127.0.0.1)", "HOST"),
    Flag(("--port",), "port", "port to listen on (default: 8080)", "PORT", whole),
    Flag(("--api-key",), "api_key", f"key that requests must have (env: {KEY_VARIABLE})", "KEY"),
)
_SHARED = (
    "help",
    "version",
    "model",
    "context",
    "threads",
    "threads_batch",
    "batch",
    "ubatch",
    "mmap",
    "mlock",
    "flash_attention",
    "numa",
    "priority",
    "poll",
    "warmup",
    "verbose",
)
FLAGS: tuple[Flag, ...] = (
    *(flag for flag in CLI_FLAGS if flag.field in _SHARED),
    *(flag for flag in CLI_FLAGS if "-ngl" in flag.names),
    *_OWN,
)


def main(argv: Sequence[str]) -> int:
    """Serve until a signal comes. Raises EngineError for an unusable model or a port that is
    taken, MissingError without xllamacpp."""
    chosen = flags.parse(argv, FLAGS)
    own = ServerOptions(
        **{name: chosen.pop(name) for name in ServerOptions._fields if name in chosen}
    )
    options = Options(**chosen)
    if options.help:
        sys.stdout.write(flags.render(TITLE, FLAGS))
        return 0
    if options.version:
        from bitnet_tuning._embedded.binding import version_line  # noqa: PLC0415 (help is quick)

        print(version_line())
        return 0
    threads = options.threads if options.threads > 0 else allowed_cpus()
    batch = options.threads_batch if options.threads_batch > 0 else threads
    return _serve(options._replace(threads=threads, threads_batch=batch), own)


def _serve(options: Options, own: ServerOptions) -> int:
    from bitnet_tuning._embedded.binding import Setup, fill, load_binding  # noqa: PLC0415
    from bitnet_tuning._embedded.engine import check_readable, signals_kept, start_server  # noqa: PLC0415 (loading is not for help's sake)

    check_readable(options.model)
    chosen = options._asdict()
    binding = load_binding()
    params = fill(
        binding, Setup(**{name: chosen[name] for name in Setup._fields if name in chosen})
    )
    _open(params, own)
    with signals_kept():
        server = start_server(binding, params, options.model)
    output.note(f"server is listening on {server.listening_address} with {own.slots} slots")
    threading.Event().wait()
    return 0


def _open(params: Any, own: ServerOptions) -> None:
    """An address, slots with a context of their own each, and the key."""
    if hasattr(params, "hostnames"):
        params.hostnames = [own.host]
    else:
        params.hostname = own.host
    params.port = own.port
    params.n_parallel = max(1, own.slots)
    params.cont_batching = True
    params.n_threads_http = params.n_parallel + _SPARE_HTTP_THREADS
    if hasattr(params, "kv_unified"):
        params.kv_unified = False
    key = own.api_key or os.environ.get(KEY_VARIABLE, "")
    if key:
        params.api_keys = [key]
