"""Having the CPUs' governor be ``performance`` for the length of a run. The only module that
writes below ``sys``.

What was there before is kept in a record, and a guardian that is there before anything is
written puts it back when its launcher has ended. Runs at the same time share the record: each
joins and leaves under one lock (``.lock``), and as long as it takes part its guardian shares
another (``.users``). Who leaves and finds nobody else there puts everything back. Should
launcher and guardian both be killed, the record stays, and the next run goes by it.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterable, Iterator

from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.governor_record import Governors, Ledger
from bitnet_tuning.machine.clock import (
    PERFORMANCE,
    SET_PERFORMANCE,
    Policy,
    governor_in,
    read_policies,
)
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root, format_list
from bitnet_tuning.store.state import alone, locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.launch.lifeline import Guardian


Say = Callable[[str], None]

PATIENCE = 60.0
"""Seconds to wait for the lock when leaving. Others hold it for milliseconds; one that was
stopped meanwhile is not waited for any longer."""


@contextlib.contextmanager
def held(ledger: Ledger, host: Host, cpus: frozenset[int], tell: Say, warn: Say) -> Iterator[None]:
    """``cpus`` have the governor ``performance`` within the block, where that is permitted;
    ``tell`` gets what was done, ``warn`` what was not."""
    guardian: Guardian | None = None
    originals: Governors = {}
    done: list[str] = []
    missed: list[str] = []
    try:
        try:
            policies = _permitted(ledger.root, host, cpus, warn)
            with _undisturbed():  # a stream of ours may be stuck: lines come after it
                guardian, originals = _join(ledger, policies, done.append, missed.append)
        except (UnsupportedError, OSError) as refused:
            missed.append(f"the governor is left as it is: {refused}")
        _say_all(tell, done)
        _say_all(warn, missed)
        yield
    finally:
        if guardian is not None:
            with _undisturbed():
                left = () if guardian.dismiss() else _leave(ledger, originals)
            _say_all(warn, left)


def _say_all(say: Say, lines: Iterable[str]) -> None:
    for line in lines:
        say(line)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """No signal ends or stops this program within the block; each comes after it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _permitted(root: Root, host: Host, cpus: frozenset[int], warn: Say) -> tuple[Policy, ...]:
    """The policies that have ``performance`` or can get it; raises UnsupportedError where
    there is none."""
    if host.wsl:
        raise UnsupportedError(
            "under WSL Windows sets the clock, whatever Linux writes; in Windows: "
            "powercfg.exe /setactive SCHEME_MIN (High performance)"
        )
    policies = read_policies(root, cpus)
    if not policies:
        raise UnsupportedError(
            "none is visible here (a virtual machine, or no frequency control); "
            "in a virtual machine set it on the host"
        )
    reasons = {policy: _obstacle(root, policy) for policy in policies}
    wrong = sorted({reason for reason in reasons.values() if reason})
    fit = tuple(policy for policy, reason in reasons.items() if reason is None)
    if not fit:
        raise UnsupportedError("; ".join(wrong))
    for reason in wrong:
        bad = [policy for policy, why in reasons.items() if why == reason]
        warn(f"the governor of CPUs {_cpus(bad)} is left as it is: {reason}")
    return fit


def _obstacle(root: Root, policy: Policy) -> str | None:
    if policy.governor == PERFORMANCE:
        return None
    if policy.offered and PERFORMANCE not in policy.offered:
        return f"the kernel offers {', '.join(sorted(policy.offered))}, not {PERFORMANCE}"
    if not os.access(_file(root, policy.folder), os.W_OK):
        return f"that takes root, and a writable sys folder; `{SET_PERFORMANCE}` would do it"
    return None


def _join(
    ledger: Ledger, policies: tuple[Policy, ...], tell: Say, warn: Say
) -> tuple[Guardian | None, Governors]:
    """Changes them; raises UnsupportedError where what they were cannot be kept."""
    with contextlib.suppress(OSError):
        os.makedirs(ledger.state.folder, exist_ok=True)
    with locked(ledger.lock) as is_mine:
        if not is_mine:
            raise UnsupportedError(f"{ledger.state.folder} cannot be locked, to keep what it was")
        policies = _read_anew(ledger.root, policies)
        recorded = ledger.load() or {}
        if ledger.state.warning:
            warn(f"warning: {ledger.state.warning}")
        originals = originals_of(policies, recorded)
        if not any(policy.folder in originals for policy in policies):
            already = _cpus(list(policies))
            tell(f"governor {PERFORMANCE} already on CPUs {already}: nothing to set")
            return None, {}
        if _left_behind(ledger):
            tell("an earlier run was killed before it could put the governor back: this one will")
        if not ledger.store(originals):
            raise UnsupportedError(f"{ledger.state.warning}")
        guardian = _guard(ledger, originals)
        _change(ledger.root, policies, originals, tell, warn)
    return guardian, originals


