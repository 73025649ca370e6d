"""All that the checks judge; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from bitnet_tuning.bench.conditions import Conditions
from bitnet_tuning.bench.spoilers import warnings_before
from bitnet_tuning.host.memory import Memory
from bitnet_tuning.threads import Threads, choose_threads

if TYPE_CHECKING:
    from bitnet_tuning.engine import Engine
    from bitnet_tuning.ggml_types import ModelFile
    from bitnet_tuning.host import Host
    from bitnet_tuning.host.kernel_settings import KernelSettings
    from bitnet_tuning.host.locking import LockLimit
    from bitnet_tuning.host.mounts import FileSystem
    from bitnet_tuning.host.wsl_config import WslConfig
    from bitnet_tuning.profile_record import Profile
    from bitnet_tuning.profiles import Stale
    from bitnet_tuning.selftest import Report

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
    lock_limit: LockLimit | None
    kernel: KernelSettings
    mounts: tuple[FileSystem, ...]
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
    left_governors: tuple[str, ...] = ()
    """What CPUs had before a run set another governor and was killed with its guardian."""

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


class Said(NamedTuple):
    """A warning of the benchmark's, taken apart."""

    cause: str
    remedy: str


_NOTHING_SEEN = Conditions(
    time=0.0,
    online_cpus=0,
    other_load=None,
    busiest=(),
    times=None,
    own_seconds=0.0,
    clock=None,
    governor=None,
    driver=None,
    temperature=None,
    throttle_events=None,
    throttling=(),
    memory=Memory(None, None),
    swap=None,
    on_battery=None,
)


def spoiled(case: Case, *fields: str, quota: bool = False) -> Said | None:
    """What a benchmark would say of these ``fields`` of the conditions alone, or with
    ``quota`` of the host's quota: the doctor and the benchmark must not disagree."""
    seen = {name: getattr(case.conditions, name) for name in fields}
    conditions = _NOTHING_SEEN._replace(online_cpus=case.conditions.online_cpus, **seen)
    host = case.host if quota else case.host._replace(quota=None)
    warnings = warnings_before(conditions, host, case.model_size)
    if not warnings:
        return None
    cause, _, remedy = warnings[0].rpartition(": ")
    return Said(cause, remedy)
