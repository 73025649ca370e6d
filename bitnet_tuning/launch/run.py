"""Run an engine to its end in the foreground, with the signals that are meant for it."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager

from bitnet_tuning.launch.program import (
    INHERIT,
    INTERRUPT_GRACE,
    NO_INPUT,
    Launch,
    Outcome,
    shell_code,
)
from bitnet_tuning.launch.signals import handling, pausing, present, send
from bitnet_tuning.launch.start import Lifeline, Pipes, fill_standard_handles, popen, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import FrameType

    from bitnet_tuning.launch.signals import Handler


_NTSTATUS_CONTROL_C = 0xC000013A

_FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals to pass on to an engine."""


def run(launch: Launch) -> Outcome:
    """Run the engine to its end and return how it ended.

    Signals reach it exactly once, also if the whole process group gets them; it does not
    outlive this process. Raise UnsupportedError if it cannot be started.
    """
    return _run_windows(launch) if os.name == "nt" else _run_posix(launch)


def _run_posix(launch: Launch) -> Outcome:
    own_group = not (launch.stdin == INHERIT and os.isatty(0))
    fill_standard_handles()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited ignored, no child can be waited for
    pipes, lifeline = Pipes(launch), Lifeline()
    # Hold signals back until it is known to whom to pass them on.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, present(*_FORWARDED))
    try:
        child, target, wait = _start(launch, pipes, lifeline, own_group, mask)
        forwarder = _Forwarder(target, own_group, ends=not launch.interactive)
        with forwarder.installed():
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if launch.relays:
                from bitnet_tuning.launch.relay import relay  # noqa: PLC0415 (most runs do not)

                outcome = relay(child, target, pipes, launch, wait)
            else:
                outcome = Outcome(wait())
        return outcome._replace(code=130, gave_up=True) if forwarder.gave_up else outcome
    finally:
        lifeline.cut()
        pipes.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _start(
    launch: Launch, pipes: Pipes, lifeline: Lifeline, own_group: bool, mask: Collection[int]
) -> tuple[int, int, Callable[[], int]]:
    """Return the engine's process id, what to send signals to, and what waits for its code.

    Raise UnsupportedError if it cannot be started.
    """
    # A group of its own may hold a script around the real engine: signals are for all of it.
    group = lifeline.lead() if own_group else None
    # A group in the background is to print in spite of `stty tostop`.
    with pipes.handed_over(), handling({signal.SIGTTOU: signal.SIG_IGN} if own_group else {}):
        if group is not None:
            child = spawn(launch, pipes.streams, group, mask)
            return child, -group, lambda: shell_code(_wait(child))
        started = popen(launch, pipes.streams, lifeline, os.setpgrp if own_group else None, mask)
        target = -started.pid if own_group else started.pid
        return started.pid, target, lambda: shell_code(started.wait())


def _wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class _Forwarder:
    """Pass signals on to the engine.

    An engine in a group of its own gets none from the terminal or from a kill of our group, so
    each is passed on. One that shares the terminal for a chat has had Ctrl-C and Ctrl-\\
    already.

    llama-cli prints its timings from inside its handler of SIGINT, under a lock that the
    interrupted thread may hold: now and then it hangs there for ever. An engine that is to
    end at an interrupt and has not after a grace is therefore killed.
    """

    def __init__(self, target: int, own_group: bool, ends: bool) -> None:
        self.target = target
        self.own_group = own_group
        self.ends = ends
        self.gave_up = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        handlers: dict[int, Handler] = dict.fromkeys(present(*_FORWARDED), self._pass_on)
        if self.own_group:
            handlers.update({**pausing(self.target), signal.SIGALRM: self._give_up})
        # A script's background job starts with SIGINT ignored, and engines catch it all the same.
        with handling(handlers, always=(signal.SIGINT, signal.SIGALRM)):
            try:
                yield
            finally:
                signal.alarm(0)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self.own_group or number not in (signal.SIGINT, signal.SIGQUIT):
            send(self.target, number)
        if number == signal.SIGINT and self.own_group and self.ends:
            signal.alarm(INTERRUPT_GRACE)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        self.gave_up = True
        send(self.target, signal.SIGKILL)


def _run_windows(launch: Launch) -> Outcome:
    """Ignore Ctrl-C while the engine runs: it reaches the engine from the console itself."""
    from subprocess import DEVNULL, PIPE  # noqa: PLC0415 (2 ms)

    streams = (
        DEVNULL if launch.stdin == NO_INPUT else None,
        None,
        PIPE if launch.keep_log else None,
    )
    with handling({signal.SIGINT: signal.SIG_IGN}):
        engine = popen(launch, streams, None)
        log = engine.communicate()[1] or b""
    if log and launch.show_log:
        sys.stderr.buffer.write(log)
    return Outcome(_windows_code(engine.returncode), log)


def _windows_code(status: int) -> int:
    """Return 130 for Ctrl-C, as everywhere else; NTSTATUS values signed, as ``sys.exit`` can
    pass them on."""
    if status & 0xFFFFFFFF == _NTSTATUS_CONTROL_C:
        return 130
    return status - (1 << 32) if status >= 1 << 31 else status
