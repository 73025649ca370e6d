"""Read the mount table, and the CPU and memory limits of this process's control groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial

from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.namedtuple import NamedTuple

_NO_LIMIT = 1 << 60
"""Bytes from which a memory limit means "no limit". Version 1 shows the largest page counter,
2**63 rounded down to a page (PAGE_COUNTER_MAX in the kernel)."""

_UNIFIED = ""
"""Name of the version 2 hierarchy, which ``proc/self/cgroup`` leaves empty (cgroups(7))."""

_PERIOD = 100_000
"""Default period of a CPU quota in microseconds (admin-guide/cgroup-v2.rst, cpu.max)."""


class Cgroups(NamedTuple):
    """The folders, relative to the root folder, of the control groups that limit this process: its
    own group first, and then the parents, whose limits apply, too."""

    unified: tuple[str, ...] = ()
    """Groups of version 2."""
    cpu: tuple[str, ...] = ()
    """Groups of version 1 with the ``cpu`` controller."""
    memory: tuple[str, ...] = ()


class Throttling(NamedTuple):
    """How a CPU quota has throttled one control group since the group was created."""

    level: str
    """Folder of the control group, relative to the root folder."""
    periods: int
    """Number of quota periods in which a process of the group ran."""
    throttled: int
    """Number of those periods in which the group used up its quota."""
    seconds: float
    """Seconds for which the group was throttled, summed over CPUs."""


def read_cgroups(root: Root) -> Cgroups:
    """Return the control groups that limit the CPUs and memory of this process."""
    return Cgroups(*_all_levels(root, _UNIFIED, "cpu", "memory"))


def _all_levels(root: Root, *controllers: str) -> Iterator[tuple[str, ...]]:
    """Yield, for each controller, the folders of this process's group and its parents."""
    mounts = [each for each in read_mounts(root, "cgroup") if each.kind in ("cgroup", "cgroup2")]
    if not mounts:
        # A root folder without a mount table. systemd mounts version 2 alone, or at "unified"
        # beside version 1 hierarchies whose folders have the names of their controllers.
        base = "sys/fs/cgroup"
        mounts = [Mount(point, "cgroup2", "", "") for point in (base, f"{base}/unified")]
        mounts += [Mount(f"{base}/{name}", "cgroup", "", name) for name in sorted(root.names(base))]
    paths: dict[str, str] = {}
    for line in (root.read("proc/self/cgroup") or "").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        paths |= dict.fromkeys(names.split(",") if path else (), path)
    for controller in controllers:
        showing = [
            mount
            for mount in mounts
            if controller in ([_UNIFIED] if mount.kind == "cgroup2" else mount.options.split(","))
        ]
        yield _levels(root, showing, paths.get(controller, "/"))


def _levels(root: Root, mounts: list[Mount], path: str) -> tuple[str, ...]:
    """Return the folders of a group and its parents, for every mount that shows the group."""
    # Paths and origins such as "/.." lie outside this cgroup namespace (cgroup_namespaces(7)), as
    # after `unshare -C`. Then only the lists of processes tell which group is this process's own.
    showing = [(mount, _below(path, mount.origin)) for mount in mounts]
    showing = [pair for pair in showing if pair[1] is not None] or [
        (mount, _own_group(root, mount.point.strip("/"))) for mount in mounts[:1]
    ]
    levels = []
    for mount, group in showing:
        parts = [part for part in (group or "").split("/") if part]
        point = mount.point.strip("/")
        levels += ["/".join([point, *parts[:depth]]) for depth in range(len(parts), -1, -1)]
    return tuple(dict.fromkeys(levels))


def _own_group(root: Root, point: str) -> str:
    """Return the group below a mount ``point`` that lists this process; "" if none is found."""
    own = root.fields("proc/self/status").get("Pid", "none")
    groups = [""]
    for group in groups:
        folder = point + group
        if own in (root.read(f"{folder}/cgroup.procs") or "").split():
            return group
        inner = [f"{group}/{name}" for name in sorted(root.names(folder))]
        if len(groups) < 1000:  # they take about 0.1 s
            groups += [name for name in inner if root.exists(f"{point}{name}/cgroup.procs")]
    return ""


