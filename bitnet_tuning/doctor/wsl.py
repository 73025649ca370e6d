"""Linux inside Windows: version, .wslconfig, binding; pure. Silent outside of WSL."""

from __future__ import annotations

from math import ceil

from bitnet_tuning.console import GIBIBYTE
from bitnet_tuning.doctor.case import BENCHMARK, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.doctor.model import gigabytes, need, needed

ROOM = 3 * GIBIBYTE
"""Bytes for everything else in the virtual machine: an idle one takes half a GiB, an editor's
server one to two."""

APPLIED = 0.85
"""Least share of ``memory=`` that Linux shows as MemTotal: the kernel keeps some for itself."""

_RESTART = "wsl.exe --shutdown"


def _version(case: Case) -> Finding | None:
    if case.host.wsl is None:
        return None
    if case.host.wsl == 1:
        return bad(
            "WSL 1 translates every system call and has no Linux kernel",
            "in Windows: wsl.exe --set-version NAME 2 (NAME as wsl.exe --list shows it)",
        )
    return good("WSL 2")


def _memory(case: Case) -> Finding | None:
    """Judge by the tightest of several users' files: which of them applies is not known."""
    if case.host.wsl != 2:
        return None
    total = case.machine_memory.total
    limits = [(config.memory, config.path) for config in case.wsl_configs if config.memory]
    if not limits:
        return _default_memory(case, total)
    memory, path = min(limits)
    text = f"{path} gives WSL {memory / GIBIBYTE:.3g} GB of memory"
    raised = ceil((need(case) + ROOM) / GIBIBYTE)
    remedy = f"memory={raised}GB or more in {path}, then {_RESTART}"
    if memory < need(case):
        return bad(f"{text}, {needed(case)}", remedy)
    if memory < need(case) + ROOM:
        return warn(f"{text}, {needed(case)}: little is left for everything else", remedy)
    if total is not None and not APPLIED * memory <= total <= memory:
        return warn(f"{text}, but it has {gigabytes(total)}", f"{_RESTART} applies the file")
    return good(text)


def _default_memory(case: Case, total: int | None) -> Finding:
    """Judge WSL without a limit: it gets half of Windows' memory (Microsoft's documentation)."""
    if total is None:
        return unknown("no memory= in a .wslconfig that can be read, and no MemTotal")
    text = f"WSL has {gigabytes(total)}, its default share; {needed(case)}"
    if total >= need(case) + ROOM:
        return good(text)
    return warn(
        f"{text}: little is left for everything else",
        f"memory=8GB below [wsl2] in C:\\Users\\NAME\\.wslconfig, then {_RESTART}",
    )


def _processors(case: Case) -> Finding | None:
    if case.host.wsl != 2:
        return None
    online = len(case.host.online)
    limits = [(config.processors, config.path) for config in case.wsl_configs if config.processors]
    if not limits:
        return good(f"no .wslconfig limits processors: WSL has {online}")
    processors, path = min(limits)
    text = f"{path} gives WSL {processors} processors"
    if processors != online:
        return warn(f"{text}, but it has {online}", f"{_RESTART} applies the file")
    return warn(
        f"{text}; Windows may have more", f"remove processors= from {path}, then {_RESTART}"
    )


def _config(case: Case) -> Finding | None:
    """Judge whether the files can be parsed."""
    if case.host.wsl != 2:
        return None
    for config in case.wsl_configs:
        if config.problems:
            return warn(
                f"{config.path} cannot be parsed: {'; '.join(config.problems)}",
                f"sizes are whole numbers with MB or GB, as in memory=8GB; then {_RESTART}",
            )
    if not case.wsl_configs:
        return good("no .wslconfig that can be read: Windows' defaults apply")
    return good(", ".join(config.path for config in case.wsl_configs))


def _binding(case: Case) -> Finding | None:
    if case.host.wsl is None:
        return None
    if case.known_profile:
        return good("the gain from binding threads was measured here")
    return unknown(
        "binding threads has a limited effect: Windows moves the virtual processors, and shows "
        "performance and efficiency cores as one kind",
        f"{BENCHMARK} measures whether binding helps here",
    )


CHECKS: tuple[Check, ...] = (
    ("WSL version", _version, "Microsoft: Comparing WSL versions"),
    ("WSL memory", _memory, "Microsoft: Advanced settings configuration in WSL, memory="),
    ("WSL processors", _processors, "Microsoft: Advanced settings in WSL, processors="),
    ("WSL config", _config, "Microsoft: Advanced settings configuration in WSL"),
    ("WSL thread binding", _binding, "the hypervisor schedules virtual processors by itself"),
)
