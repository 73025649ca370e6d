"""Read the machine into one ``Host``, and what this process is permitted to do."""

from __future__ import annotations

import os
import re
import sys

from bitnet_tuning.machine.cgroups import read_cgroups, read_quota
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import read_memory
from bitnet_tuning.machine.root import Root, as_integer, parse_list, parse_mask, parse_or_none
from bitnet_tuning.machine.topology import CPU, read_kinds, read_topology
from bitnet_tuning.namedtuple import NamedTuple

_FIRST_PROCESSORS = 1 << 14
"""Bytes of /proc/cpuinfo to read, which include the first processor's entry."""

_FLAG_KEYS = ("flags", "features", "isa")
"""Names of the line with the instruction sets: on x86, on ARM and s390, on RISC-V."""

_BRAND_KEYS = ("model name", "cpu model", "processor", "hardware", "uarch", "cpu")
"""Lines with the processor's name: on x86 and LoongArch, MIPS, 32-bit ARM (two), RISC-V, POWER."""

_HYBRID_BRANDS = (
    r"Core\(TM\) (Ultra |[3579] (processor )?\d{3}|i[3579]-14\d{3})|1[2-4]th Gen .* i[3579]-"
)
_NOT_HYBRID = r"i3-(N|1[2-4][13]00)|i5-12[4-6]\d0(?!K|H|P|U)"
"""Names of Intel's hybrid processors, and those among them that have one kind of cores only: Core
i3-N, and the smaller desktop models of the 12th to 14th generation (ark.intel.com)."""

_LONGEST_GOVERNOR = 16
"""Length limit of a governor's name (CPUFREQ_NAME_LEN in the kernel's linux/cpufreq.h)."""

SET_PERFORMANCE = f"echo performance | sudo tee /{CPU}/cpu*/cpufreq/scaling_governor"
"""Shell command that selects the performance governor on every CPU, without extra tools."""

_USUAL_STEAL = 0.05
"""Share of the CPU time since the start of the system from which a hypervisor's theft is usual."""


def read_host(root: str = "/") -> Host:
    """Read the Linux machine below the folder ``root``, or the running one, also macOS and Windows.
    What cannot be read is no error: it is None or the simplest value, such as one NUMA node."""
    if root == "/" and not sys.platform.startswith("linux"):
        from bitnet_tuning.machine.foreign import read_foreign_host  # noqa: PLC0415

        return read_foreign_host()
    return _read_linux(Root(root))


def read_flags() -> tuple[str, ...]:
    """Return the instruction sets of this machine's CPU, in the form of ``Host.isa``."""
    if sys.platform.startswith("linux"):
        return _read_processor(Root())[1]
    return read_host().isa


def _read_linux(root: Root) -> Host:
    mask = read_mask(root)
    topology = read_topology(root, mask)
    vendor, flags, brand = _read_processor(root)
    hybrid, cores = read_kinds(root, topology.cores, vendor)
    groups = read_cgroups(root)
    allowed = mask & topology.online or topology.online
    wsl = read_wsl(root)
    memory = read_memory(root, groups)
    mems = None
    if len(topology.nodes) > 1:  # the nodes whose memory this process may use (cpuset(7))
        listed = root.fields(_STATUS).get("Mems_allowed_list")
        mems = parse_or_none(parse_list, listed) or None
    # The kernel's MemAvailable is that of all nodes, whatever the cpuset allows.
    free = [node.free for node in topology.nodes if mems is None or node.id in mems]
    if len(free) < len(topology.nodes) and memory.available is not None and None not in free:
        memory = memory._replace(available=min(memory.available, sum(each or 0 for each in free)))
    return Host(
        online=topology.online,
        allowed=allowed,
        cores=cores,
        nodes=topology.nodes,
        hybrid=hybrid,
        quota=read_quota(root, groups),
        governor=read_governor(root, allowed),
        wsl=wsl,
        memory=memory,
        vendor=vendor,
        isa=flags,
        topology_known=topology.complete,
        brand=brand,
        mems=mems,
        cores_hidden=bool(
            hybrid is None
            and vendor == "GenuineIntel"
            and (wsl or "hypervisor" in flags)
            and re.search(_HYBRID_BRANDS, brand or "")
            and not re.search(_NOT_HYBRID, brand or "")
        ),
    )


def _read_processor(root: Root) -> tuple[str | None, tuple[str, ...], str | None]:
    """Return vendor, instruction sets and name of the first processor in /proc/cpuinfo."""
    stated: dict[str, str] = {}
    for key, value in root.pairs("proc/cpuinfo", limit=_FIRST_PROCESSORS):
        if value and not (value.isdecimal() and key.startswith("processor")):
            stated.setdefault(key.lower(), value)
    line = next((key for key in _FLAG_KEYS if key in stated), "")
    flags = stated.get(line, "")
    flags = flags.replace("_", " ") if line == "isa" else flags
    named = next((stated[key] for key in _BRAND_KEYS if key in stated), None)
    # 64-bit ARM shows only the numbers that identify the processor.
    if named is None and "cpu part" in stated:
        named = f"ARM implementer {stated.get('cpu implementer', '?')}, part {stated['cpu part']}"
    brand = named and " ".join(named.split())
    return stated.get("vendor_id"), tuple(sorted(set(flags.split()))), brand


