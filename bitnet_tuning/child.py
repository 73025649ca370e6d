"""The engine's side of a fork: from the launcher's copy to the engine (POSIX)."""

from __future__ import annotations

import os
import signal

from bitnet_tuning.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bitnet_tuning.launch import Launch

FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals that the launcher passes on."""

_BACK_TO_DEFAULT = ("SIGPIPE", "SIGXFSZ", "SIGINT")
"""Python ignores the first two; a script's background job inherits the last one ignored,
but it is passed on only when somebody means this run."""


class Ties(NamedTuple):
    """What binds an engine to its launcher."""

    parent: int
    report: int
    """A close-on-exec pipe on which a failed ``exec`` writes its errno."""
    lifeline: int
    """A pipe of which the launcher alone holds the other end, until it is gone."""
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
        _die_with(ties)
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


def _die_with(ties: Ties) -> None:
    """Has this process killed when its parent dies, by SIGKILL even: by the kernel on
    Linux, by a small watcher elsewhere."""
    try:
        _kill_at_hangup(ties.lifeline)
    except (ImportError, AttributeError, OSError):
        watch(ties.parent, os.getpid())
    if os.getppid() != ties.parent:  # it died before the tie held
        os._exit(128 + signal.SIGKILL)


def _kill_at_hangup(lifeline: int) -> None:
    """Has the kernel send SIGKILL when the other end of a pipe is closed (fcntl(2),
    F_SETSIG). Does what prctl's parent-death signal does, which Python reaches only
    through ctypes, a tenth of the whole start; Linux only, else AttributeError.
    """
    import fcntl  # noqa: PLC0415

    fcntl.fcntl(lifeline, fcntl.F_SETSIG, int(signal.SIGKILL))
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.set_inheritable(lifeline, True)


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
