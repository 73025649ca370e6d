"""Read temperature sensors, energy counters and power supplies."""

from __future__ import annotations

import re

from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.topology import read_per_cpu
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

    folder: str
    """Folder of the counter, relative to the root folder."""
    span: int | None
    """Microjoules after which the counter starts again from 0; None if unknown."""


def read_temperature(root: Root) -> Temperature | None:
    """Return the highest temperature of the processors, or None without a sensor."""
    # hwmon comes first, because it knows critical temperatures.
    found = _from_chips(root) or _from_zones(root)
    return max(found, key=lambda seen: seen.celsius, default=None)


def _from_chips(root: Root) -> list[Temperature]:
    found: list[Temperature] = []
    for folder in sorted(root.names(_SENSORS)):
        name = root.read(f"{_SENSORS}/{folder}/name") or ""
        if name not in _CHIPS:
            continue
        for file in sorted(root.names(f"{_SENSORS}/{folder}")):
            if file.startswith("temp") and file.endswith("_input"):
                stem = f"{_SENSORS}/{folder}/{file.removesuffix('_input')}"
                found += _seen(root, f"{stem}_input", name, _degrees(root, f"{stem}_crit"))
    return found


def _from_zones(root: Root) -> list[Temperature]:
    found: list[Temperature] = []
    for folder in sorted(root.names(_ZONES)):
        kind = root.read(f"{_ZONES}/{folder}/type") or ""
        named = kind.isprintable() and kind.lower().startswith(_ZONE_TYPES)
        if named and folder.startswith("thermal_zone"):
            found += _seen(root, f"{_ZONES}/{folder}/temp", kind[:20], None)
    return found


def _seen(root: Root, file: str, name: str, critical: float | None) -> list[Temperature]:
    celsius = _degrees(root, file)
    return [] if celsius is None else [Temperature(celsius, name, critical)]


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
        Domain(folder, root.integer(f"{folder}/max_energy_range_uj"))
        for folder in (f"{_POWERCAP}/{name}" for name in names)
        if (root.read(f"{folder}/name") or "").startswith("package-")
    )


def counter_file(domain: Domain) -> str:
    return f"{domain.folder}/energy_uj"


def read_counter(root: Root, domain: Domain) -> int | None:
    """Return the microjoules of an energy counter, or None if it cannot be read."""
    # Since Linux 5.10 only root can read it (CVE-2020-8694).
    value = root.integer(counter_file(domain))
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
    if "1" in outlets:
        return False
    if "Discharging" in batteries:
        return True
    return False if batteries & {"Charging", "Full", "Not charging"} else None