def read_wsl(root: Root) -> int | None:
    """Return the version of WSL, 1 or 2, or None outside WSL."""
    # WSL 1 has releases such as 4.4.0-19041-Microsoft, WSL 2 such as
    # 5.15.90.1-microsoft-standard-WSL2. A kernel that the user built may have any name, but
    # WSL 2 always has /run/WSL or the handler that starts Windows programs.
    # "Linux version RELEASE (BUILDER) …": the builder of an ordinary kernel may be at Microsoft.
    release = root.read("proc/sys/kernel/osrelease")
    release = release or "".join((root.read("proc/version") or "").split()[2:3])
    if "microsoft" in release.lower():
        is_first = release.endswith("-Microsoft") and release.startswith(("3.", "4.4."))
        return 1 if is_first else 2
    if "wsl2" in release.lower() or root.exists("run/WSL"):
        return 2
    return 2 if root.exists("proc/sys/fs/binfmt_misc/WSLInterop") else None


def read_governor(root: Root, cpus: frozenset[int]) -> str | None:
    """Return the governor of ``cpus``; several are joined by commas, most frequent first. None if
    the kernel shows none, as in virtual machines and WSL."""
    counts: dict[str, int] = {}
    for cpu in sorted(cpus):
        name = root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_governor") or ""
        plain = name.replace("-", "").replace("_", "")
        if name.isascii() and plain.isalnum() and len(name) <= _LONGEST_GOVERNOR:
            counts[name] = counts.get(name, 0) + 1
    return ",".join(sorted(counts, key=lambda name: -counts[name])) or None


def count_running(root: Root) -> int:
    """Return how many tasks other than this one run or wait for a CPU now; at least 1 if a
    hypervisor often takes CPU time. It costs some 0.1 ms."""
    # proc_loadavg(5): the fourth field counts the tasks of the whole machine, this one included.
    averages = (root.read("proc/loadavg") or "").split()
    running = as_integer(averages[3].split("/")[0]) if len(averages) > 3 else None
    # proc_stat(5): user, nice, system, idle, iowait, irq, softirq, steal. Importing load.py, which
    # reads them all, would take three times as long as this, at every start.
    first = (root.read("proc/stat") or "").partition("\n")[0]
    ticks = [as_integer(word) or 0 for word in first.split()[1:9]]
    is_robbed = len(ticks) == 8 and ticks[7] > _USUAL_STEAL * (sum(ticks) - ticks[3] - ticks[4])
    return max((running or 1) - 1, int(is_robbed))


_STATUS = "proc/self/status"

_CAP_IPC_LOCK, _CAP_SYS_NICE = 1 << 14, 1 << 23
"""Bits in the mask of effective capabilities (linux/capability.h)."""


class Privileges(NamedTuple):
    """The priority and locked memory that the kernel grants this process."""

    lowest_nice: int
    """Lowest niceness (highest priority) that this process may set, -20 to 20."""
    lockable: int | None
    """Bytes of memory that this process may lock; None for no limit."""


def read_privileges(root: Root | None = None) -> Privileges:
    """Return what the resource limits and capabilities of this process permit."""
    try:
        import resource  # noqa: PLC0415
    except ImportError:  # Windows
        return Privileges(0, 0)
    held = _capabilities(root or Root())
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    # getrlimit(2): the lowest niceness is 20 minus this limit.
    ceiling = resource.getrlimit(resource.RLIMIT_NICE)[0] if hasattr(resource, "RLIMIT_NICE") else 0
    any_nice = held & _CAP_SYS_NICE or ceiling == resource.RLIM_INFINITY
    any_lock = held & _CAP_IPC_LOCK or memlock == resource.RLIM_INFINITY
    return Privileges(-20 if any_nice else 20 - ceiling, None if any_lock else memlock)


def _capabilities(root: Root) -> int:
    """Return the mask of effective capabilities that permit priorities and locked memory."""
    # Root in a container may lack capabilities. A system that shows none lets root do everything.
    try:
        effective = int(root.fields(_STATUS)["CapEff"], 16)
    except (KeyError, ValueError):
        return -1 if os.geteuid() == 0 else 0
    # Capabilities within a user namespace do not cover resources of the whole system. Only the
    # initial namespace maps all users to themselves (user_namespaces(7)).
    mapped = (root.read("proc/self/uid_map") or "").split()
    return effective if mapped in ([], ["0", "0", "4294967295"]) else 0


def read_mask(root: Root) -> frozenset[int]:
    """Return the affinity of this process, or of the machine's recorder; empty if unknown."""
    if root.live:
        try:
            return frozenset(os.sched_getaffinity(0))
        except (AttributeError, OSError):
            return frozenset()
    stated = root.fields(_STATUS)
    listed = parse_or_none(parse_list, stated.get("Cpus_allowed_list"))
    if listed is None:
        listed = parse_or_none(parse_mask, stated.get("Cpus_allowed"))
    return listed or frozenset()


def read_lock_limit(root: Root) -> float | None:
    """Return how many bytes this process, or the one that recorded the machine, may lock in
    memory: infinity for no limit, None if unknown."""
    if root.live:
        lockable = read_privileges(root).lockable
        return None if os.name == "nt" else float("inf") if lockable is None else lockable
    soft = re.search(r"Max locked memory +(\w+)", root.read("proc/self/limits") or "")
    return float("inf") if soft and soft[1] == "unlimited" else as_integer(soft and soft[1])
