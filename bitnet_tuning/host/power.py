"""The frequency governor."""

from __future__ import annotations

import re

from bitnet_tuning.host.root import Root
from bitnet_tuning.host.topology import CPU
from bitnet_tuning.records import NamedTuple

PERFORMANCE = "performance"

SET_PERFORMANCE = f"echo {PERFORMANCE} | sudo tee /{CPU}/cpu*/cpufreq/scaling_governor"
"""Sets it on every CPU, without any tool to install."""

_NAME = re.compile(r"[\w-]{1,16}", re.ASCII)
"""The kernel allows 16 bytes (CPUFREQ_NAME_LEN)."""

_FOLDER = re.compile(rf"{CPU}/(?:cpufreq/policy\d+|cpu\d+/cpufreq)", re.ASCII)


class Policy(NamedTuple):
    """CPUs that the kernel clocks together."""

    folder: str
    """Below the root; links are followed."""
    cpus: frozenset[int]
    """Those of it that were asked for."""
    governor: str
    offered: frozenset[str]
    """Governors that it can have; empty where the kernel does not say."""


def read_governor(root: Root, cpus: frozenset[int]) -> str | None:
    """The governor of ``cpus``; several are joined by commas, most frequent first.

    None where the kernel shows none, as in virtual machines and WSL.
    """
    counts: dict[str, int] = {}
    for cpu in sorted(cpus):
        # CPUs without cpufreq may come before ones that have it.
        name = governor_in(root, f"{CPU}/cpu{cpu}/cpufreq")
        if name is not None:
            counts[name] = counts.get(name, 0) + 1
    return ",".join(sorted(counts, key=lambda name: -counts[name])) or None


def governor_in(root: Root, folder: str) -> str | None:
    """The governor of one policy, or None."""
    name = root.read(f"{folder}/scaling_governor") or ""
    return name if is_governor(name) else None


def read_policies(root: Root, cpus: frozenset[int]) -> tuple[Policy, ...]:
    """The policies of ``cpus``, those without a governor left out. On a kernel of today the
    ``cpufreq`` folder of a CPU is a link to its policy's; folders that are none are policies
    of one CPU each."""
    members: dict[str, set[int]] = {}
    for cpu in sorted(cpus):
        named = f"{CPU}/cpu{cpu}/cpufreq"
        folder = root.real(named)
        members.setdefault(folder if is_policy(folder) else named, set()).add(cpu)
    found = []
    for folder, group in members.items():
        governor = governor_in(root, folder)
        if governor is not None:
            offered = (root.read(f"{folder}/scaling_available_governors") or "").split()
            found.append(Policy(folder, frozenset(group), governor, frozenset(offered)))
    return tuple(found)


def is_policy(folder: str) -> bool:
    """Whether a policy's governor may be looked for there."""
    return _FOLDER.fullmatch(folder) is not None


def is_governor(name: str) -> bool:
    return _NAME.fullmatch(name) is not None
