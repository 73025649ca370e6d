"""What the checks judge and what they return. Nothing here reads the system."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from bitnet_tuning.console import command, counted
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.cgroups import Mount
from bitnet_tuning.machine.conditions import Conditions
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import HugePages, Memory
from bitnet_tuning.machine.warnings import MachineWarning, warnings_before
from bitnet_tuning.machine.wsl import WslConfig
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.profile import Profile
from bitnet_tuning.plan.threads import choose_threads
from bitnet_tuning.verify.selftest import Report

MEASURE = command("bench")
"""The command that measures the settings, for remedies."""

PUBLISHED_SIZE = 1_200_000_000
"""Size in bytes, rounded, of BitNet b1.58 2B-4T's i2_s file; assumed where no model is known."""


class Case(NamedTuple):
    """All facts about one machine, one engine and one model. A field that could not be read holds
    the error. None: unknown, or not asked for, such as a recorded machine's engine."""

    host: Host
    live: bool
    """Whether this program runs on that machine; False for a recorded one."""
    environ: Mapping[str, str]
    now: float
    """Time of the examination, in seconds since the epoch."""
    conditions: Conditions
    base_clock: float | None
    """Base clock of the processor in MHz."""
    machine_memory: Memory
    """Memory of the whole machine, without the limits of control groups."""
    lock_limit: float | None
    """Number of bytes that this process may lock in memory; infinity for no limit."""
    huge_pages: HugePages
    numa_balancing: bool | None
    """Whether the kernel moves pages between NUMA nodes automatically."""
    mounts: tuple[Mount, ...]
    wsl_configs: tuple[WslConfig, ...]
    engine: Engine | TuningError | None = None
    built: float | None = None
    """When the newest of the engine's files changed, in seconds since the epoch; None from PyPI."""
    swapped: tuple[str, ...] | None = None
    """Libraries of other builds that LD_LIBRARY_PATH makes the engine load instead of its own."""
    model: ModelFile | TuningError | None = None
    model_path: str | None = None
    """Absolute path of the model on that machine, symbolic links resolved."""
    slim_copies: tuple[ModelFile, ...] = ()
    profile: Profile | None = None
    stale: tuple[Profile, Sequence[str]] | None = None
    """A profile of this engine and model that does not apply any more, and what changed."""
    selftest: Report | TuningError | None = None

    @property
    def known_engine(self) -> Engine | None:
        return None if isinstance(self.engine, TuningError) else self.engine

    @property
    def known_model(self) -> ModelFile | None:
        return None if isinstance(self.model, TuningError) else self.model

    @property
    def computed(self) -> Plan:
        """The plan for threads computed from the host alone, without environment and profile."""
        return choose_threads(Request(), self.host, {})

    @property
    def wanted_threads(self) -> int:
        """Number of threads that should generate: as measured, else as computed."""
        measured = self.profile and self.profile.setting
        return (measured or self.computed.setting).threads

    @property
    def model_size(self) -> int:
        """Size of the model's file in bytes; that of a published model where none is known."""
        return self.known_model.size if self.known_model else PUBLISHED_SIZE

    def warning(self, kind: str) -> MachineWarning | None:
        """Return the benchmark's warning of this kind about the machine as it is; None for none."""
        warnings = warnings_before(self.conditions, self.host, self.model_size)
        return next((warning for warning in warnings if warning.kind == kind), None)


GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"
WORST_FIRST = (BAD, WARN, UNKNOWN, GOOD)


class Finding(NamedTuple):
    """The result of one check."""

    name: str
    state: str
    """``good``, ``warn``, ``bad`` or ``unknown``."""
    text: str
    advice: str | None = None
    """What to do about it. Commands can be pasted; the doctor itself runs none of them."""
    source: str = ""
    """What the check rests on: documentation, source code or a measurement."""


Check = tuple[str, Callable[[Case], Finding | None], str]
"""The name of a check, its function, and the source for its findings. The function returns None
where the check does not apply, and may raise TuningError, which becomes a bad finding."""


good, warn, bad, unknown = (partial(Finding, "", state) for state in (GOOD, WARN, BAD, UNKNOWN))
"""Make a finding of a text and an advice; ``examine`` adds the check's name and source."""


def moot(text: str) -> Finding:
    """Return a good finding: what the check judges does not exist, or does not matter, here."""
    return good(f"not applicable here: {text}")


def warned(case: Case, kind: str) -> Finding | None:
    """Return the benchmark's warning of this kind as a finding; None without a warning."""
    warning = case.warning(kind)
    return warning and warn(warning.cause, warning.remedy)


def summary(findings: Sequence[Finding], strict: bool = False) -> dict[str, Any]:
    """Return the number of findings in each state; ``exit_code``: 1 if anything is bad, 2 if
    ``strict`` and there are warnings, else 0; and ``text``, a line that also names the check to
    begin with: the first one, since the worst finding comes first."""
    states = [finding.state for finding in findings]
    found = {state: states.count(state) for state in WORST_FIRST}
    total = f"{found[BAD]} bad, {counted(found[WARN], 'warning')}, {found[UNKNOWN]} unknown"
    begin = f" Begin with: {findings[0].name}." if found[BAD] or found[WARN] else ""
    return {
        **found,
        "exit_code": 1 if found[BAD] else 2 if strict and found[WARN] else 0,
        "text": f"{len(findings)} checks: {total}, {found[GOOD]} good.{begin}",
    }
