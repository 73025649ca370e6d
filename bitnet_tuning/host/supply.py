"""Mains or battery."""

from __future__ import annotations

from bitnet_tuning.host.root import Root

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
