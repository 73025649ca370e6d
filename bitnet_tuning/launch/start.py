"""Start programs with the CPUs, niceness and environment they are to have, so that none
outlives this process. The only functions that start a program are ``spawn`` and ``popen``."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager

from bitnet_tuning.launch.program import FEED, NO_INPUT
from bitnet_tuning.launch.signals import present, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from subprocess import Popen

    from bitnet_tuning.launch.program import Launch

    Streams = tuple[int | None, int | None, int | None]
    """What a program gets as stdin, stdout and stderr: handles, None for this process's own."""

_TRUE = "/bin/true"
_MANY_HANDLES = 1 << 16
"""File descriptors that the watcher closes, open or not."""

_BACK_TO_DEFAULT = ("SIGPIPE", "SIGXFSZ", "SIGINT")
"""Python ignores the first two. A script's background job inherits the last one ignored, but
it is passed on only if somebody means this run."""


class Lifeline:
    """Kill a program when its launcher ends, however that comes (POSIX).

    It is a pipe whose writing end the launcher alone holds, so that it closes with the
    launcher. On Linux the program inherits the reading end, set up so that the kernel sends
    SIGKILL to the end's owner, the program, when the other end is closed (fcntl(2), F_SETSIG).
    That does what prctl's parent-death signal does, which Python reaches only through ctypes.
    Elsewhere a small process watches the reading end.

    A program is tied before it is executed, so that a launcher killed at any moment leaves
    nothing behind.
    """

    def __init__(self) -> None:
        self.far, self.near = os.pipe()
        self.leader: int | None = None
        self.by_kernel = self._arm()

    def _arm(self) -> bool:
        try:
            import fcntl  # noqa: PLC0415 (not on Windows)

            fcntl.fcntl(self.far, fcntl.F_SETSIG, int(signal.SIGKILL))
            fcntl.fcntl(self.far, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
        except (ImportError, AttributeError, OSError):
            return False
        return True

    def lead(self) -> int | None:
        """Tie a new process group that has no program in it yet, and return its number.

        Return None if the system cannot do that.
        """
        # posix_spawn runs nothing of ours in the child, so what it starts cannot tie itself,
        # and tied later it could be left behind. So the group is made first. That takes a
        # process, whose number the group gets (setpgid(2)) and keeps until it is waited for.
        # It may end at once. /bin/true is there on Debian, Fedora and Alpine alike; with its
        # folder, for PATH may be empty or name another program. Its start returns in 0.08 ms;
        # an engine that is forked, to tie itself, is there 0.5 ms later than a spawned one.
        if self.by_kernel:
            try:
                self.leader = os.posix_spawn(_TRUE, [_TRUE], {}, setpgroup=0)
            except OSError:
                return None
            self.tie(-self.leader)
        return self.leader

    def tie(self, target: int) -> None:
        """Kill ``target``, as in ``send``, once the launcher is gone.

        To be called before a child executes the program. Until then the child holds the near
        end as well: a launcher that is killed meanwhile counts as gone at that moment.
        """
        if self.by_kernel:
            import fcntl  # noqa: PLC0415 (not on Windows)

            fcntl.fcntl(self.far, fcntl.F_SETOWN, target)
            os.set_inheritable(self.far, True)
        else:
            _watch(self.far, target)

    def cut(self) -> None:
        """Let go of a program that has ended. One that still runs is killed."""
        # Without another reader, closing the far end first lets no signal arise.
        os.close(self.far)
        os.close(self.near)
        if self.leader is not None:
            os.waitpid(self.leader, 0)


def _watch(far: int, target: int) -> None:
    """Fork a process that kills ``target``, as in ``send``, once the launcher's end is closed."""
    if os.fork():
        return
    try:
        os.setsid()  # signals to the engine's group are not for the watcher
        # An open end of a pipe here would keep its reader waiting.
        os.closerange(0, far)
        os.closerange(far + 1, _MANY_HANDLES)
        os.read(far, 1)
        send(target, signal.SIGKILL)
    finally:
        os._exit(0)


class Inherited:
    """Give this thread, for the block, the CPUs and the niceness that what it starts is to
    inherit. Anything the system forbids is left as it is."""

    def __init__(self, cpus: frozenset[int] | None, nice: int) -> None:
        self.cpus = cpus
        self.nice = nice

    def __enter__(self) -> None:
        self.before: set[int] | None = None
        self.raised: int | None = None
        try:
            if self.cpus:
                self.before = os.sched_getaffinity(0)
                os.sched_setaffinity(0, self.cpus)
        except (AttributeError, OSError):
            self.before = None
        try:
            if self.nice:
                self.raised = os.nice(self.nice)
        except (AttributeError, OSError):
            pass

    def __exit__(self, *_: object) -> None:
        if self.before:
            os.sched_setaffinity(0, self.before)
        if self.raised is not None:
            os.nice(-self.nice)


def fill_standard_handles() -> None:
    """Open /dev/null for each standard stream that is closed: its handle would otherwise go
    to the next pipe."""
    for handle in (0, 1, 2):
        try:
            os.fstat(handle)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free
            os.set_inheritable(opened, True)


class Pipes:
    """The pipes to an engine that a launch needs: our ends, None where there is none.

    ``streams`` is what the engine gets as its stdin, stdout and stderr.
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
        """Start the engine in the block. After it the engine alone holds its ends for output,
        so that their end is seen."""
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
    """Start a program in a group that a lifeline leads; return its process id.

    It starts with the signals in ``mask`` blocked. Quicker than ``popen``, which imports
    ``subprocess`` and forks. Raise UnsupportedError if the program cannot be started.
    """
    try:
        with Inherited(launch.cpus, launch.nice):
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
    """Start a program that is tied to the lifeline (None on Windows).

    The streams may also be ``subprocess``'s constants. ``lead`` makes the child the leader of
    a group, which is then tied as a whole: ``os.setpgrp`` or ``os.setsid``. The program starts
    with the signals in ``mask`` blocked. Raise UnsupportedError if it cannot be started.
    """
    from subprocess import Popen, SubprocessError  # noqa: PLC0415 (2 ms)

    def tie() -> None:  # in the child; safe beside threads, for nothing in it takes a lock
        if lead:
            lead()
        if lifeline:
            lifeline.tie(-os.getpid() if lead else os.getpid())
        for number in present(*_BACK_TO_DEFAULT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        with Inherited(launch.cpus, launch.nice):
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
