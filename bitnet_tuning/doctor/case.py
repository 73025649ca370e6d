"""What the checks judge, and what they answer; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.conditions import Conditions
from bitnet_tuning.machine.memory import HugePages, Memory
from bitnet_tuning.machine.warnings import MachineWarning, warnings_before
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.threads import choose_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.cgroups import Mount
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.wsl import WslConfig
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.profile import Profile
    from bitnet_tuning.plan.profiles import Stale
    from bitnet_tuning.verify.selftest import Report


BENCHMARK = "python3 benchmark_optimized.py"

PUBLISHED_SIZE = 1_200_000_000
"""Bytes of BitNet b1.58 2B-4T's i2_s file, rounded; used where no model is known."""


class BuildFiles(NamedTuple):
    """An engine's files. Times in seconds since the epoch."""

    built: float | None
    """When the newest of them was written; None for what pip installed."""
    changed: float | None
    """When the newest source of its checkout was written; None without a checkout."""
    swapped: tuple[str, ...]
    """Libraries of other builds that LD_LIBRARY_PATH puts in place of the engine's own."""


class Case(NamedTuple):
    """A machine with one engine and one model.

    A field that could not be read holds the error. None means that it was not asked for: a
    recorded machine has neither engine nor processes.
    """

    host: Host
    live: bool
    """Whether this program runs on that machine."""
    environ: Mapping[str, str]
    now: float
    """Seconds since the epoch."""
    conditions: Conditions
    base_clock: float | None
    """MHz."""
    machine_memory: Memory
    """Without the limits of control groups."""
    lock_limit: float | None
    """Bytes that may be locked in memory; infinity for no limit."""
    huge_pages: HugePages
    numa_balancing: bool | None
    """Whether the kernel moves pages between NUMA nodes."""
    mounts: tuple[Mount, ...]
    wsl_configs: tuple[WslConfig, ...]
    engine: Engine | TuningError | None = None
    build: BuildFiles | TuningError | None = None
    model: ModelFile | TuningError | None = None
    model_path: str | None = None
    """Absolute, links resolved, as the machine itself sees it."""
    profile: Profile | TuningError | None = None
    stale: tuple[Stale, ...] = ()
    """Profiles of this engine and model that no longer apply."""
    selftest: Report | TuningError | None = None

    @property
    def known_engine(self) -> Engine | None:
        return None if isinstance(self.engine, TuningError) else self.engine

    @property
    def known_model(self) -> ModelFile | None:
        return None if isinstance(self.model, TuningError) else self.model

    @property
    def known_profile(self) -> Profile | None:
        return None if isinstance(self.profile, TuningError) else self.profile

    @property
    def computed(self) -> Plan:
        """The threads that the facts alone lead to, whatever the environment says."""
        return choose_threads(Request(), self.host, {})

    @property
    def wanted_threads(self) -> int:
        """Threads for generation: the measured number, else the computed one."""
        profile = self.known_profile
        return ((profile and profile.setting) or self.computed.setting).threads

    @property
    def model_size(self) -> int:
        """Bytes; a published model's where none is known."""
        return self.known_model.size if self.known_model else PUBLISHED_SIZE

    def warning(self, kind: str) -> MachineWarning | None:
        """Return what the benchmark would warn of before it measures here, if anything."""
        warnings = warnings_before(self.conditions, self.host, self.model_size)
        return next((warning for warning in warnings if warning.kind == kind), None)


GOOD, WARN, BAD, UNKNOWN = "good", "warn", "bad", "unknown"
WORST_FIRST = (BAD, WARN, UNKNOWN, GOOD)


class Finding(NamedTuple):
    """What a check answers. ``name`` and ``source`` are those of the check."""

    name: str
    state: str
    """``good``, ``warn``, ``bad`` or ``unknown``."""
    text: str
    advice: str | None
    """What to do; commands can be pasted, and the doctor never runs them."""
    source: str


Check = tuple[str, Callable[[Case], Finding | None], str]
"""A name, the function that judges, and what its finding rests on: documentation, source code,
a measurement. The function returns None where there is nothing to judge."""


def good(text: str, advice: str | None = None) -> Finding:
    return Finding("", GOOD, text, advice, "")


def warn(text: str, advice: str) -> Finding:
    return Finding("", WARN, text, advice, "")


def bad(text: str, advice: str) -> Finding:
    return Finding("", BAD, text, advice, "")


def unknown(text: str, advice: str | None = None) -> Finding:
    return Finding("", UNKNOWN, text, advice, "")


def warned(case: Case, kind: str) -> Finding | None:
    """Return the benchmark's warning of this kind as a finding; None without one."""
    warning = case.warning(kind)
    return warning and warn(warning.cause, warning.remedy)


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """Return the number of findings in each state."""
    states = [finding.state for finding in findings]
    return {state: states.count(state) for state in WORST_FIRST}


def exit_code(findings: Sequence[Finding], strict: bool) -> int:
    """Return 1 if anything is bad, 2 if ``strict`` and there are warnings, else 0."""
    found = counts(findings)
    return 1 if found[BAD] else 2 if strict and found[WARN] else 0


def summary(findings: Sequence[Finding]) -> str:
    """Return one line with the counts and the check to begin with, which is the first."""
    found = counts(findings)
    total = f"{found[BAD]} bad, {found[WARN]} to improve, {found[UNKNOWN]} not known"
    begin = f" Begin with: {findings[0].name}." if found[BAD] or found[WARN] else ""
    return f"{len(findings)} checks: {total}, {found[GOOD]} good.{begin}"


def as_json(findings: Sequence[Finding], strict: bool) -> dict[str, Any]:
    """Return ``findings``, and ``summary`` with the count of each state, the exit code and the
    printed line."""
    return {
        "findings": [finding._asdict() for finding in findings],
        "summary": {
            **counts(findings),
            "exit_code": exit_code(findings, strict),
            "text": summary(findings),
        },
    }