def _below(path: str, origin: str) -> str | None:
    """Return ``path`` relative to ``origin``, or None if it lies outside."""
    base = origin.rstrip("/")
    if ".." in path.split("/") or not f"{path}/".startswith(f"{base}/"):
        return None
    return path[len(base) :]


def read_quota(root: Root, groups: Cgroups) -> float | None:
    """Return the smallest CPU quota that applies to this process, in CPUs; None without one."""
    return min((quota for quota, _ in _quotas(root, groups)), default=None)


def read_used_seconds(root: Root, groups: Cgroups) -> float | None:
    """Return the CPU time in seconds that the control group with the smallest quota has used;
    None without a quota, or if it is unknown."""
    _, level = min(_quotas(root, groups), default=(0.0, None))
    if level is None:
        return None
    used = root.numbers(f"{level}/cpu.stat", " ").get("usage_usec")
    # Version 1 counts in the controller cpuacct, which usually has the same mount as cpu.
    nanoseconds = root.integer(f"{level}/cpuacct.usage")
    return used / 1e6 if used is not None else nanoseconds / 1e9 if nanoseconds else None


def _quotas(root: Root, groups: Cgroups) -> list[tuple[float, str]]:
    """Return each CPU quota that applies, in CPUs, with the folder of its group."""
    # Version 2 has "QUOTA PERIOD" or "max PERIOD" in one file, version 1 a file for each and -1
    # for no quota; all are in microseconds.
    texts = [(root.read(f"{level}/cpu.max"), level) for level in groups.unified]
    for level in groups.cpu:
        quota, period = (root.read(f"{level}/cpu.cfs_{name}_us") for name in ("quota", "period"))
        texts.append((f"{quota or 0} {period or ''}", level))
    found = []
    for text, level in texts:
        numbers = [as_integer(word) or 0 for word in (text or "0").split()]
        limit, span = (*numbers, _PERIOD)[:2]
        if min(limit, span) > 0:
            found.append((limit / span, level))
    return found


def read_memory_limits(root: Root, groups: Cgroups) -> list[tuple[int, int]]:
    """Return the memory limit of each control group that has one, and the memory in use, in bytes,
    without the inactive page cache that the kernel can reclaim."""
    found = []
    for levels, names, usage, inactive in (
        (groups.unified, ("max", "high"), "current", "inactive_file"),
        (groups.memory, ("limit_in_bytes",), "usage_in_bytes", "total_inactive_file"),
    ):
        for level in levels:
            statistics = root.numbers(f"{level}/memory.stat", " ")
            stated = [root.integer(f"{level}/memory.{name}") for name in names]
            # A container sees no folder outside its own mount, but version 1's hierarchical limit
            # includes every parent (admin-guide/cgroup-v1/memory.rst).
            stated.append(statistics.get("hierarchical_memory_limit"))
            limits = [limit for limit in stated if limit is not None and 0 <= limit < _NO_LIMIT]
            if limits:
                used = root.integer(f"{level}/memory.{usage}") or 0
                found.append((min(limits), max(0, used - statistics.get(inactive, 0))))
    return found


def read_throttling(root: Root, groups: Cgroups) -> tuple[Throttling, ...]:
    """Return the quota counters of each control group that has them, innermost group first."""
    found = []
    for level in (*groups.unified, *groups.cpu):
        stated = root.numbers(f"{level}/cpu.stat", " ")
        if {"nr_periods", "nr_throttled"} <= stated.keys():
            # Microseconds in version 2 (cgroup-v2.rst), nanoseconds in version 1 (sched-bwc.rst).
            lost = stated.get("throttled_usec", 0) / 1e6 + stated.get("throttled_time", 0) / 1e9
            found.append(Throttling(level, stated["nr_periods"], stated["nr_throttled"], lost))
    return tuple(found)