def _read_anew(root: Root, policies: tuple[Policy, ...]) -> tuple[Policy, ...]:
    """As they are now that no other run changes them."""
    return tuple(
        policy._replace(governor=governor_in(root, policy.folder) or policy.governor)
        for policy in policies
    )


def originals_of(policies: tuple[Policy, ...], recorded: Governors) -> Governors:
    """What is to be put back in the end. What has another governor than ``performance``
    has its own, also where somebody changed it since it was recorded."""
    now = {policy.folder: policy.governor for policy in policies}
    return {**recorded, **{at: name for at, name in now.items() if name != PERFORMANCE}}


def _guard(ledger: Ledger, originals: Governors) -> Guardian:
    """Starts the guardian, which takes part from now on."""
    import fcntl  # noqa: PLC0415

    from bitnet_tuning.launch.lifeline import Guardian  # noqa: PLC0415
    from bitnet_tuning.launch.posix import fill_standard_handles  # noqa: PLC0415

    fill_standard_handles()
    handle = os.open(ledger.users, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)  # whoever holds it alone holds the other lock too

        def task() -> bool:
            os.close(handle)
            return not _leave(ledger, originals)

        return Guardian(task, keep=handle)
    finally:
        os.close(handle)  # the guardian has it still


def _change(
    root: Root, policies: tuple[Policy, ...], originals: Governors, tell: Say, warn: Say
) -> None:
    for policy in policies:
        if policy.governor != PERFORMANCE:
            _write(root, policy.folder, PERFORMANCE)
    done = [policy for policy in policies if governor_in(root, policy.folder) == PERFORMANCE]
    missed = [policy for policy in policies if policy not in done]
    if done:
        before = {originals[policy.folder] for policy in done if policy.folder in originals}
        tell(
            f"governor {PERFORMANCE} on CPUs {_cpus(done)} until the run ends, "
            f"then {' and '.join(sorted(before))} again"
        )
    if missed:
        warn(f"the governor of CPUs {_cpus(missed)} stays: the kernel does not take another")


def _leave(ledger: Ledger, own: Governors) -> tuple[str, ...]:
    """Puts everything back where no other run takes part any more; a line for each policy
    with which that fails. ``own`` serves where the record is gone, as with its folder."""
    with locked(ledger.lock, PATIENCE), alone(ledger.users) as is_last:
        if not is_last:
            return ()
        recorded = ledger.load()
        failed = _put_back(ledger.root, own if recorded is None else recorded)
        if failed:
            ledger.store(failed)
        else:
            ledger.remove()
    return tuple(
        f"the governor could not be put back: echo {name} > {_file(ledger.root, folder)}"
        for folder, name in failed.items()
    )


def left_behind(ledger: Ledger) -> Governors:
    """What should have been put back by runs that were killed; changes nothing."""
    if not ledger.load():
        return {}
    with locked(ledger.lock) as is_mine:
        return _left_behind(ledger) if is_mine else {}


def _left_behind(ledger: Ledger) -> Governors:
    """With the lock held: else a run that ends now would find somebody there."""
    with alone(ledger.users) as is_left:
        return _still_set(ledger.root, ledger.load() or {}) if is_left else {}


def _still_set(root: Root, originals: Governors) -> Governors:
    """What somebody else set meanwhile stays."""
    return {
        folder: name
        for folder, name in originals.items()
        if governor_in(root, folder) == PERFORMANCE
    }


def _put_back(root: Root, originals: Governors) -> Governors:
    """Those that failed."""
    left = _still_set(root, originals)
    return {folder: name for folder, name in left.items() if not _write(root, folder, name)}


def _write(root: Root, folder: str, governor: str) -> bool:
    """Whether the kernel took it. The file is cut only after it was written, so that it is
    never seen empty."""
    data = f"{governor}\n".encode()
    try:
        handle = os.open(_file(root, folder), os.O_WRONLY)
    except OSError:
        return False
    try:
        os.write(handle, data)
        with contextlib.suppress(OSError):
            os.ftruncate(handle, len(data))
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def _file(root: Root, folder: str) -> str:
    return os.path.join(root.path, folder, "scaling_governor")


def _cpus(policies: list[Policy]) -> str:
    return format_list(cpu for policy in policies for cpu in policy.cpus)
