"""The look-alike of llama-server: xllamacpp's own server, on a port.

xllamacpp brings llama.cpp's server with it; here it only gets an address, its slots and
the key in LLAMA_API_KEY, and this process stays until somebody ends it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bitnet_tuning.embedded.binding import set_host, set_known
from bitnet_tuning.embedded.engine import EmbeddedEngine
from bitnet_tuning.embedded.flags import CliFlag, at_least, whole
from bitnet_tuning.embedded.options import LOAD_FLAGS, LoadOptions, LookAlike

KEY_VARIABLE = "LLAMA_API_KEY"


@dataclass
class ServerOptions(LoadOptions):
    """What llama-server's command line asks for; ``slots`` is how many prompts at a time."""

    slots: int = 1
    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str = ""


def run(options: ServerOptions) -> None:
    """Serve until a signal comes.

    Raise TuningError for an unusable model or a port that is taken, MissingError without
    xllamacpp.
    """

    @contextmanager
    def listening(params: Any) -> Iterator[None]:
        """Set the address, slots with a context of their own each, and the key."""
        set_host(params, options.host)
        params.port = options.port
        params.n_parallel = options.slots
        params.cont_batching = True
        params.n_threads_http = options.slots + 2  # Two answer about its health.
        set_known(params, {"kv_unified": False})
        key = options.api_key or os.environ.get(KEY_VARIABLE, "")
        if key:
            params.api_keys = [key]
        yield

    engine = EmbeddedEngine(options, listening)  # Serves as long as it is referred to.
    address = engine.server.listening_address
    line = f"server is listening on {address} with {options.slots} slots"
    print(line, file=sys.stderr, flush=True)
    threading.Event().wait()


PROGRAM = LookAlike(
    "embedded server: llama-server over xllamacpp (mainline llama.cpp on CPUs)",
    (
        *LOAD_FLAGS,
        CliFlag("-np, --parallel N", "slots", "prompts at a time (default: 1)", at_least(1)),
        CliFlag("-cb, --cont-batching", "", "accepted; continuous batching is always on"),
        CliFlag("--no-context-shift", "", "accepted; a full context ends the text"),
        CliFlag("--host HOST", "host", "address to listen on (default: 127.0.0.1)"),
        CliFlag("--port PORT", "port", "port to listen on (default: 8080)", whole),
        CliFlag("--api-key KEY", "api_key", f"key of requests (env: {KEY_VARIABLE})"),
    ),
    ServerOptions,
    run,
)
