"""How hot the processor is, and whether it was slowed down for it."""

from __future__ import annotations

import re

from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.topology import CPU
from bitnet_tuning.namedtuple import NamedTuple

_ZONES = "sys/class/thermal"
_SENSORS = "sys/class/hwmon"

_ZONE_TYPES = ("x86_pkg_temp", "cpu", "tcpu", "soc", "bigcore", "littlecore")
"""Beginnings of the types of zones that stand for a processor; ``acpitz`` may be any spot
of the board and is not among them."""
_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
"""hwmon drivers of processors: Intel, AMD, AMD, many ARM boards."""


class Temperature(NamedTuple):
    """Of the hottest processor sensor."""

    celsius: float
    sensor: str
    """The kernel's name for what was read."""
    critical: float | None = None
    """Degrees Celsius at which the hardware acts, where the sensor says so."""


def read_temperature(root: Root) -> Temperature | None:
    """From hwmon, which knows a critical point, else from the thermal zones."""
    found = _from_sensors(root) or _from_zones(root)
    return max(found, key=lambda seen: seen.celsius, default=None)


def _from_sensors(root: Root) -> list[Temperature]:
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
    """Kernel files hold thousandths; sensors that are not there show 0 or absurd values."""
    value = root.integer(file)
    return value / 1000 if value is not None and 0 < value < 150_000 else None


def read_throttle_events(root: Root, cpus: frozenset[int]) -> int | None:
    """How often heat lowered the clock since the start of the system, counted on every CPU:
    only its growth means something. None where it is not counted (not Intel, most VMs)."""
    names = ("package_throttle_count", "core_throttle_count")
    counts = [
        root.integer(f"{CPU}/cpu{cpu}/thermal_throttle/{name}") for cpu in cpus for name in names
    ]
    known = [count for count in counts if count is not None and count >= 0]
    return sum(known) if known else None


POWERCAP = "sys/class/powercap"
_PACKAGE = re.compile(r"intel-rapl:[0-9]+", re.ASCII)
"""AMD's have this name as well. ``intel-rapl-mmio`` counts the same energy a second time,
``intel-rapl:0:1`` a part of its package."""


class Domain(NamedTuple):
    """One package's counter."""

    folder: str
    """Relative to the root folder."""
    span: int | None
    """Microjoules after which it starts again from 0."""


def read_domains(root: Root) -> tuple[Domain, ...]:
    """The counters of whole packages (``package-0``, …), readable or not; the machine's
    own (``psys``), which not every machine has, is none of them."""
    folders = (
        f"{POWERCAP}/{name}" for name in sorted(root.names(POWERCAP)) if _PACKAGE.fullmatch(name)
    )
    return tuple(
        Domain(folder, root.integer(f"{folder}/max_energy_range_uj"))
        for folder in folders
        if (root.read(f"{folder}/name") or "").startswith("package-")
    )


def counter_file(domain: Domain) -> str:
    return f"{domain.folder}/energy_uj"


def read_counter(root: Root, domain: Domain) -> int | None:
    """Microjoules. Readable by root alone since Linux 5.10 (CVE-2020-8694)."""
    value = root.integer(counter_file(domain))
    return value if value is not None and value >= 0 else None


_SUPPLIES = "sys/class/power_supply"


def read_on_battery(root: Root) -> bool | None:
    """Whether the machine runs on its battery. None where no supply tells: most desktops,
    servers and virtual machines show none.

    A mouse's battery is a supply too; its ``scope`` is Device.
    """
    kinds = {name: _text(root, name, "type") for name in root.names(_SUPPLIES)}
    outlets = [
        root.integer(f"{_SUPPLIES}/{name}/online")
        for name, kind in kinds.items()
        if kind in ("Mains", "USB", "Wireless")
    ]
    if 1 in outlets:
        return False
    states = {
        _text(root, name, "status")
        for name, kind in kinds.items()
        if kind == "Battery" and _text(root, name, "scope") != "Device"
    }
    if "Discharging" in states:
        return True
    return False if states & {"Charging", "Full", "Not charging"} else None


def _text(root: Root, name: str, file: str) -> str:
    return root.read(f"{_SUPPLIES}/{name}/{file}") or ""
