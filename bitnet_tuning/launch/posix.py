"""Starting an engine on POSIX systems, with the signals that are meant for it.

With posix_spawn, which is quicker than ``subprocess`` or a fork, where the engine gets a
process group of its own: the group is made before, so that it is tied to the launcher's
lifeline before the engine is in it. Elsewhere with a fork, in which the child ties itself.
What the child inherits (affinity, niceness) is set here for the moment of the start.
"""

from __future__ import annotations

import errno
import os
import signal
from functools import partial

from bitnet_tuning.launch.lifeline import Lifeline, send
from bitnet_tuning.launch.program import (
    FEED,
    INHERIT,
    INTERRUPT_GRACE,
    Launch,
    Outcome,
    Pipes,
    cannot_start,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

    Streams = tuple[int, int | None, int | None]


FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2")
"""Signals that are passed on to an engine."""

_BACK_TO_DEFAULT = ("SIGPIPE", "SIGXFSZ", "SIGINT")
"""Python ignores the first two; a script's background job inherits the last one ignored,
but it is passed on only when somebody means this run."""


def run_posix(launch: Launch) -> Outcome:
    own_group = not (launch.stdin == INHERIT and os.isatty(0))
    fill_standard_handles()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # inherited ignored, no child can be waited for
    lifeline = Lifeline()
    leader = _lead_group() if own_group and lifeline.by_kernel else None
    try:
        with _SignalsHeld() as held:
            child, pipes = _start(launch, own_group, leader, held.before, lifeline)
            # A group of its own may hold a script around the real engine: all of it is meant.
            engine = -(leader or child) if own_group else child
            forward = _Forwarder(engine, own_group, ends=not launch.interactive)
            forward.install()
            held.release()
            try:
                outcome = _wait(child, engine, pipes, launch)
                return outcome._replace(code=130, gave_up=True) if forward.gave_up else outcome
            finally:
                forward.remove()
    finally:
        lifeline.cut()
        if leader is not None:
            os.waitpid(leader, 0)


def _lead_group() -> int | None:
    """Start a process that ends at once and leads a new group; return its id.

    Until it is waited for, the group has that number. Return None without such a program.
    """
    try:
        return os.posix_spawnp("true", ["true"], {}, setpgroup=0)
    except OSError:
        return None


def _wait(child: int, engine: int, pipes: Pipes, launch: Launch) -> Outcome:
    if not launch.relays:
        return Outcome(_shell_code(os.waitpid(child, 0)[1]))
    from bitnet_tuning.launch.relay import relay  # noqa: PLC0415

    return relay(child, engine, pipes, launch, lambda: _shell_code(os.waitpid(child, 0)[1]))


def _shell_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def signals(names: tuple[str, ...]) -> set[signal.Signals]:
    """Those of the named signals that this system has."""
    return {getattr(signal, name) for name in names if hasattr(signal, name)}


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

    llama-cli prints its timings from inside its handler of SIGINT, under a lock that
    the interrupted thread may hold: now and then it hangs there for ever. An engine
    that is to end at an interrupt and has not after a grace is therefore killed.
    """

    def __init__(self, engine: int, own_group: bool, ends: bool) -> None:
        self.engine = engine
        self.own_group = own_group
        self.ends = ends
        self.gave_up = False
        self.before: dict[signal.Signals, object] = {}

    def install(self) -> None:
        for number in signals(FORWARDED):
            # Ignored from the start (nohup): leave it so. But for SIGINT: a script's
            # background job starts with it ignored, and engines catch it all the same.
            if number == signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
                self.before[number] = signal.signal(number, self._pass_on)
        if self.own_group:
            self.before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self._pause)
            self.before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._give_up)

    def remove(self) -> None:
        signal.alarm(0)
        for number, handler in self.before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        if self.own_group or number not in (signal.SIGINT, signal.SIGQUIT):
            send(self.engine, number)
        if number == signal.SIGINT and self.own_group and self.ends:
            signal.alarm(INTERRUPT_GRACE)

    def _give_up(self, _number: int, _frame: FrameType | None) -> None:
        self.gave_up = True
        send(self.engine, signal.SIGKILL)

    def _pause(self, _number: int, _frame: FrameType | None) -> None:
        """Ctrl-Z: the engine's group is not the terminal's, so it is stopped from here."""
        send(self.engine, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        send(self.engine, signal.SIGCONT)


def _start(
    launch: Launch, own_group: bool, leader: int | None, mask: set[int], lifeline: Lifeline
) -> tuple[int, Pipes]:
    """Return the engine's process id and our ends of its pipes.

    ``mask`` holds the signals that it starts with blocked. Raise UnsupportedError where the
    engine cannot be executed.
    """
    pipes, far = _open_pipes(launch)
    try:
        with _MayPrint(own_group), Inherited(launch.cpus, launch.nice):
            start = partial(_fork, own_group) if leader is None else partial(_spawn, leader)
            return start(launch, mask, lifeline, far), pipes
    except OSError as error:
        raise cannot_start(launch.argv, error) from error
    finally:
        _close(*far)


def _spawn(leader: int, launch: Launch, mask: set[int], lifeline: Lifeline, far: Streams) -> int:
    """Start the engine in the leader's group; return its id."""
    lifeline.tie(-leader)
    return os.posix_spawnp(
        launch.argv[0],
        launch.argv,
        {**os.environ, **launch.variables},
        file_actions=[
            (os.POSIX_SPAWN_DUP2, handle, target)
            for target, handle in enumerate(far)
            if handle is not None
        ],
        setpgroup=leader,
        setsigdef=signals(_BACK_TO_DEFAULT),
        setsigmask=mask,
    )


def _fork(own_group: bool, launch: Launch, mask: set[int], lifeline: Lifeline, far: Streams) -> int:
    """Start the engine in a group of its own, or in ours; return its id."""
    report, failure = os.pipe()
    try:
        child = os.fork()
        if child == 0:
            _become_engine(own_group, launch, mask, lifeline, far=far, failure=failure)
    finally:
        os.close(failure)
    with open(report, "rb", buffering=0) as reader:
        number = reader.read()  # nothing, once the engine is executed
    if number:
        os.waitpid(child, 0)
        raise OSError(int(number), os.strerror(int(number)))
    return child


def _become_engine(
    own_group: bool,
    launch: Launch,
    mask: set[int],
    lifeline: Lifeline,
    *,
    far: Streams,
    failure: int,
) -> None:
    """In the child: execute the engine, or write the error's number to ``failure``."""
    try:
        if own_group:
            os.setpgid(0, 0)
        lifeline.tie(-os.getpid() if own_group else os.getpid())
        for target, handle in enumerate(far):
            if handle is not None:
                os.dup2(handle, target)
        for name in _BACK_TO_DEFAULT:
            signal.signal(getattr(signal, name), signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        os.execvpe(launch.argv[0], launch.argv, {**os.environ, **launch.variables})
    except Exception as error:
        number = getattr(error, "errno", None) or errno.EINVAL
        os.write(failure, str(number).encode())
    finally:
        os._exit(127)


class _MayPrint:
    """Lets a group in the background print in spite of `stty tostop`."""

    def __init__(self, own_group: bool) -> None:
        self.own_group = own_group

    def __enter__(self) -> None:
        if self.own_group:
            self.before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)

    def __exit__(self, *_: object) -> None:
        if self.own_group:
            signal.signal(signal.SIGTTOU, self.before)


class Inherited:
    """Gives this thread what a program that it starts is to inherit, and takes it back."""

    def __init__(self, cpus: frozenset[int] | None, nice: int) -> None:
        self.cpus = cpus
        self.nice = nice

    def __enter__(self) -> None:
        """None of it is worth failing for."""
        try:
            self.before = os.sched_getaffinity(0) if self.cpus else None
            if self.cpus:
                os.sched_setaffinity(0, self.cpus)
        except (AttributeError, OSError):
            self.before = None
        try:
            self.raised = os.nice(self.nice) - self.nice if self.nice else None
        except OSError:
            self.raised = None

    def __exit__(self, *_: object) -> None:
        if self.before:
            os.sched_setaffinity(0, self.before)
        if self.raised is not None:
            os.nice(-self.nice)


def fill_standard_handles() -> None:
    """Started with a standard stream closed, its handle would go to the next pipe."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
            os.set_inheritable(opened, True)


def _open_pipes(launch: Launch) -> tuple[Pipes, Streams]:
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
