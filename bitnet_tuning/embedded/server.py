"""The embedded llama-server: llama.cpp's own server, which is part of xllamacpp, on a port."""

from __future__ import annotations

import os
import threading
from typing import Any

from bitnet_tuning.console import tell
from bitnet_tuning.embedded.engine import EmbeddedEngine, set_host, set_known
from bitnet_tuning.embedded.flags import LOAD_FLAGS, CliFlag, LookAlike, Options

KEY_VARIABLE = "LLAMA_API_KEY"
"""Environment variable from which llama-server takes the key without --api-key."""


def run(options: Options) -> None:
    """Serve until a signal ends the process. Raise TuningError for an unusable model or an
    occupied port, and MissingError without xllamacpp."""

    def listen(params: Any) -> None:
        """Set the address, the slots, each with its own context, and the key."""
        set_host(params, options.host)
        params.port = options.port
        params.n_parallel = options.slots
        params.cont_batching = True
        params.n_threads_http = options.slots + 2  # Two answer health checks.
        set_known(params, {"kv_unified": False})
        if key := options.api_key or os.environ.get(KEY_VARIABLE, ""):
            params.api_keys = [key]

    engine = EmbeddedEngine(options, listen)
    address = engine.server.listening_address
    tell(f"server is listening on {address} with {options.slots} slots")
    threading.Event().wait()


PROGRAM = LookAlike(
    "embedded server: llama-server made of xllamacpp (mainline llama.cpp, CPU only)",
    (
        *LOAD_FLAGS,
        CliFlag("-np, --parallel N", "slots", "prompts at a time (default: 1)", int, 1),
        CliFlag("--host HOST", "host", "address to listen on (default: 127.0.0.1)"),
        CliFlag("--port PORT", "port", "port to listen on (default: 8080)", int),
        CliFlag("--api-key KEY", "api_key", f"key that requests must have (env: {KEY_VARIABLE})"),
    ),
    {"slots": 1, "host": "127.0.0.1", "port": 8080},
    run,
)