def read_task_limits(root: Root) -> list[tuple[str, int, int]]:
    """Return the limits on processes and threads together that apply to this process, each with its
    name, the number that it allows, and the number that run."""
    found = []
    for level in (level for levels in _all_levels(root, _UNIFIED, "pids") for level in levels):
        limit, used = (root.integer(f"{level}/pids.{name}") for name in ("max", "current"))
        if limit is not None and used is not None:
            found.append((f"pids.max of the control group /{level}", limit, used))
    # getrlimit(2): RLIMIT_NPROC counts a user's threads. Root is exempt, not a user namespace's.
    owner = root.fields("proc/self/status").get("Uid", "").split()[:1]
    stated = re.search(r"Max processes +(\d+)", root.read("proc/self/limits") or "")
    exempt = owner == ["0"] and (root.read("proc/self/uid_map") or "0 0").split()[1] == "0"
    if stated and owner and not exempt:
        names = (name for name in root.names("proc") if name.isdigit())
        tasks = [root.fields(f"proc/{name}/status") for name in names]
        own = [each for each in tasks if each.get("Uid", "").split()[:1] == owner]
        used = sum(as_integer(each.get("Threads")) or 0 for each in own)
        found.append(("the user's limit (ulimit -u)", int(stated[1]), used))
    return found


_TABLE_BYTES = 1 << 20
"""Bytes to read of a mount table, enough for thousands of mounts."""

_SHARED = ("9p", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "smbfs", "vboxsf", "fuse.sshfs")
"""File systems that another machine, or the host of a virtual machine, serves."""


class Mount(NamedTuple):
    """One mounted file system."""

    point: str
    """Absolute path of the folder where it is mounted."""
    kind: str
    """Type of the file system, such as ``ext4``, ``9p`` or ``cgroup2``."""
    source: str
    options: str
    """Options, separated by commas. Version 1 control groups name their controllers here."""
    origin: str = "/"
    """Folder of the file system that is mounted: "/" except in containers and bind mounts."""

    @property
    def windows(self) -> bool:
        """True for a Windows drive under WSL."""
        # WSL 1 has a drvfs file system. WSL 2 mounts a 9p or virtiofs share and names the
        # drive in its source ("C:\") or its options ("aname=drvfs;path=C:\").
        drive = self.source[1:2] == ":" and self.source[:1].isalpha()
        named = drive or "drvfs" in f"{self.source} {self.options}"
        return self.kind == "drvfs" or (self.kind in ("9p", "virtiofs") and named)

    @property
    def slow(self) -> str | None:
        """What makes the file system slow to read, as the rest of a sentence; None for others."""
        if self.windows:
            kind, why = "Windows drive", "many times slower to read than Linux's own file system"
        elif self.kind in _SHARED:
            kind, why = "shared file system", "read over a network or from a virtual machine's host"
        else:
            return None
        return f"a {kind} ({self.kind} on {self.point}), {why}"


def read_mounts(root: Root, word: str = "") -> tuple[Mount, ...]:
    """Return the mounts whose line in the table contains ``word``, oldest mount first."""
    for name in ("proc/self/mountinfo", "proc/self/mounts", "proc/mounts"):
        lines = (root.read(name, _TABLE_BYTES) or "").splitlines()
        if found := tuple(mount for line in lines if word in line and (mount := _mount(line))):
            return found
    return ()


def mount_holding(path: str, mounts: tuple[Mount, ...]) -> Mount | None:
    """Return the mount on which an absolute ``path`` lies, or None if no mount contains it."""
    above = [mount for mount in mounts if f"{path}/".startswith(f"{mount.point.rstrip('/')}/")]
    # The last of several mounts at the same point hides the others; max() keeps the first.
    return max(reversed(above), key=lambda mount: len(mount.point), default=None)


def _mount(line: str) -> Mount | None:
    # proc_pid_mountinfo(5): ID PARENT MAJOR:MINOR ORIGIN POINT OPTIONS … - KIND SOURCE OPTIONS;
    # proc_pid_mounts(5): SOURCE POINT KIND OPTIONS 0 0.
    # The kernel writes spaces, tabs, newlines and backslashes as octal numbers (getmntent(3)).
    plain = partial(re.sub, r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)))
    left, _, right = line.partition(" - ")
    fields, tail = (list(map(plain, half.split())) for half in (left, right))
    if len(fields) > 4 and len(tail) > 2:
        return Mount(fields[4], tail[0], tail[1], tail[2], fields[3])
    is_old = len(fields) > 3 and not right and fields[1].startswith("/")
    return Mount(fields[1], fields[2], fields[0], fields[3]) if is_old else None
