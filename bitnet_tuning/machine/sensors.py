"""Read clock rates, temperature sensors, energy counters and power supplies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress

from bitnet_tuning.machine.root import Root, as_integer
from bitnet_tuning.machine.topology import CPU, read_per_cpu
from bitnet_tuning.namedtuple import NamedTuple

_ZONES = "sys/class/thermal"
_SENSORS = "sys/class/hwmon"
_POWERCAP = "sys/class/powercap"
_SUPPLIES = "sys/class/power_supply"

_ZONE_TYPES = ("x86_pkg_temp", "cpu", "tcpu", "soc", "bigcore", "littlecore")
"""Prefixes of the types of thermal zones that belong to a processor. ``acpitz`` is not among
them, because it may be any place on the board."""
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
"""hwmon drivers for the temperature of processors: of Intel, of AMD (two), of many ARM boards."""

_PACKAGE = re.compile(r"intel-rapl:[0-9]+", re.ASCII)
"""Names of energy counters, also on AMD (power/powercap/powercap.rst). ``intel-rapl-mmio``
repeats a counter, and ``intel-rapl:0:1`` is a part of package 0."""


class Temperature(NamedTuple):
    """The temperature at the hottest sensor of the processors."""

    celsius: float
    sensor: str
    """The kernel's name of the sensor's driver or type."""
    critical: float | None = None
    """Critical temperature in °C, if the sensor has one."""


class Domain(NamedTuple):
    """The energy counter of one package."""

    file: str
    """File of the counter, relative to the root folder."""
    span: int | None
    """Microjoules after which the counter starts again from 0; None if unknown."""


def read_temperature(root: Root) -> Temperature | None:
    """Return the highest temperature of the processors, or None without a sensor."""
    # hwmon comes first, because it knows critical temperatures.
    for sensors in (_chips(root), _zones(root)):
        shown = ((_degrees(root, file), name, critical) for file, name, critical in sensors)
        found = [
            Temperature(now, name, critical) for now, name, critical in shown if now is not None
        ]
        if found:
            return max(found, key=lambda seen: seen.celsius)
    return None


def _chips(root: Root) -> Iterator[tuple[str, str, float | None]]:
    """Yield the file of each sensor of a processor, its name and its critical temperature."""
    for folder in sorted(root.names(_SENSORS)):
        name = root.read(f"{_SENSORS}/{folder}/name") or ""
        files = sorted(root.names(f"{_SENSORS}/{folder}")) if name in _CHIPS else ()
        for file in files:
            if file.startswith("temp") and file.endswith("_input"):
                stem = f"{_SENSORS}/{folder}/{file.removesuffix('_input')}"
                yield f"{stem}_input", name, _degrees(root, f"{stem}_crit")


def _zones(root: Root) -> Iterator[tuple[str, str, None]]:
    for folder in sorted(root.names(_ZONES)):
        kind = root.read(f"{_ZONES}/{folder}/type") or ""
        named = kind.isprintable() and kind.lower().startswith(_ZONE_TYPES)
        if named and folder.startswith("thermal_zone"):
            yield f"{_ZONES}/{folder}/temp", kind[:20], None


def _degrees(root: Root, file: str) -> float | None:
    # Files are in thousandths of a degree; sensors that are absent show 0 or absurd values.
    value = root.integer(file)
    return value / 1000 if value is not None and 0 < value < 150_000 else None


def read_throttle_events(root: Root, cpus: frozenset[int]) -> int | None:
    """Return a counter, of which only the growth is meaningful, of the times that heat lowered the
    clock; None if the kernel has none, as on AMD and ARM and in most virtual machines."""
    # The CPUs of a package share a counter, which is then added more than once.
    packages = read_per_cpu(root, cpus, "thermal_throttle/package_throttle_count")
    counts = packages + read_per_cpu(root, cpus, "thermal_throttle/core_throttle_count")
    return sum(counts) if counts else None


def read_domains(root: Root) -> tuple[Domain, ...]:
    """Return the energy counters of the packages, including those that cannot be read."""
    # Some machines also have a counter "psys" for the whole machine.
    names = (name for name in sorted(root.names(_POWERCAP)) if _PACKAGE.fullmatch(name))
    return tuple(
        Domain(f"{folder}/energy_uj", root.integer(f"{folder}/max_energy_range_uj"))
        for folder in (f"{_POWERCAP}/{name}" for name in names)
        if (root.read(f"{folder}/name") or "").startswith("package-")
    )


def read_counter(root: Root, domain: Domain) -> int | None:
    """Return the microjoules of an energy counter, or None if it cannot be read."""
    # Since Linux 5.10 only root can read it (CVE-2020-8694).
    value = root.integer(domain.file)
    return value if value is not None and value >= 0 else None


def read_on_battery(root: Root) -> bool | None:
    """Return whether the machine runs on battery; None if no power supply tells, as on most
    desktops, servers and virtual machines."""
    # The battery of a mouse is a power supply of scope "Device" (ABI/testing/sysfs-class-power).
    outlets, batteries = set(), set()
    for name in root.names(_SUPPLIES):
        kind, scope, online, status = (
            root.read(f"{_SUPPLIES}/{name}/{file}") or ""
            for file in ("type", "scope", "online", "status")
        )
        if kind in ("Mains", "USB", "Wireless"):
            outlets.add(online)
        elif kind == "Battery" and scope != "Device":
            batteries.add(status)
    if "1" not in outlets and "Discharging" in batteries:
        return True
    charged = batteries & {"Charging", "Full", "Not charging"}
    return False if "1" in outlets or charged else None


_HIGHEST_MHZ, _HIGHEST_BASE_MHZ = 20_000, 10_000
"""Highest plausible clock and base clock; a larger value in a file is an error."""

_IN_BRAND = r"@ *([0-9.]{1,6}) *GHz"


class Clock(NamedTuple):
    """The clock rates of a set of CPUs. An idle CPU may show a low rate."""

    mean_mhz: float
    min_mhz: float
    max_mhz: float
    limit_mhz: float | None = None
    """Highest clock that the current settings allow the fastest CPU."""
    highest_mhz: float | None = None
    """Highest clock that the hardware of the fastest CPU supports."""


def read_clock(root: Root, cpus: frozenset[int]) -> Clock | None:
    """Return the clock rates of ``cpus`` from cpufreq or ``proc/cpuinfo``; None if neither shows
    them, as on most ARM machines without cpufreq."""
    now = _cpufreq(root, cpus, "scaling_cur_freq") or _from_cpuinfo(root, cpus)
    if not now:
        return None
    return Clock(
        mean_mhz=sum(now) / len(now),
        min_mhz=min(now),
        max_mhz=max(now),
        limit_mhz=max(_cpufreq(root, cpus, "scaling_max_freq"), default=None),
        highest_mhz=max(_cpufreq(root, cpus, "cpuinfo_max_freq"), default=None),
    )


def _cpufreq(root: Root, cpus: frozenset[int], name: str) -> list[float]:
    # The files of cpufreq are in kHz (admin-guide/pm/cpufreq.rst).
    clocks = [value / 1000 for value in read_per_cpu(root, cpus, f"cpufreq/{name}")]
    return [clock for clock in clocks if 0 < clock <= _HIGHEST_MHZ]


def _from_cpuinfo(root: Root, cpus: frozenset[int]) -> list[float]:
    # x86 writes "cpu MHz : 3800.000", POWER writes "clock : 3800.000000MHz".
    found: list[float] = []
    cpu: int | None = None
    for key, value in root.pairs("proc/cpuinfo", limit=1 << 24):
        if key == "processor":
            cpu = as_integer(value)
        elif key in ("cpu MHz", "clock") and cpu in cpus:
            with suppress(ValueError):
                found.append(float(value.removesuffix("MHz")))
    return [clock for clock in found if 0 < clock <= _HIGHEST_MHZ]


def read_base_clock(root: Root, cpus: frozenset[int], brand: str | None) -> float | None:
    """Return the base clock of the fastest of ``cpus`` in MHz from intel_pstate, ACPI, or the
    processor's name ``brand`` (``… @ 2.10GHz``); None if it is unknown."""
    # kHz in admin-guide/pm/intel_pstate.rst, MHz in admin-guide/acpi/cppc_sysfs.rst.
    for name, factor in (("cpufreq/base_frequency", 1000), ("acpi_cppc/nominal_freq", 1)):
        clocks = [value / factor for value in read_per_cpu(root, cpus, name)]
        if known := [clock for clock in clocks if 0 < clock <= _HIGHEST_BASE_MHZ]:
            return max(known)
    named = re.search(_IN_BRAND, brand or "", re.ASCII)
    try:
        return float(named[1]) * 1000 if named else None
    except ValueError:
        return None


def read_driver(root: Root, cpus: frozenset[int]) -> str | None:
    """Return the cpufreq driver, which decides what a governor does, or None if there is none."""
    names = (root.read(f"{CPU}/cpu{cpu}/cpufreq/scaling_driver") for cpu in sorted(cpus))
    return next((name for name in names if name and name.isprintable() and len(name) <= 16), None)
