"""Energy counters of the processor packages: RAPL, as Linux shows Intel's and AMD's."""

from __future__ import annotations

import re

from bitnet_tuning.host.root import Root
from bitnet_tuning.records import NamedTuple

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
