"""Fake machines: a folder with files of ``sys`` and ``proc`` as a kernel would show them.

Every method writes files and returns the machine, so that calls can be chained::

    host = Machine(tmp_path).cores([[0, 4], [1, 5]]).node(0, [0, 1, 4, 5]).host()

A new ``Machine`` is an empty folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from bitnet_tuning.machine.conditions import Conditions, take
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root

CPU = "sys/devices/system/cpu"
NODE = "sys/devices/system/node"
CGROUP = "sys/fs/cgroup"
GIBIBYTE = 1 << 30


class Machine:
    """A machine whose root is the folder ``path``, which is created if needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.online: set[int] = set()
        path.mkdir(parents=True, exist_ok=True)

    def host(self) -> Host:
        return read_host(str(self.path))

    def conditions(self) -> Conditions:
        """A snapshot of its state, taken without waiting."""
        return take(self.host(), Root(str(self.path)), 0)

    # Any file

    def write(self, name: str, content: str | bytes | int) -> Machine:
        """Write a file below the root; texts and numbers get a newline at the end."""
        path = self.path / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
        return self

    def append(self, name: str, line: str) -> Machine:
        path = self.path / name
        before = path.read_text() if path.exists() else ""
        return self.write(name, before.encode() + f"{line}\n".encode())

    def remove(self, name: str) -> Machine:
        (self.path / name).unlink()
        return self

    # CPUs

    def regular(
        self, cores: int, threads: int = 1, packages: int = 1, node_per_package: bool = False
    ) -> Machine:
        """Add ``packages`` of ``cores`` with ``threads`` each, numbered as Linux does on x86: the
        first threads of all cores, then the second ones."""
        every = packages * cores
        for package in range(packages):
            mine = range(package * cores, (package + 1) * cores)
            groups = [[core + every * thread for thread in range(threads)] for core in mine]
            self.cores(groups, package)
            if node_per_package:
                self.node(package, sorted(cpu for group in groups for cpu in group))
        return self

    def cores(
        self,
        groups: Sequence[Sequence[int]],
        package: int = 0,
        *,
        masks: bool = False,
        new_names: bool = False,
        core_ids: Sequence[int] | None = None,
        end: bytes = b"\n",
    ) -> Machine:
        """Add cores of one package, each a group of sibling CPUs that are online.

        ``masks`` writes bit masks instead of lists, ``new_names`` writes core_cpus instead of
        thread_siblings, and ``end`` ends those files. Core ids start from 0 in each call.
        """
        for index, group in enumerate(groups):
            for cpu in group:
                topology = f"{CPU}/cpu{cpu}/topology"
                name = "core_cpus" if new_names else "thread_siblings"
                text = _mask(group) if masks else _list(group)
                self.write(f"{topology}/{name}{'' if masks else '_list'}", text.encode() + end)
                self.write(f"{topology}/physical_package_id", package)
                self.write(f"{topology}/core_id", core_ids[index] if core_ids else index)
            self.online.update(group)
        return self.write(f"{CPU}/online", _list(self.online))

    def bare_cpus(self, cpus: Iterable[int]) -> Machine:
        """Add CPUs that are online, without a topology."""
        self.online.update(cpus)
        for cpu in self.online:
            (self.path / f"{CPU}/cpu{cpu}").mkdir(parents=True, exist_ok=True)
        return self.write(f"{CPU}/online", _list(self.online))

    def offline(self, *cpus: int) -> Machine:
        """Switch CPUs off as a current kernel does: without a topology folder, not among the
        siblings, and with 0 in ``cpuN/online``. Only for cores that were written as lists."""
        self.online.difference_update(cpus)
        for cpu in cpus:
            for file in (self.path / f"{CPU}/cpu{cpu}/topology").iterdir():
                file.unlink()
            (self.path / f"{CPU}/cpu{cpu}/topology").rmdir()
            self.write(f"{CPU}/cpu{cpu}/online", 0)
        for path in (self.path / CPU).glob("cpu*/topology/*_list"):
            left = [cpu for cpu in _cpus(path.read_text().strip()) if cpu in self.online]
            path.write_text(_list(left) + "\n")
        return self.write(f"{CPU}/online", _list(self.online))

    def per_cpu(self, name: str, values: Mapping[int, int | str]) -> Machine:
        """Write a file in the folder of each CPU."""
        for cpu, value in values.items():
            self.write(f"{CPU}/cpu{cpu}/{name}", value)
        return self

    def frequencies(self, kilohertz: Mapping[int, int]) -> Machine:
        return self.per_cpu("cpufreq/cpuinfo_max_freq", kilohertz)

    def capacities(self, values: Mapping[int, int]) -> Machine:
        return self.per_cpu("cpu_capacity", values)

    def governors(self, names: Mapping[int, str]) -> Machine:
        return self.per_cpu("cpufreq/scaling_governor", names)

    def intel_kinds(self, core: str, atom: str, low_power: str | None = None) -> Machine:
        """Write the kernel's lists of performance and efficiency CPUs."""
        self.write("sys/devices/cpu_core/cpus", core)
        self.write("sys/devices/cpu_atom/cpus", atom)
        return self if low_power is None else self.write("sys/devices/cpu_lowpower/cpus", low_power)

    def hybrid(self, performance: int, efficiency: int, threads: int = 2) -> Machine:
        """Add performance cores with ``threads`` each on the first CPUs, then efficiency cores with
        one each, as on an Intel hybrid."""
        fast = [list(range(core * threads, (core + 1) * threads)) for core in range(performance)]
        first = performance * threads
        slow = [[first + core] for core in range(efficiency)]
        return self.cores(fast + slow).intel_kinds(
            _list(range(first)), _list(range(first, first + efficiency))
        )

    # Nodes and memory

    def node(self, number: int, cpus: Iterable[int] = (), *, mask: bool = False) -> Machine:
        """Add a NUMA node; without CPUs it has only memory."""
        cpus = list(cpus)
        name = "cpumap" if mask else "cpulist"
        return self.write(f"{NODE}/node{number}/{name}", _mask(cpus) if mask else _list(cpus))

    def meminfo(self, total: int, available: int | None = None) -> Machine:
        """Write the total and available bytes of memory."""
        self.write("proc/meminfo", f"MemTotal:       {total // 1024} kB".encode() + b"\n")
        if available is not None:
            self.append("proc/meminfo", f"MemAvailable:   {available // 1024} kB")
        return self

    # Limits

    def affinity(self, cpus: str) -> Machine:
        """Write ``proc/self/status`` with this list of allowed CPUs."""
        text = f"Name:\tpython3\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t0\n"
        return self.write("proc/self/status", text.encode())

    def cgroup2(
        self,
        path: str = "/",
        files: Mapping[str, object] | None = None,
        *,
        mount: str = f"/{CGROUP}",
        origin: str = "/",
    ) -> Machine:
        """Put this process into group ``path`` of a version 2 hierarchy.

        The names of ``files`` start at the mount point: ``{"a/b/cpu.max": "50000 100000"}``.
        """
        self.append("proc/self/cgroup", f"0::{path}")
        self._mounted(mount, origin, "cgroup2", "rw,nsdelegate")
        return self._group_files(mount, files or {})

    def cgroup1(
        self,
        controllers: str,
        path: str = "/",
        files: Mapping[str, object] | None = None,
        *,
        mount: str | None = None,
        origin: str = "/",
    ) -> Machine:
        """Put this process into group ``path`` of a version 1 hierarchy, as ``cpu,cpuacct``."""
        point = mount or f"/{CGROUP}/{controllers}"
        number = 2 + self._lines("proc/self/cgroup")
        self.append("proc/self/cgroup", f"{number}:{controllers}:{path}")
        self._mounted(point, origin, "cgroup", f"rw,{controllers}")
        return self._group_files(point, files or {})

    def _mounted(self, point: str, origin: str, kind: str, options: str) -> None:
        number = 30 + self._lines("proc/self/mountinfo")
        escaped = point.replace(" ", "\\040")
        self.append(
            "proc/self/mountinfo",
            f"{number} 25 0:{number} {origin} {escaped} rw,nosuid shared:9 - {kind} none {options}",
        )

    def _group_files(self, mount: str, files: Mapping[str, object]) -> Machine:
        (self.path / mount.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            self.write(f"{mount}/{name}", str(content))
        return self

    def _lines(self, name: str) -> int:
        path = self.path / name
        return len(path.read_text().splitlines()) if path.exists() else 0

    # The state around a measurement

    def cpu_times(self, *ticks: int) -> Machine:
        """Write ``proc/stat``: user, nice, system, idle, iowait, irq, softirq, steal, …"""
        words = " ".join(str(count) for count in ticks)
        return self.write("proc/stat", f"cpu  {words}\ncpu0 {words}\nctxt 1\nprocs_running 1")

    def program(
        self,
        pid: int,
        name: str,
        ticks: int = 0,
        family: int = 0,
        start: int = 0,
        parent: int = 1,
        nice: int = 0,
    ) -> Machine:
        """A process that used ``ticks`` of CPU time, and its ended children ``family`` ticks."""
        before, middle = f"{pid} ({name}) S {parent} " + "0 " * 9, f"{ticks} 0 {family} 0 "
        return self.write(f"proc/{pid}/stat", f"{before}{middle}20 {nice} 1 0 {start} 0 0")

    def cache(self, cpus: Iterable[int], level: int, size: str, kind: str = "Unified") -> Machine:
        """Add a cache that these CPUs share; its index is its level."""
        cpus = list(cpus)
        files: dict[str, int | str] = {
            "level": level,
            "size": size,
            "type": kind,
            "shared_cpu_list": _list(cpus),
        }
        for name, content in files.items():
            self.per_cpu(f"cache/index{level}/{name}", dict.fromkeys(cpus, content))
        return self

    def rapl(
        self, name: str, microjoules: int | str, span: int | None = None, label: str = "package-0"
    ) -> Machine:
        """Add an energy counter such as ``intel-rapl:0``."""
        folder = f"sys/class/powercap/{name}"
        if span is not None:
            self.write(f"{folder}/max_energy_range_uj", span)
        return self.write(f"{folder}/name", label).write(f"{folder}/energy_uj", microjoules)

    def supply(self, name: str, kind: str, **files: str) -> Machine:
        """Add a mains adapter or a battery."""
        for file, content in {"type": kind, **files}.items():
            self.write(f"sys/class/power_supply/{name}/{file}", content)
        return self

    # Facts for the doctor

    def mount(self, point: str, kind: str, source: str = "none", options: str = "rw") -> Machine:
        """Add a line to ``proc/self/mountinfo``, with escaped spaces and backslashes."""
        number = 30 + self._lines("proc/self/mountinfo")
        shown = [text.replace("\\", "\\134").replace(" ", "\\040") for text in (point, source)]
        return self.append(
            "proc/self/mountinfo",
            f"{number} 25 0:{number} / {shown[0]} rw,noatime - {kind} {shown[1]} {options}",
        )

    def windows_drive(self, point: str = "/mnt/c") -> Machine:
        """Mount drive C: as WSL 2 does."""
        return self.mount(point, "9p", "C:\\", "rw,aname=drvfs;path=C:\\134;uid=1000")

    def wsl_config(self, text: str, user: str = "Ada Example") -> Machine:
        return self.write(f"mnt/c/Users/{user}/.wslconfig", text)

    def clock(self, megahertz: float, highest: float | None = None) -> Machine:
        """Write the present and the highest possible clock of every CPU."""
        cpus = sorted(self.online)
        self.per_cpu("cpufreq/scaling_cur_freq", dict.fromkeys(cpus, int(megahertz * 1000)))
        return self if highest is None else self.frequencies({c: int(highest * 1000) for c in cpus})

    def swap(self, total: int, used: int) -> Machine:
        """Add the bytes of swap to those of ``meminfo``, which must be called before."""
        self.append("proc/meminfo", f"SwapTotal:      {total // 1024} kB")
        return self.append("proc/meminfo", f"SwapFree:       {(total - used) // 1024} kB")

    def lock_limit(self, soft: int | str) -> Machine:
        """Write ``proc/self/limits`` with this RLIMIT_MEMLOCK."""
        head = "Limit                     Soft Limit           Hard Limit           Units"
        line = f"Max locked memory         {soft:<20} {soft:<20} bytes"
        return self.write("proc/self/limits", f"{head}\n{line}")

    def huge_pages(self, chosen: str) -> Machine:
        words = (f"[{w}]" if w == chosen else w for w in ("always", "madvise", "never"))
        return self.write("sys/kernel/mm/transparent_hugepage/enabled", " ".join(words))

    # The kernel and the processor

    def kernel(self, release: str, version: str | None = None) -> Machine:
        """Write ``osrelease`` and ``proc/version``, which also says who built the kernel."""
        self.write("proc/sys/kernel/osrelease", release)
        builder = "(build@host) (gcc 12.2.0) #1 SMP"
        return self.write("proc/version", version or f"Linux version {release} {builder}")

    def cpuinfo(self, entries: Iterable[str]) -> Machine:
        """Write ``proc/cpuinfo`` with one block of lines per processor."""
        return self.write("proc/cpuinfo", "\n\n".join(entries))


def x86_entries(
    count: int,
    flags: str = "fpu sse4_2 avx2 fma",
    vendor: str = "GenuineIntel",
    brand: str = "Some CPU",
) -> list[str]:
    """Return ``count`` entries of an x86 ``proc/cpuinfo``."""
    return [
        f"processor\t: {cpu}\nvendor_id\t: {vendor}\nmodel name\t: {brand}\nflags\t\t: {flags}"
        for cpu in range(count)
    ]


def _list(cpus: Iterable[int]) -> str:
    """Return a list without ranges, unlike the package's format_list: ``0,1,2``."""
    return ",".join(str(cpu) for cpu in sorted(set(cpus)))


def _mask(cpus: Iterable[int]) -> str:
    """Return words of 32 bits, the highest first, such as ``00000001,00000003``."""
    value = sum(1 << cpu for cpu in set(cpus))
    words = [value >> shift & 0xFFFFFFFF for shift in range(0, max(1, value.bit_length()), 32)]
    return ",".join(f"{word:08x}" for word in reversed(words))


def _cpus(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part]
