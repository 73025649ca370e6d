"""Where the engine's own HTTP server listens, since it insists on listening.

Requests go through calls within the process; nobody has to reach the listener.
On POSIX it gets a socket file in a private folder that is deleted as soon as the
server has started, so that nothing can connect to it any more. Elsewhere, and
where the path would be too long for a socket, it gets a free port of 127.0.0.1.
Either way a key that nobody knows guards it.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
# sockaddr_un holds 104 bytes on macOS and BSD, 108 on Linux, one of them the final NUL.
SOCKET_PATH_LIMIT = 103
FOLDER_PREFIX = "bitnet-embedded-"
# A folder lives as long as a model loads; one this old was left by a killed process.
STALE_SECONDS = 24 * 3600.0


@contextmanager
def guarded(params: Any) -> Iterator[None]:
    """Set the listener of ``params``, CommonParams, for a server started inside."""
    params.api_keys = [secrets.token_hex(32)]
    params.port = 0
    with _socket_path() as path:
        _set_host(params, path or LOOPBACK)
        yield


@contextmanager
def _socket_path() -> Iterator[str | None]:
    """A path to listen on that goes away with the context, or None for a port."""
    if os.name != "posix" or not hasattr(socket, "AF_UNIX"):
        yield None
        return
    _sweep()
    try:
        folder = tempfile.TemporaryDirectory(prefix=FOLDER_PREFIX, ignore_cleanup_errors=True)
    except OSError:
        yield None
        return
    with folder as name:
        # The suffix is how the server tells a socket file from a host name.
        path = f"{name}/s.sock"
        yield path if len(os.fsencode(path)) <= SOCKET_PATH_LIMIT else None


def _sweep() -> None:
    """Remove what processes that were killed while loading have left behind."""
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(FOLDER_PREFIX + "*"):
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _set_host(params: Any, host: str) -> None:
    if hasattr(params, "hostnames"):
        params.hostnames = [host]
    else:
        params.hostname = host
