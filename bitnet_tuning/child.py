"""The engine's side of a fork: from the launcher's copy to the engine (POSIX)."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bitnet_tuning.launch import Launch

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals that the launcher passes on."""

_BACK_TO_DEFAULT = ("SIGPIPE", "SIGXFSZ", "SIGINT")
"""Python ignores the first two; a script's background job inherits the last one ignored,
but it is passed on only when somebody means this run."""

_PR_SET_PDEATHSIG = 1


class Ties(NamedTuple):
    """What binds an engine to its launcher."""

    parent: int
    report: int
    """A close-on-exec pipe on which a failed ``exec`` writes its errno."""
    own_group: bool


def signals(names: tuple[str, ...]) -> set[signal.Signals]:
    """Those of the named signals that this system has."""
    return {getattr(signal, name) for name in names if hasattr(signal, name)}


def become_engine(
    launch: Launch,
    environment: dict[str, str],
    streams: tuple[int, int | None, int | None],
    ties: Ties,
) -> None:
    """The child's side of the fork: never returns."""
    try:
        if ties.own_group:
            os.setpgid(0, 0)
            # With `stty tostop` a group in the background may not print otherwise.
            signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        _die_with(ties.parent)
        for number in signals(_BACK_TO_DEFAULT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals(FORWARDED))
        for target, handle in enumerate(streams):
            if handle is not None:
                os.dup2(handle, target)
        _place(launch)
        os.execvpe(launch.argv[0], launch.argv, environment)
    except OSError as error:
        os.write(ties.report, str(error.errno or 0).encode())
    finally:
        os._exit(127)


def _place(launch: Launch) -> None:
    """Affinity and priority; neither is worth failing for."""
    try:
        if launch.cpus:
            os.sched_setaffinity(0, launch.cpus)
    except (AttributeError, OSError):
        pass
    try:
        if launch.nice:
            os.nice(launch.nice)
    except OSError:
        pass


def _die_with(parent: int) -> None:
    """Has this process killed when its parent dies, SIGKILL included (Linux), or watched
    by a small sibling elsewhere."""
    if sys.platform.startswith("linux"):
        import ctypes  # noqa: PLC0415

        prctl = getattr(ctypes.CDLL(None), "prctl", None)
        if prctl is not None and prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL)) == 0:
            if os.getppid() != parent:  # it died before the call
                os._exit(128 + signal.SIGKILL)
            return
    watch(parent, os.getpid())


def watch(parent: int, engine: int) -> None:
    """Forks a process that kills ``engine``, which is this process, once ``parent`` is gone.

    It polls, for systems without a parent-death signal, and ends with the engine.
    """
    import time  # noqa: PLC0415

    if os.fork():
        return
    os.closerange(0, 1024)  # an open end of a pipe here would keep its reader waiting
    while os.getppid() == engine:
        if not _alive(parent):
            os.kill(engine, signal.SIGKILL)
            break
        time.sleep(0.2)
    os._exit(0)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
