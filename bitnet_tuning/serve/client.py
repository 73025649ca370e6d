"""An HTTP client for llama.cpp's server on this machine."""

from __future__ import annotations

import json
from errno import EADDRNOTAVAIL, EHOSTUNREACH, ENETUNREACH
from http.client import HTTPConnection, HTTPException
from typing import Any

from bitnet_tuning.errors import UnsupportedError

LOOPBACK = "127.0.0.1"

HEALTH_SECONDS = 10.0
"""Seconds to wait for the reply to a health check, which a long prompt delays."""

_UNREACHABLE = (ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL)
"""Errors of a network without a loopback interface, as in a new network namespace."""

_REASON = 500
"""Bytes that are kept of a refusal that is not JSON."""


class BrokenError(Exception):
    """Raised if there is no complete reply, because the server ended or is about to."""


class RefusedError(Exception):
    """Raised if the server refuses a request; ``status`` is the HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class Client:
    """The client of one server. Each request uses a new connection."""

    def __init__(self, port: int, key: str | None) -> None:
        self._port = port
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"

    def ready(self) -> bool:
        """Return True if the server has loaded its model and replies."""
        try:
            return self._exchange("GET", "/health", None, HEALTH_SECONDS)[0] == 200
        except BrokenError:
            return False

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the reply to one prompt, without a time limit.

        Raise RefusedError if the server refuses it, BrokenError if there is no complete reply.
        """
        status, content = self._exchange("POST", "/completion", body, None)
        try:
            reply = json.loads(content)
        except (ValueError, RecursionError):
            reply = None
        if status != 200:
            raise RefusedError(status, _reason(reply, content))
        if not isinstance(reply, dict):
            raise BrokenError("the reply is not JSON")
        return reply

    def _exchange(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float | None
    ) -> tuple[int, bytes]:
        connection = HTTPConnection(LOOPBACK, self._port, timeout=seconds)
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, path, content, self._headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _UNREACHABLE:
                raise UnsupportedError(
                    f"the server at {LOOPBACK} cannot be reached: {error.strerror}",
                    "turn the loopback interface on: sudo ip link set lo up",
                ) from error
            raise BrokenError(str(error) or type(error).__name__) from error
        finally:
            connection.close()


def _reason(reply: Any, content: bytes) -> str:
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else content[:_REASON].decode("utf-8", "replace")
