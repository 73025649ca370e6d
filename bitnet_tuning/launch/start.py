"""Start programs with a given affinity, niceness and environment, and kill them when this process
dies. Only ``spawn`` and ``popen`` start a program."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack, contextmanager, suppress

from bitnet_tuning.launch.program import FEED, NO_INPUT, Launch
from bitnet_tuning.launch.signals import present, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from subprocess import Popen

    Streams = tuple[int | None, int | None, int | None]
    """A program's stdin, stdout and stderr as handles; None stands for this process's own."""

_TRUE = "/bin/true"
_MANY_HANDLES = 1 << 16
"""Number of file descriptors that the watcher closes, open or not."""

_BACK_TO_DEFAULT = ("SIGPIPE", "SIGXFSZ", "SIGINT")
"""Signals that programs must not inherit as ignored. Python ignores the first two. A script
ignores SIGINT in its background jobs, but one that is passed on is meant for the program."""


class Lifeline:
    """A pipe that kills a program when its launcher ends for whatever reason (POSIX).

    Only the launcher has the writing end, so that it closes when the launcher ends. A program is
    tied to the pipe before it is executed, so that a launcher that is killed at any moment leaves
    nothing behind.
    """

    def __init__(self) -> None:
        self.far, self.near = os.pipe()
        self.leader: int | None = None
        self.by_kernel = self._arm()

    def _arm(self) -> bool:
        """Let the kernel send SIGKILL to the owner of the reading end when the other end closes;
        return False where only a process of its own can watch it."""
        # fcntl(2), F_SETSIG, which only Linux has. The parent-death signal of prctl(2) would do
        # the same, but Python reaches it only through ctypes.
        try:
            import fcntl  # noqa: PLC0415 (not on Windows)

            fcntl.fcntl(self.far, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(self.far, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        except (ImportError, AttributeError, OSError):
            return False
        return True

    def lead(self) -> int | None:
        """Tie a new process group for a program to start in. Return its id, or None on failure."""
        # A child of posix_spawn runs no code of ours and so cannot tie itself before it executes
        # the program. So its group is created and tied first. A group needs a leader, whose id
        # it has (setpgid(2)); the leader may end at once, and the id stays in use until somebody
        # waits for the leader. /bin/true exists on Debian, Fedora and Alpine; the whole path is
        # needed because PATH may be empty or name another program. Starting it takes 0.08 ms,
        # whereas an engine that is forked to tie itself starts 0.5 ms later than a spawned one.
        if self.by_kernel:
            try:
                self.leader = os.posix_spawn(_TRUE, [_TRUE], {}, setpgroup=0)
            except OSError:
                return None
            self.tie(-self.leader)
        return self.leader

    def tie(self, target: int) -> None:
        """Kill ``target``, a process or a group as in ``send``, once the launcher has ended.

        Call this in a child before it executes the program. Until then the child has the writing
        end too, so that the death of the launcher takes effect when the program is executed.
        """
        if self.by_kernel:
            import fcntl  # noqa: PLC0415 (not on Windows)

            fcntl.fcntl(self.far, fcntl.F_SETOWN, target)
            os.set_inheritable(self.far, True)
        else:
            _watch(self.far, target)

    def cut(self) -> None:
        """Close the pipe after the program has ended, or to kill a program that still runs."""
        # If nobody else has the reading end, closing it first avoids a signal.
        os.close(self.far)
        os.close(self.near)
        if self.leader is not None:
            os.waitpid(self.leader, 0)


def _watch(far: int, target: int) -> None:
    """Fork a process that kills ``target`` once the writing end of the pipe is closed."""
    if os.fork():
        return
    try:
        os.setsid()  # signals to the engine's group are not for the watcher
        # A pipe that stays open here would never end for its reader.
        os.closerange(0, far)
        os.closerange(far + 1, _MANY_HANDLES)
        os.read(far, 1)
        send(target, signal.SIGKILL)
    finally:
        os._exit(0)


@contextmanager
def inherited(cpus: frozenset[int] | None, nice: int) -> Iterator[None]:
    """Give this thread an affinity and a niceness for programs that start in the block. What the
    system forbids is left as it is."""
    with ExitStack() as undone:
        with suppress(AttributeError, OSError):
            if cpus:
                before = os.sched_getaffinity(0)
                os.sched_setaffinity(0, cpus)
                undone.callback(os.sched_setaffinity, 0, before)
        with suppress(AttributeError, OSError):
            if nice:
                os.nice(nice)
                undone.callback(os.nice, -nice)
        yield


def fill_standard_handles() -> None:
    """Open /dev/null for each standard stream that is closed."""
    # Otherwise the next pipe would get the handle of that stream.
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # gets the lowest free handle (open(2))
            os.set_inheritable(opened, True)


class Pipes:
    """The pipes between this process and an engine.

    ``stdin``, ``stdout`` and ``stderr`` are this process's ends, None for a stream without a
    pipe; ``streams`` are the engine's ends.
    """

    def __init__(self, launch: Launch) -> None:
        self.stdin = self.stdout = self.stderr = None
        stdin = stdout = stderr = None
        if launch.stdin == FEED:
            stdin, self.stdin = os.pipe()
        elif launch.stdin == NO_INPUT:
            stdin = os.open(os.devnull, os.O_RDONLY)
        if launch.echo is not None:
            self.stdout, stdout = os.pipe()
        if launch.keep_log:
            self.stderr, stderr = os.pipe()
        self.streams: Streams = stdin, stdout, stderr

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """Close the engine's ends for output after the block in which the engine starts, so that
        this process sees the end of the output."""
        try:
            yield
        finally:
            _close(*self.streams[1:])

    def close(self) -> None:
        _close(self.stdin, self.stdout, self.stderr, self.streams[0])


def _close(*handles: int | None) -> None:
    for handle in handles:
        if handle is not None:
            os.close(handle)


def spawn(launch: Launch, streams: Streams, group: int, mask: Collection[int]) -> int:
    """Start a program in a group from ``Lifeline.lead``, and return its process id.

    The program starts with the signals in ``mask`` blocked. This is quicker than ``popen``, which
    imports ``subprocess`` and forks. Raise UnsupportedError if the program cannot be started.
    """
    try:
        with inherited(launch.cpus, launch.nice):
            return os.posix_spawnp(
                launch.argv[0],
                launch.argv,
                launch.environment(),
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, handle, target)
                    for target, handle in enumerate(streams)
                    if handle is not None
                ],
                setpgroup=group,
                setsigdef=present(*_BACK_TO_DEFAULT),
                setsigmask=mask,
            )
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise launch.error(error) from error


def popen(
    launch: Launch,
    streams: Streams,
    lifeline: Lifeline | None,
    lead: Callable[[], object] | None = None,
    mask: Collection[int] = (),
) -> Popen[bytes]:
    """Start a program that is tied to ``lifeline`` (None on Windows).

    ``streams`` may contain the constants of ``subprocess``. ``lead``, ``os.setpgrp`` or
    ``os.setsid``, makes the program the leader of a group, which is then tied as a whole. The
    program starts with the signals in ``mask`` blocked. Raise UnsupportedError if it cannot be
    started.
    """
    from subprocess import Popen, SubprocessError  # noqa: PLC0415 (2 ms)

    def tie() -> None:  # runs in the child; safe beside threads because it takes no lock
        if lead:
            lead()
        if lifeline:
            lifeline.tie(-os.getpid() if lead else os.getpid())
        for number in present(*_BACK_TO_DEFAULT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        with inherited(launch.cpus, launch.nice):
            return Popen(
                launch.argv,
                env=launch.environment(),
                stdin=streams[0],
                stdout=streams[1],
                stderr=streams[2],
                pass_fds=(lifeline.far,) if lifeline else (),
                preexec_fn=tie if lifeline else None,  # noqa: PLW1509
            )
    except (OSError, ValueError, SubprocessError) as error:  # a null byte; ``tie`` failed
        raise launch.error(error) from error
