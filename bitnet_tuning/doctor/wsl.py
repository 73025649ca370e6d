"""Linux inside Windows: version, .wslconfig, binding; pure. Nothing is found elsewhere."""

from __future__ import annotations

from math import ceil

from bitnet_tuning.console import GIBIBYTE
from bitnet_tuning.doctor.case import Case, Knob, Verdict, bad, good, unknown, warn
from bitnet_tuning.doctor.cpus import BENCHMARK
from bitnet_tuning.doctor.memory import gigabytes, need, needed
from bitnet_tuning.machine.wsl import WslConfig

ROOM = 3 * GIBIBYTE
"""Bytes for all else in the virtual machine: an idle one takes half of a GiB, an editor's
server one to two."""

APPLIED = 0.85
"""Of ``memory=`` at least this share is Linux's MemTotal: the kernel keeps some for itself."""

_RESTART = "wsl.exe --shutdown"


def _version(case: Case) -> Verdict | None:
    if case.host.wsl is None:
        return None
    if case.host.wsl == 1:
        return bad(
            "WSL 1 translates every system call and has no Linux kernel",
            "in Windows: wsl.exe --set-version NAME 2 (NAME as wsl.exe --list shows it)",
        )
    return good("WSL 2")


def _memory(case: Case) -> Verdict | None:
    if case.host.wsl != 2:
        return None
    limits = [(config.memory, config.path) for config in case.wsl_configs if config.memory]
    return _limited(case, *min(limits)) if limits else _unlimited(case)


def _limited(case: Case, memory: int, path: str) -> Verdict:
    """By the tightest of several users' files: which of them holds is not known."""
    text = f"{path} gives WSL {memory / GIBIBYTE:.3g} GB of memory"
    raised = ceil((need(case) + ROOM) / GIBIBYTE)
    remedy = f"memory={raised}GB or more in {path}, then {_RESTART}"
    if memory < need(case):
        return bad(f"{text}, {needed(case)}", remedy)
    if memory < need(case) + ROOM:
        return warn(f"{text}, {needed(case)}: little is left for all else", remedy)
    return _applied(case, memory, text)


def _unlimited(case: Case) -> Verdict:
    """Without a limit WSL gets half of Windows' memory (Microsoft's documentation)."""
    total = case.machine_memory.total
    if total is None:
        return unknown("no memory= in a .wslconfig that can be read, and no MemTotal")
    text = f"WSL has {gigabytes(total)}, its default share; {needed(case)}"
    if total >= need(case) + ROOM:
        return good(text)
    return warn(
        f"{text}: little is left for all else",
        f"memory=8GB below [wsl2] in C:\\Users\\NAME\\.wslconfig, then {_RESTART}",
    )


def _applied(case: Case, memory: int, text: str) -> Verdict:
    total = case.machine_memory.total
    if total is not None and not APPLIED * memory <= total <= memory:
        return warn(f"{text}, but it has {gigabytes(total)}", f"{_RESTART} applies the file")
    return good(text)


def _processors(case: Case) -> Verdict | None:
    if case.host.wsl != 2:
        return None
    online = len(case.host.online)
    stated = [(config.processors, config.path) for config in case.wsl_configs if config.processors]
    if not stated:
        return good(f"no .wslconfig limits processors: WSL has {online}")
    processors, path = min(stated)
    text = f"{path} gives WSL {processors} processors"
    if processors != online:
        return warn(f"{text}, but it has {online}", f"{_RESTART} applies the file")
    return warn(
        f"{text}; Windows may have more", f"remove processors= from {path}, then {_RESTART}"
    )


def _config(case: Case) -> Verdict | None:
    """Whether the files can be understood."""
    if case.host.wsl != 2:
        return None
    faulty: list[WslConfig] = [config for config in case.wsl_configs if config.problems]
    if faulty:
        config = faulty[0]
        return warn(
            f"{config.path} cannot be understood: {'; '.join(config.problems)}",
            f"sizes are whole numbers with MB or GB, as in memory=8GB; then {_RESTART}",
        )
    if not case.wsl_configs:
        return good("no .wslconfig that can be read: Windows' defaults hold")
    return good(", ".join(config.path for config in case.wsl_configs))


def _binding(case: Case) -> Verdict | None:
    if case.host.wsl is None:
        return None
    if case.known_profile:
        return good("what binding is worth here was measured")
    return unknown(
        "binding threads has a limited effect: Windows moves the virtual processors, and shows "
        "performance and efficiency cores as one kind",
        f"{BENCHMARK} measures whether binding helps here",
    )


KNOBS = (
    Knob("WSL version", _version, "Microsoft: Comparing WSL versions"),
    Knob("WSL memory", _memory, "Microsoft: Advanced settings configuration in WSL, memory="),
    Knob("WSL processors", _processors, "Microsoft: Advanced settings in WSL, processors="),
    Knob("WSL config", _config, "Microsoft: Advanced settings configuration in WSL"),
    Knob("WSL thread binding", _binding, "the hypervisor schedules virtual processors by itself"),
)
