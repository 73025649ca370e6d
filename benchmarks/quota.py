"""Start programs under a CPU quota: control groups of version 1 or 2 that last for a block."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitnet_tuning.machine.cgroups import read_cgroups
from bitnet_tuning.machine.root import Root

PERIOD = 100_000
"""Period of a CPU quota in microseconds, the kernel's default (admin-guide/cgroup-v2.rst)."""


def cpu_groups() -> Iterator[Path]:
    """Yield the folders in which a control group with a CPU quota might be made: this process's own
    groups and their parents."""
    groups = read_cgroups(Root())
    for level in (*groups.cpu, *groups.unified):
        yield Path("/", level)


@contextmanager
def quota_group(quota: float, name: str, parents: Iterable[Path] | None = None) -> Iterator[Path]:
    """Make a control group with a quota of so many CPUs, yield its folder, and remove it. Raise
    OSError if none of the folders lets us."""
    problem = OSError("there is no CPU control group")
    for parent in cpu_groups() if parents is None else parents:
        group = parent / f"{name}-{os.getpid()}"
        try:
            try:
                _limit(group, round(quota * PERIOD))
            except OSError as error:
                problem = error
                continue
            yield group
            return
        finally:
            _remove(group)
    raise problem


def _limit(group: Path, quota: int) -> None:
    """Make the group and set its quota, in microseconds per period. Raise OSError."""
    controllers = group.parent / "cgroup.controllers"
    version_2 = controllers.exists()
    if version_2 and "cpu" in controllers.read_text().split():
        # Children have a controller's files once it is in their parent's list, which takes no new
        # one while the parent itself has processes (admin-guide/cgroup-v2.rst).
        control = group.parent / "cgroup.subtree_control"
        if "cpu" not in control.read_text().split():
            _write(control, "+cpu")
    group.mkdir()
    if version_2:
        _write(group / "cpu.max", f"{quota} {PERIOD}")
    else:
        _write(group / "cpu.cfs_period_us", str(PERIOD))
        _write(group / "cpu.cfs_quota_us", str(quota))


def _write(path: Path, text: str) -> None:
    # In a control group only the kernel creates files: a missing one must stay an error.
    handle = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


def _remove(group: Path) -> None:
    """Remove the group once the last process has left it."""
    for _ in range(100):
        try:
            group.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.05)


def inside(group: Path, argv: Sequence[str]) -> tuple[str, ...]:
    """Return the argv of a program that starts in the group."""
    script = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
    return ("/bin/sh", "-c", script, str(group), *argv)
