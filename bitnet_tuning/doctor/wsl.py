"""Checks of WSL: its version and .wslconfig. Outside of WSL none applies."""

from __future__ import annotations

from math import ceil

from bitnet_tuning.console import GIBIBYTE, counted, size_text
from bitnet_tuning.doctor.case import Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.doctor.model import need, needed

ROOM = 3 * GIBIBYTE
"""Number of bytes to leave for everything else in the virtual machine: an idle one takes half a
GiB, the server of an editor 1 to 2 GiB."""

APPLIED = 0.85
"""Share of ``memory=`` that Linux shows at least as MemTotal: the kernel keeps some for itself."""

_RESTART = "wsl.exe --shutdown"
_APPLY = f"restart WSL so that the file takes effect: {_RESTART}"


def _version(case: Case) -> Finding | None:
    if case.host.wsl is None:
        return None
    if case.host.wsl == 1:
        return bad(
            "WSL 1 has no Linux kernel and translates every system call, which is slow",
            "convert it in Windows: wsl.exe --set-version NAME 2 (wsl.exe --list shows the NAME)",
        )
    return good("WSL 2")


def _memory(case: Case) -> Finding | None:
    if case.host.wsl != 2:
        return None
    # Each Windows user may have a file, and which one applies is not known: take the tightest.
    total = case.machine_memory.total
    limits = [(config.memory, config.path) for config in case.wsl_configs if config.memory]
    if not limits:
        return _default_memory(case, total)
    memory, path = min(limits)
    text = f"{path} gives WSL {size_text(memory)} of memory"
    raised = ceil((need(case) + ROOM) / GIBIBYTE)
    remedy = f"set memory={raised}GB or more in {path}, then run: {_RESTART}"
    if memory < need(case):
        return bad(f"{text}, {needed(case)}", remedy)
    if memory < need(case) + ROOM:
        return warn(f"{text}, {needed(case)}: little is left for everything else", remedy)
    if total is not None and not APPLIED * memory <= total <= memory:
        return warn(f"{text}, but it has {size_text(total)}", _APPLY)
    return good(text)


def _default_memory(case: Case, total: int | None) -> Finding:
    # Without memory= WSL gets half of Windows' memory (Microsoft's documentation).
    if total is None:
        return unknown("the memory of WSL is not known: no readable .wslconfig sets memory=")
    text = f"WSL has {size_text(total)} of memory, its default share; {needed(case)}"
    if total >= need(case) + ROOM:
        return good(text)
    advice = f"set memory=8GB below [wsl2] in C:\\Users\\NAME\\.wslconfig, then run: {_RESTART}"
    return warn(f"{text}: little is left for everything else", advice)


def _processors(case: Case) -> Finding | None:
    if case.host.wsl != 2:
        return None
    online = len(case.host.online)
    limits = [(config.processors, config.path) for config in case.wsl_configs if config.processors]
    if not limits:
        return good(f"no .wslconfig limits the CPUs: WSL has {online}")
    processors, path = min(limits)
    text = f"{path} gives WSL {counted(processors, 'CPU')}"
    if processors != online:
        return warn(f"{text}, but it has {online}", _APPLY)
    remedy = f"remove processors= from {path}, then run: {_RESTART}"
    return warn(f"{text}; Windows may have more CPUs", remedy)


def _config(case: Case) -> Finding | None:
    if case.host.wsl != 2:
        return None
    for config in case.wsl_configs:
        if config.problems:
            return warn(
                f"{config.path} cannot be parsed: {'; '.join(config.problems)}",
                "correct it: sizes are whole numbers with MB or GB, such as memory=8GB; then run: "
                f"{_RESTART}",
            )
    found = ", ".join(config.path for config in case.wsl_configs)
    return good(found or "no readable .wslconfig: Windows' defaults apply")


_SETTINGS = "Microsoft: Advanced settings configuration in WSL"

CHECKS: tuple[Check, ...] = (
    ("WSL version", _version, "Microsoft: Comparing WSL versions"),
    ("WSL memory", _memory, f"{_SETTINGS}, memory="),
    ("WSL processors", _processors, f"{_SETTINGS}, processors="),
    ("WSL config", _config, _SETTINGS),
)
