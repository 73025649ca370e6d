"""The engine's server: its command line, slots, start and end, and an HTTP client for it."""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from errno import EADDRNOTAVAIL, EHOSTUNREACH, ENETUNREACH
from http.client import HTTPConnection, HTTPException
from math import inf
from typing import Any

from bitnet_tuning.console import counted
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.engine.probe import flags_of
from bitnet_tuning.errors import MissingError, TuningError, UnsupportedError, shortage
from bitnet_tuning.launch.background import Service, serve
from bitnet_tuning.launch.failure import NO_END
from bitnet_tuning.launch.start import Launch
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.command import batch_flags, flash_takes_value, memory_policy, tuned_flags
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.memory import need_of
from bitnet_tuning.serve.prompts import Prompt

LOOPBACK = "127.0.0.1"

HEALTH_SECONDS = 10.0
"""Seconds to wait for the reply to a health check, which a long prompt delays."""

_UNREACHABLE = (ENETUNREACH, EHOSTUNREACH, EADDRNOTAVAIL)
"""Errors of a network without a loopback interface, as in a new network namespace."""

_REPLY = 1 << 26
"""Most bytes of a reply; a full context of a million tokens takes a tenth of it."""

_REASON = 500
"""Bytes that are kept of a refusal that is not JSON."""

MOST_DEFAULT_SLOTS = 4
"""Largest number of slots chosen automatically. More may be faster as a whole, as in
docs/measurements.md, but every answer takes longer, and every slot needs a cache of its own."""

MEMORY_SHARE = 0.9
"""Share of the available memory that model, caches and buffers may take."""

KEY_VARIABLE = "LLAMA_API_KEY"
"""Variable from which the server reads its API key: other users see arguments, but not this."""

_ARGUMENTS = "API_PREFIX EMBEDDINGS RERANKING SSL_CERT_FILE SSL_KEY_FILE NO_CONT_BATCHING"
_IN_THE_WAY = frozenset((KEY_VARIABLE, *(f"LLAMA_ARG_{name}" for name in _ARGUMENTS.split())))
"""Variables of llama.cpp that would change what the server serves, or how. They are removed."""

_TRIES = 4
"""Number of ports to try: another program may take a port between its choice and its use."""

_POLL_SECONDS = 0.02
_GONE_SECONDS = 3.0
"""Seconds to wait for a server to exit after its connection drops."""

_NOT_BOUND = re.compile(r"couldn't bind|failed to bind|cannot bind|address already in use", re.I)

Waiting = Callable[[], AbstractContextManager[object]]


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

    def complete(self, body: dict[str, Any], seconds: float | None = None) -> dict[str, Any]:
        """Return the reply to one prompt, which must come within ``seconds`` if they are given.
        Raise RefusedError if the server refuses it, BrokenError if there is no complete reply."""
        status, content = self._exchange("POST", "/completion", body, seconds)
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
        connection, began = HTTPConnection(LOOPBACK, self._port, timeout=seconds), time.monotonic()
        try:
            content = None if body is None else json.dumps(body).encode()
            connection.request(method, path, content, self._headers)
            read = bytearray()
            with connection.getresponse() as response:
                while part := response.read1(_REPLY):
                    read += part
                    if len(read) > _REPLY or time.monotonic() - began > (seconds or inf):
                        raise BrokenError("the reply does not end")
                return response.status, bytes(read)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in _UNREACHABLE:
                cause = f"the server at {LOOPBACK} cannot be reached: {error.strerror}"
                remedy = "turn the loopback interface on: sudo ip link set lo up"
                raise UnsupportedError(cause, remedy) from error
            if lack := shortage(error, "cannot connect"):
                raise lack from error
            raise BrokenError(str(error) or type(error).__name__) from error
        finally:
            connection.close()


def _reason(reply: Any, content: bytes) -> str:
    error = reply.get("error") if isinstance(reply, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error) if error else content[:_REASON].decode("utf-8", "replace")


class Server(NamedTuple):
    """A server program and the flags that its ``--help`` lists."""

    program: tuple[str, ...]
    """The arguments that start it, without flags."""
    flags: frozenset[str]
    flash_takes_value: bool


