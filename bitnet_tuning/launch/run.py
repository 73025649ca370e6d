"""Run an engine in the foreground until it ends, and pass signals on to it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from bitnet_tuning.launch import start
from bitnet_tuning.launch.signals import Handler, handling, pausing, present, send
from bitnet_tuning.launch.start import Launch, Lifeline, Outcome, Pipes, popen, spawn

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals that are passed on to an engine."""


def run(launch: Launch) -> Outcome:
    """Run an engine until it ends, and return its outcome. A signal reaches the engine exactly
    once, even if the whole process group gets it. The engine is killed when this process dies.
    Raise UnsupportedError if it cannot be started."""
    return _run_windows(launch) if os.name == "nt" else _run_posix(launch)


def _run_posix(launch: Launch) -> Outcome:
    own_group = not (launch.stdin == start.INHERIT and os.isatty(0))
    start.fill_standard_handles()
    # wait(2): no exit code of a child is kept while SIGCHLD is ignored, which is inherited.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pipes, lifeline = Pipes(launch), Lifeline()
    # Hold signals back until there is an engine to pass them on to.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, present(*_FORWARDED))
    try:
        child, target, wait = _start(launch, pipes, lifeline, own_group, mask)
        with _forwarding(target, own_group, not launch.interactive) as killed:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if launch.keep_log or pipes.stdout is not None or launch.stdin == start.FEED:
                from bitnet_tuning.launch.relay import relay  # noqa: PLC0415 (most runs do not)

                outcome = relay(child, target, pipes, launch, wait)
            else:
                outcome = Outcome(wait())
        return outcome._replace(code=130, gave_up=True) if killed else outcome
    finally:
        lifeline.cut()
        pipes.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(
    launch: Launch, pipes: Pipes, lifeline: Lifeline, own_group: bool, mask: Collection[int]
) -> tuple[int, int, Callable[[], int]]:
    """Start the engine. Return its id, its signals' target, and a wait for its exit code."""
    # The engine may be a script that runs the real one, so that signals go to a whole group.
    group = lifeline.lead() if own_group else None
    # The engine's group is in the background and must print even after `stty tostop`, which sends
    # SIGTTOU (termios(3)).
    with pipes.handed_over(), handling({signal.SIGTTOU: signal.SIG_IGN} if own_group else {}):
        if group is not None:
            child = spawn(launch, pipes.streams, group, mask)
            return (
                child,
                -group,
                lambda: start.shell_code(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])),
            )
        started = popen(launch, pipes.streams, lifeline, os.setpgrp if own_group else None, mask)
        target = -started.pid if own_group else started.pid
        return started.pid, target, lambda: start.shell_code(started.wait())


@contextmanager
def _forwarding(target: int, own_group: bool, ends: bool) -> Iterator[list[int]]:
    """Pass signals on to an engine in the block. Add SIGKILL to the list that is yielded if the
    engine is killed because an interrupt ``ends`` it, and it does not end."""
    killed: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        # An engine in this group, as for a chat at a terminal, got Ctrl-C and Ctrl-\ itself.
        if own_group or number not in (signal.SIGINT, signal.SIGQUIT):
            send(target, number)
        # llama-cli prints its timings in its handler of SIGINT, under a lock that the interrupted
        # thread may hold, and so now and then hangs there for ever.
        if number == signal.SIGINT and own_group and ends:
            signal.alarm(start.INTERRUPT_GRACE)

    def give_up(_number: int, _frame: FrameType | None) -> None:
        killed.append(signal.SIGKILL)
        send(target, signal.SIGKILL)

    handlers: dict[int, Handler] = dict.fromkeys(present(*_FORWARDED), pass_on)
    if own_group:
        handlers.update({**pausing(target), signal.SIGALRM: give_up})
    # A script's background job starts with SIGINT ignored, but engines catch it nevertheless.
    with handling(handlers, always=(signal.SIGINT, signal.SIGALRM)):
        try:
            yield killed
        finally:
            signal.alarm(0)


def _run_windows(launch: Launch) -> Outcome:
    from subprocess import DEVNULL, PIPE  # noqa: PLC0415 (2 ms)

    streams = (
        DEVNULL if launch.stdin == start.NO_INPUT else None,
        None,
        PIPE if launch.keep_log else None,
    )
    # The console sends Ctrl-C to the engine as well.
    with handling({signal.SIGINT: signal.SIG_IGN}):
        engine = popen(launch, streams, None)
        log = engine.communicate()[1] or b""
    if log and launch.show_log:
        with suppress(OSError):
            sys.stderr.buffer.write(log)
    status = engine.returncode
    if status & 0xFFFFFFFF == start.CONTROL_C:
        return Outcome(130, log)
    # sys.exit takes 32-bit exit codes as signed numbers.
    return Outcome(status - (1 << 32) if status >= 1 << 31 else status, log)
