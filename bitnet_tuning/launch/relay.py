"""Pass an engine's streams on and watch them, in one loop without threads."""

from __future__ import annotations

import array
import fcntl
import os
import select
import signal
import termios
import time
from collections.abc import Callable
from contextlib import suppress

from bitnet_tuning.launch.signals import send
from bitnet_tuning.launch.start import INTERRUPT_GRACE, Launch, Outcome, Pipes

LOG_KEPT = 1 << 20
"""Bytes at the end of an engine's log that are kept. Its timings come last."""

_CHUNK = 1 << 16
_POLL_SECONDS = 0.02
"""Seconds between checks for events that select() does not report."""
_LAST_SECONDS = 0.2
"""Seconds after an engine's exit in which its output may still arrive, as through a script's tee. A
process that it left behind may hold the streams for ever."""
_ERASE = b"\r\x1b[K"
"""What removes the line on a terminal (EL of ECMA-48)."""
_ENDED_AS_ASKED = (130, 137)
"""Exit codes of llama-cli after an interrupt at its prompt, and after SIGKILL if it hangs."""


def relay(
    child: int, target: int, pipes: Pipes, launch: Launch, wait: Callable[[], int]
) -> Outcome:
    """Pass the streams on until the engine has ended and all of its output has arrived. Signals to
    the engine go to ``target`` as in ``send``; ``wait`` returns its exit code."""
    log = bytearray()
    clock = FirstToken(launch.echo) if launch.echo is not None else None
    feeder = Feeder(target, pipes) if pipes.stdin is not None else None
    has_lines = os.environ.get("TERM", "dumb") != "dumb"
    loading = launch.watched and not launch.show_log and has_lines
    begun, end = time.monotonic(), b"\n"
    output = _Output(child, pipes)
    while output.open or not output.ended:
        polls = feeder or output.exited is None
        timeout = _POLL_SECONDS if polls else 0.5 if loading else None
        ready = output.wait([0] if feeder and feeder.wants_input else [], timeout)
        if loading and not ready and (seconds := int(time.monotonic() - begun)):
            _write_all(2, f"\rloading the model, {seconds} s".encode())
        for handle in output.open.intersection(ready):
            data = os.read(handle, _CHUNK)
            if not data:
                output.open.discard(handle)
            elif handle == pipes.stdout:
                if clock:
                    clock.see(data)
                if loading:
                    _write_all(2, _ERASE)
                loading, end = False, data[-1:]
                _write_all(1, data)
            else:
                log += data
                if len(log) > 2 * LOG_KEPT:
                    del log[:-LOG_KEPT]
                if launch.show_log:
                    _write_all(2, data)
        if feeder and not output.ended:
            feeder.step(0 in ready)
    if loading or (launch.watched and end != b"\n" and os.isatty(1)):
        _write_all(2, _ERASE if loading else b"\n")
    code = wait()
    ended_by_us = feeder is not None and feeder.asked_to_end and code in _ENDED_AS_ASKED
    return Outcome(0 if ended_by_us else code, bytes(log), clock.seconds if clock else None)


class _Output:
    """What an engine writes, until it has ended and nothing more arrives."""

    def __init__(self, child: int, pipes: Pipes) -> None:
        self._child, self._deadline = child, 0.0
        self.open = {handle for handle in (pipes.stdout, pipes.stderr) if handle is not None}
        self.ended = False
        self.exited: int | None = None
        with suppress(AttributeError, OSError):
            # A handle that is readable once the engine has ended (pidfd_open(2), Linux 5.3).
            self.exited = os.pidfd_open(child)

    def wait(self, others: list[int], timeout: float | None) -> list[int]:
        """Return which streams and ``others`` can be read, within some seconds."""
        if self.ended:
            others, timeout = [], max(0.0, self._deadline - time.monotonic())
        elif self.exited is not None:
            others = [*others, self.exited]
        ready = select.select([*self.open, *others], [], [], timeout)[0]
        now = time.monotonic()
        # A read after the exit has emptied a pipe: it holds no more than a chunk (pipe(7)).
        if self.ended and (not ready or now > self._deadline + _LAST_SECONDS):
            self.open.clear()
        elif not self.ended:
            flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
            self.ended = os.waitid(os.P_PID, self._child, flags) is not None
            self._deadline = now + _LAST_SECONDS
        return ready


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(handle, view) :]
        except BlockingIOError:  # its reader is slow, and it is non-blocking for another program
            select.select([], [handle], [])
        except BrokenPipeError:  # nobody reads it: end as the engine would, by SIGPIPE
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGPIPE)
        except OSError:  # a full disk, a terminal that is gone
            if handle != 2:  # no answer is lost for want of a message
                raise
            return


class FirstToken:
    """A clock that stops at the first byte after the prompt's echo; ``seconds`` is None without."""

    def __init__(self, echo: bytes) -> None:
        self.echo = echo.strip()
        self.start = time.monotonic()
        self.seconds: float | None = None
        self.seen = bytearray()
        self.done = False

    def see(self, data: bytes) -> None:
        if self.done:
            return
        self.seen += data
        shown = bytes(self.seen).lstrip()
        if not shown.startswith(self.echo[: len(shown)]):
            self.done = True
        elif len(shown.rstrip()) > len(self.echo):
            self.seconds = time.monotonic() - self.start
            self.done = True


class Feeder:
    """A source of input that gives a chat one line at a time and ends it after the last answer."""

    # bitnet.cpp's `llama-cli -cnv` takes the end of its input for an empty line and generates for
    # ever. So it never sees the end: each line is handed over after the engine has read the one
    # before, and after the last line comes a single blank without a newline. The engine reads the
    # blank when it asks for the next turn, which is when its last answer is complete, and waits
    # for the rest of the line. Then SIGINT ends it, as at a prompt.
    BLANK = b" "

    def __init__(self, target: int, pipes: Pipes) -> None:
        assert pipes.stdin is not None and pipes.streams[0] is not None
        self.target = target
        self.near, self.far = pipes.stdin, pipes.streams[0]
        os.set_blocking(self.near, False)
        self.pending = bytearray()
        self.at_end = False
        self.ending = False
        self.asked_to_end = False
        self.deadline = 0.0

    @property
    def wants_input(self) -> bool:
        return not self.at_end and len(self.pending) < _CHUNK

    def step(self, readable: bool) -> None:
        """Do the next step; ``readable`` says that standard input has data."""
        if readable:
            self._read()
        if self.asked_to_end:
            if time.monotonic() > self.deadline:
                send(self.target, signal.SIGKILL)
        elif not self._unread():
            self._hand_over()

    def _read(self) -> None:
        data = os.read(0, _CHUNK)
        self.pending += data
        self.at_end = not data
        if self.at_end and self.pending and not self.pending.endswith(b"\n"):
            self.pending += b"\n"

    def _unread(self) -> int:
        """Return the number of bytes in the pipe that the engine has not read yet."""
        count = array.array("i", [0])
        fcntl.ioctl(self.far, termios.FIONREAD, count)
        return count[0]

    def _hand_over(self) -> None:
        newline = self.pending.find(b"\n")
        if newline >= 0 or len(self.pending) >= _CHUNK:
            end = newline + 1 if newline >= 0 else len(self.pending)
            del self.pending[: self._write(self.pending[: min(end, _CHUNK // 2)])]
        elif self.ending:
            self.asked_to_end = True
            self.deadline = time.monotonic() + INTERRUPT_GRACE
            send(self.target, signal.SIGINT)
        elif self.at_end:
            self.ending = True
            self._write(self.BLANK)

    def _write(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self.near, data)
        except (BlockingIOError, BrokenPipeError):
            return 0