class GoneError(TuningError):
    """Raised if the server ended. ``code`` is its exit code, or 128 + N after signal N."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(f"the server ended with exit code {code}")
        self.code = code
        self.log = log
        self.exit_code = code if code > 0 else 1


class Running(NamedTuple):
    """A server that has loaded its model, in ``load_seconds``."""

    service: Service
    client: Client
    load_seconds: float

    def check(self, trouble: Exception) -> TuningError:
        """Return the error to raise for a request that failed with ``trouble``."""
        if (code := self.service.ended(_GONE_SECONDS)) is not None:
            return GoneError(code, self.service.log())
        cause = f"the server (process {self.service.pid}) runs but did not answer: {trouble}"
        return TuningError(cause)


def fitting_slots(
    model: ModelFile, context: int, ubatch: int | None, available: int | None
) -> int | None:
    """Return how many slots, at least 1, fit into ``available`` bytes; None if not known."""
    need = need_of(model, context, ubatch)
    if not need.cache or available is None:
        return None
    return max(1, 1 + int((MEMORY_SHARE * available - need.total) // need.cache))


def choose_slots(
    asked: int | None, prompts: Sequence[Prompt], fitting: int | None
) -> tuple[int, str]:
    """Return the number of slots, and the reason as a sentence. ``asked`` is the user's choice."""
    if asked is not None:
        return asked, f"{counted(asked, 'slot')}: set by --slots"
    if any(prompt.is_reproducible for prompt in prompts):
        # Several prompts in a batch are summed in another order, and a rounding error may swap
        # two tokens that are almost equally likely.
        return 1, (
            "1 slot: with temperature 0 or a seed, answers must be reproducible (--slots N answers "
            "N prompts at a time)"
        )
    slots = min(MOST_DEFAULT_SLOTS, len(prompts), fitting or MOST_DEFAULT_SLOTS)
    if slots == MOST_DEFAULT_SLOTS:
        return slots, f"{counted(slots, 'slot')}: the default (--slots N changes it)"
    why = "one for each prompt" if slots == len(prompts) else "more would not fit in memory"
    return slots, f"{counted(slots, 'slot')}: {why}"


def server_command(
    plan: Plan, request: Request, server: Server, *, model: str, slots: int, context: int, port: int
) -> tuple[str, ...]:
    flags, setting = server.flags, plan.setting
    # llama.cpp divides -c evenly among the slots. Early servers shift the context by default,
    # which would cut a prompt that is too long instead of refusing it.
    return (
        *memory_policy(setting.node, setting.interleave),
        *(*server.program, "-m", model),
        *("-t", str(setting.threads), "-tb", str(setting.threads_batch), "-ngl", "0"),
        *("-c", str(slots * context), "-np", str(slots)),
        *(flag for flag in ("-cb", "--no-context-shift") if flag in flags),
        *batch_flags(plan),
        *tuned_flags(setting, flags, server.flash_takes_value),
        *("--host", LOOPBACK, "--port", str(port), *request.extra),
    )


def server_of(engine: Engine) -> Server:
    """Return the server beside the engine. Raise MissingError if there is none."""
    program = engine.other("server")
    if not program:
        cause = f"--prompts needs llama-server in the folder of {engine.path}"
        raise MissingError(cause, "build it: cmake --build build --target llama-server")
    return Server(program, flags_of(program), flash_takes_value(engine))


@contextmanager
def running(
    command: Callable[[int], tuple[str, ...]],
    plan: Plan,
    has_key: bool,
    waiting: Waiting = nullcontext,
    *,
    unset: frozenset[str] = frozenset(),
    seconds: float = inf,
    follows: bool = True,
) -> Iterator[Running]:
    """Run a server until the end of the block. ``command`` maps a port to a command line, ``unset``
    names variables that it must not get, and without ``follows``, Ctrl-Z does not stop it. Raise
    GoneError if it ends too early, UnsupportedError if it is not ready after ``seconds``."""
    key, setting = secrets.token_urlsafe(32) if has_key else None, plan.setting
    variables = {**setting.variables, **({KEY_VARIABLE: key} if key else {})}
    unset |= _IN_THE_WAY
    for attempt in range(_TRIES):
        try:
            with socket.socket() as free:  # a port that is free, at least for a moment
                free.bind((LOOPBACK, 0))
                port = int(free.getsockname()[1])
        except OSError as error:
            raise shortage(error, "cannot start a server") or error from error
        start = Launch(command(port), variables, setting.cpus, nice=setting.nice, unset=unset)
        with serve(start, follows) as service:
            try:
                ready = _until_ready(service, Client(port, key), waiting, seconds)
            except GoneError as error:
                if attempt + 1 < _TRIES and _NOT_BOUND.search(error.log):
                    continue
                raise
            yield ready
            return


def _until_ready(service: Service, client: Client, waiting: Waiting, seconds: float) -> Running:
    start = time.monotonic()
    while True:
        with waiting():
            code = service.ended(_POLL_SECONDS)
            is_ready = code is None and client.ready()
        if code is not None:
            raise GoneError(code, service.log())
        if is_ready:
            return Running(service, client, time.monotonic() - start)
        if time.monotonic() - start > seconds:
            raise UnsupportedError(f"{NO_END} {seconds:.3g} seconds")
