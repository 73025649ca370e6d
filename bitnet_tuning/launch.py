"""The one place that starts engines.

On POSIX the engine is forked by hand: that is quicker than ``subprocess``, and the
child can be bound to CPUs and tied to its parent's life before it becomes the engine.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from bitnet_tuning.child import FORWARDED, Ties, become_engine, signals
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.outcome import Outcome

if TYPE_CHECKING:
    from types import FrameType

NO_INPUT, INHERIT, FEED = "none", "inherit", "feed"
"""What becomes of standard input: /dev/null, the program's own, or relayed line by
line to an engine that would not notice its end."""


class Launch(NamedTuple):
    """Everything about a start that can be decided beforehand."""

    argv: tuple[str, ...]
    variables: Mapping[str, str]
    """Added to this process's environment."""
    cpus: frozenset[int] | None = None
    stdin: str = NO_INPUT
    keep_log: bool = False
    """Whether the engine's stderr is read here, so that it can be parsed."""
    show_log: bool = True
    """Whether it is passed on while it comes."""
    echo: bytes | None = None
    """The prompt, where the first byte after its echo on stdout is to be timed."""
    nice: int = 0
    """Added to the niceness; negative needs a privilege and is tried only."""

    @property
    def relays(self) -> bool:
        return self.keep_log or self.echo is not None or self.stdin == FEED


class Captured(NamedTuple):
    """A finished probe. ``code`` is None where it ran out of time."""

    code: int | None
    stdout: str
    stderr: str


def run(launch: Launch) -> Outcome:
    """Runs the engine to its end and says how it ended.

    Signals reach it exactly once, also when the whole process group gets them; it
    does not outlive this process. Raises UnsupportedError where it cannot be started.
    """
    return _run_windows(launch) if os.name == "nt" else _run_posix(launch)


def capture(
    argv: tuple[str, ...], variables: Mapping[str, str] | None = None, seconds: float = 15
) -> Captured:
    """Runs a short probe without input. Never raises: what fails has code 127."""
    import subprocess  # noqa: PLC0415

    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, **(variables or {})},
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        return Captured(None, _text(late.stdout), _text(late.stderr))
    except (OSError, ValueError) as error:
        return Captured(127, "", str(error))
    return Captured(done.returncode, _text(done.stdout), _text(done.stderr))


def _text(data: bytes | str | None) -> str:
    return data if isinstance(data, str) else (data or b"").decode("utf-8", "replace")


def cannot_start(argv: tuple[str, ...], error: OSError) -> UnsupportedError:
    """What to tell of an engine that the system refuses to start."""
    remedy = "build it for this system, or name another engine with --engine"
    if isinstance(error, PermissionError):
        remedy = f"make it executable: chmod +x {argv[0]}"
    return UnsupportedError(f"cannot start {argv[0]}: {error.strerror or error}", remedy)


class Pipes(NamedTuple):
    """The parent's ends of the pipes to an engine; None where there is none."""

    stdin: int | None
    stdin_far: int | None
    """The engine's own end, kept open to see how much it has not read yet."""
    stdout: int | None
    stderr: int | None


def _run_posix(launch: Launch) -> Outcome:
    shares_terminal = launch.stdin == INHERIT and os.isatty(0)
    with _SignalsHeld() as held:
        child, pipes = _fork(launch, own_group=not shares_terminal)
        forward = _Forwarder(child, own_group=not shares_terminal)
        forward.install()
        held.release()
        try:
            if not launch.relays:
                return Outcome(_shell_code(os.waitpid(child, 0)[1]))
            from bitnet_tuning.relay import relay  # noqa: PLC0415

            return relay(child, pipes, launch, lambda: _shell_code(os.waitpid(child, 0)[1]))
        finally:
            forward.remove()


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


class _SignalsHeld:
    """Blocks the signals that are passed on until it is known to whom."""

    def __enter__(self) -> _SignalsHeld:
        self.before = signal.pthread_sigmask(signal.SIG_BLOCK, signals(FORWARDED))
        return self

    def release(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self.before)

    def __exit__(self, *_: object) -> None:
        self.release()


class _Forwarder:
    """Passes signals on to the engine.

    An engine in a group of its own gets none from the terminal or from a kill of
    our group, so each is passed on. One that shares the terminal for a chat has
    had Ctrl-C and Ctrl-\\ already.
    """

    def __init__(self, child: int, own_group: bool) -> None:
        self.child = child
        self.own_group = own_group
        self.before: dict[signal.Signals, object] = {}

    def install(self) -> None:
        for number in signals(FORWARDED):
            # Ignored from the start (nohup): leave it so. But for SIGINT: a script's
            # background job starts with it ignored, and engines catch it all the same.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._pass_on)
        if self.own_group:
            self.before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._pause)

    def remove(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self.own_group or number not in (signal.SIGINT, signal.SIGQUIT):
            self._send(number)

    def _pause(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the engine's group is not the terminal's, so it is stopped from here."""
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT)

    def _send(self, number: int) -> None:
        try:
            if self.own_group:
                os.killpg(self.child, number)
            else:
                os.kill(self.child, number)
        except ProcessLookupError:
            pass


def _fork(launch: Launch, own_group: bool) -> tuple[int, Pipes]:
    """Starts the engine; raises UnsupportedError where ``exec`` fails."""
    environment = {**os.environ, **launch.variables}
    pipes, far = _open_pipes(launch)
    report, report_far = os.pipe()
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        become_engine(launch, environment, far, Ties(parent, report_far, own_group))
    os.close(report_far)
    _close(*far)
    failure = os.read(report, 16)  # ends when exec succeeds: the pipe is close-on-exec
    os.close(report)
    if failure:
        os.waitpid(child, 0)
        raise cannot_start(launch.argv, OSError(int(failure), os.strerror(int(failure))))
    return child, pipes


def _open_pipes(launch: Launch) -> tuple[Pipes, tuple[int, int | None, int | None]]:
    """Our ends, and the engine's stdin, stdout and stderr (None: ours)."""
    stdin_near = stdin_kept = stdout = stdout_far = stderr = stderr_far = None
    if launch.stdin == FEED:
        stdin_far, stdin_near = os.pipe()
        stdin_kept = os.dup(stdin_far)
    elif launch.stdin == INHERIT:
        stdin_far = os.dup(0)
    else:
        stdin_far = os.open(os.devnull, os.O_RDONLY)
    if launch.echo is not None:
        stdout, stdout_far = os.pipe()
    if launch.keep_log:
        stderr, stderr_far = os.pipe()
    return Pipes(stdin_near, stdin_kept, stdout, stderr), (stdin_far, stdout_far, stderr_far)


def _close(*handles: int | None) -> None:
    for handle in handles:
        if handle is not None:
            os.close(handle)


def _run_windows(launch: Launch) -> Outcome:
    """Ctrl-C reaches the engine from the console itself, so it is only waited out here."""
    import subprocess  # noqa: PLC0415

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        engine = subprocess.Popen(
            launch.argv,
            env={**os.environ, **launch.variables},
            stdin=None if launch.stdin != NO_INPUT else subprocess.DEVNULL,
            stderr=subprocess.PIPE if launch.keep_log else None,
        )
        log = engine.communicate()[1] or b""
    except OSError as error:
        raise cannot_start(launch.argv, error) from error
    finally:
        signal.signal(signal.SIGINT, before)
    if launch.keep_log and launch.show_log:
        sys.stderr.buffer.write(log)
    return Outcome(engine.returncode & 0xFFFFFFFF, log)
