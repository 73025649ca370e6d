"""The engine's server: asked what it can do, started on a free port, waited for."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import MissingError, TuningError
from bitnet_tuning.launch import run
from bitnet_tuning.launch.program import Launch
from bitnet_tuning.launch.server import Service, serve
from bitnet_tuning.plan.command import flash_takes_value
from bitnet_tuning.plan.facts import Plan
from bitnet_tuning.prompts.client import Client
from bitnet_tuning.prompts.command import LOOPBACK, Server
from bitnet_tuning.store.state import State, identity

KEY_VARIABLE = "LLAMA_API_KEY"

_IN_THE_WAY = frozenset(
    (
        KEY_VARIABLE,
        "LLAMA_ARG_API_PREFIX",
        "LLAMA_ARG_EMBEDDINGS",
        "LLAMA_ARG_RERANKING",
        "LLAMA_ARG_SSL_CERT_FILE",
        "LLAMA_ARG_SSL_KEY_FILE",
        "LLAMA_ARG_NO_CONT_BATCHING",
    )
)
"""Variables of llama.cpp by which the server would not be the one that is asked here."""

_TRIES = 4
"""Ports to try. A port that was free a moment ago is hardly ever taken."""

_NAP = 0.02
_GONE_SECONDS = 3.0
"""That a server whose connections broke has to be seen dead."""

_NOT_BOUND = re.compile(r"couldn't bind|failed to bind|cannot bind|address already in use", re.I)
_LOG_LINES = 12

Waiting = Callable[[], AbstractContextManager[object]]


class GoneError(TuningError):
    """The server ended by itself. ``code`` is a shell's; ``log`` the end of what it said."""

    def __init__(self, code: int, log: str) -> None:
        super().__init__(f"the server ended with {code}")
        self.code = code
        self.log = log
        self.exit_code = code if code > 0 else 1

    def last_lines(self) -> str:
        return "\n".join(self.log.strip().splitlines()[-_LOG_LINES:])


class Running(NamedTuple):
    """A server that has loaded its model."""

    service: Service
    client: Client
    load_seconds: float

    def check(self, trouble: Exception) -> TuningError:
        """What to tell of a connection that broke."""
        code = self.service.ended(_GONE_SECONDS)
        if code is not None:
            return GoneError(code, self.service.log())
        return TuningError(
            f"the server (process {self.service.pid}) does not answer properly: {trouble}",
            "--resume goes on with what is not answered yet",
        )


def know_server(engine: Engine, state: State) -> Server:
    """The server beside the engine, and what its help lists, which is remembered as long as
    its file is the same. Raises MissingError."""
    path, program = _program(engine)
    seen = identity(path)
    record = state.load("server", path, {"identity": list, "flags": list})
    if record is None or record["identity"] != seen:
        from bitnet_tuning.engine.probe import parse_flags  # noqa: PLC0415 (once for each server)

        said = run.capture((*program, "--help"))
        record = {"identity": seen, "flags": sorted(parse_flags(said.stdout + said.stderr))}
        if record["flags"]:
            state.store("server", path, record)
    flags = frozenset(map(str, record["flags"]))
    return Server(program, path, flags, flash_takes_value(engine), (path, *engine.files))


def _program(engine: Engine) -> tuple[str, tuple[str, ...]]:
    """The file by which the server is known, and the argv that starts it."""
    if engine.embedded:
        module = os.path.join(os.path.dirname(engine.path), "server.py")
        return module, (sys.executable, engine.path, "server")
    path = engine.server
    if path is None:
        raise MissingError(
            f"--prompts needs llama-server beside {engine.path}",
            "build it: cmake --build build --target llama-server",
        )
    return path, (path,)


@contextmanager
def running(
    command: Callable[[int], tuple[str, ...]],
    plan: Plan,
    has_key: bool,
    waiting: Waiting = nullcontext,
) -> Iterator[Running]:
    """The server of ``command``, which takes a port, until the end of the block.

    Raises GoneError where it ends before it is ready, UnsupportedError where it cannot be
    started at all.
    """
    key = secrets.token_urlsafe(32) if has_key else None
    variables = {**plan.env, **({KEY_VARIABLE: key} if key else {})}
    for attempt in range(_TRIES):
        with _free_port(hold=attempt == 0) as port:
            start = Launch(command(port), variables, plan.cpus, nice=plan.nice)
            with serve(start, _IN_THE_WAY) as service:
                try:
                    ready = _until_ready(service, Client(port, key), waiting)
                except GoneError as error:
                    if attempt + 1 < _TRIES and _NOT_BOUND.search(error.log):
                        continue
                    raise
                yield ready
                return


@contextmanager
def _free_port(hold: bool) -> Iterator[int]:
    """A port of the loopback that nobody has. On Linux it can be held meanwhile: a socket
    that does not listen keeps others away, not a server that sets one of these options,
    as llama.cpp's does."""
    with socket.socket() as reserved:
        for option in ("SO_REUSEADDR", "SO_REUSEPORT") if hold and _linux() else ():
            reserved.setsockopt(socket.SOL_SOCKET, getattr(socket, option), 1)
        reserved.bind((LOOPBACK, 0))
        port = int(reserved.getsockname()[1])
        if not (hold and _linux()):
            reserved.close()
        yield port


def _linux() -> bool:
    return sys.platform.startswith("linux")


def _until_ready(service: Service, client: Client, waiting: Waiting) -> Running:
    start = time.monotonic()
    while True:
        with waiting():
            code = service.ended(_NAP)
            is_ready = code is None and client.ready()
        if code is not None:
            raise GoneError(code, service.log())
        if is_ready:
            return Running(service, client, time.monotonic() - start)
