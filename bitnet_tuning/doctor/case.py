"""All that the checks judge; pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bitnet_tuning.machine.conditions import Conditions
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.warnings import MachineWarning, warnings_before
from bitnet_tuning.plan.threads import Threads, choose_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.memory import HugePages
    from bitnet_tuning.machine.mounts import Mount
    from bitnet_tuning.machine.wsl import WslConfig
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.profile import Profile
    from bitnet_tuning.plan.profiles import Stale
    from bitnet_tuning.verify.selftest import Report

    pass


PUBLISHED_SIZE = 1_200_000_000
"""Bytes of BitNet b1.58 2B-4T's i2_s file, rounded: for hosts that are judged without a model."""


class Problem(NamedTuple):
    """Why something is not known."""

    cause: str
    remedy: str


class Build(NamedTuple):
    """An engine's files. Times in seconds since the epoch."""

    built: float | None
    """When the newest of them was written; None for what pip installed."""
    changed: float | None
    """When the newest source of its checkout was; None without one."""
    swapped: tuple[str, ...]
    """Libraries of other builds that LD_LIBRARY_PATH puts in place of the engine's own."""


class Case(NamedTuple):
    """One machine with one engine and model. A None among what was asked for means that it
    was not: a recorded machine has neither engine nor processes."""

    host: Host
    live: bool
    """Whether it is the machine that this program runs on."""
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
    engine: Engine | Problem | None = None
    build: Build | Problem | None = None
    model: ModelFile | Problem | None = None
    model_path: str | None = None
    """Absolute, links resolved, as the machine itself sees it."""
    profile: Profile | Problem | None = None
    stale: tuple[Stale, ...] = ()
    """Profiles of this engine and model that are not used."""
    selftest: Report | Problem | None = None

    @property
    def known_engine(self) -> Engine | None:
        return None if isinstance(self.engine, Problem) else self.engine

    @property
    def known_model(self) -> ModelFile | None:
        return None if isinstance(self.model, Problem) else self.model

    @property
    def known_profile(self) -> Profile | None:
        return None if isinstance(self.profile, Problem) else self.profile

    @property
    def computed(self) -> Threads:
        """What the facts alone come to, whatever the environment says."""
        return choose_threads(self.host, {}, None, None, None)

    @property
    def wanted_threads(self) -> int:
        """For generation: what was measured as best, else what is computed."""
        profile = self.known_profile
        return profile.setting.threads if profile and profile.setting else self.computed.generation

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


class Verdict(NamedTuple):
    """What a check says of its knob."""

    state: str
    """``good``, ``warn``, ``bad`` or ``unknown``."""
    text: str
    advice: str | None = None
    """What to do; commands are ready to paste, and never run by the doctor."""


class Finding(NamedTuple):
    """A verdict with the knob's name and where its knowledge is from."""

    name: str
    state: str
    text: str
    advice: str | None
    source: str


Check = Callable[["Case"], Verdict | None]
"""Answers None where the knob does not exist, or there is nothing to judge."""


class Knob(NamedTuple):
    name: str
    check: Check
    source: str
    """What the verdict rests on: documentation, source code, a measurement."""


def good(text: str, advice: str | None = None) -> Verdict:
    return Verdict(GOOD, text, advice)


def warn(text: str, advice: str) -> Verdict:
    return Verdict(WARN, text, advice)


def bad(text: str, advice: str) -> Verdict:
    return Verdict(BAD, text, advice)


def unknown(text: str, advice: str | None = None) -> Verdict:
    return Verdict(UNKNOWN, text, advice)


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """The worst first; else as they were checked."""
    return sorted(findings, key=lambda finding: WORST_FIRST.index(finding.state))


def counts(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each state."""
    states = [finding.state for finding in findings]
    return {state: states.count(state) for state in WORST_FIRST}


def exit_code(findings: Sequence[Finding], strict: bool) -> int:
    """1 where something is bad; 2 where ``strict`` minds warnings and there are some."""
    found = counts(findings)
    return 1 if found[BAD] else 2 if strict and found[WARN] else 0


def summary(findings: Sequence[Finding]) -> str:
    """One line."""
    found = counts(findings)
    total = f"{found[BAD]} bad, {found[WARN]} to improve, {found[UNKNOWN]} not known"
    worst = ordered(findings)[0] if findings else None
    begin = f" Begin with: {worst.name}." if worst and worst.state in (BAD, WARN) else ""
    return f"{len(findings)} checks: {total}, {found[GOOD]} good.{begin}"


def as_json(findings: Sequence[Finding], strict: bool) -> dict[str, Any]:
    """``findings`` worst first, and ``summary`` with a count for each state, the exit code
    and the line that is printed."""
    return {
        "findings": [finding._asdict() for finding in ordered(findings)],
        "summary": {
            **counts(findings),
            "exit_code": exit_code(findings, strict),
            "text": summary(findings),
        },
    }
