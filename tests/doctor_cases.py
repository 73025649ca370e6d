"""Cases for the doctor: a fake machine with an engine and a model, and what is found there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from bitnet_tuning.doctor import examine
from bitnet_tuning.doctor.case import Case, Finding
from bitnet_tuning.doctor.gather import gather
from bitnet_tuning.machine import conditions
from tests import profile_samples as samples
from tests.machines import GIBIBYTE, Machine, x86_entries

NOW = 1_800_000_000.0


def laptop(folder: Path) -> Machine:
    """Return a machine of four cores with two CPUs each and 8 GiB, with nothing to improve."""
    machine = Machine(folder).regular(4, 2).cpuinfo(x86_entries(8))
    return machine.meminfo(8 * GIBIBYTE, 6 * GIBIBYTE).swap(GIBIBYTE, 0).mount("/", "ext4")


def case_of(machine: Machine, environ: Mapping[str, str] | None = None, **fields: Any) -> Case:
    """Return the machine with a good engine and model, except for the given fields."""
    with mock.patch.object(
        conditions, "_SPIN_SECONDS", 0
    ):  # the clock of a fake root does not rise
        case = gather(str(machine.path), selftest=False)
    known = {
        "environ": environ or {},
        "now": NOW,
        "engine": samples.ENGINE,
        "built": NOW,
        "swapped": (),
        "model": samples.MODEL,
        "model_path": samples.MODEL.path,
    }
    return case._replace(**{**known, **fields})


def found_in(case: Case) -> dict[str, Finding]:
    """Return the findings by their names."""
    return {finding.name: finding for finding in examine(case)}


def states(machine: Machine, name: str, environ: Mapping[str, str] | None = None, **f: Any) -> str:
    """Return the state of one finding; "-" if there is none. Fail if it lacks a text, a source or,
    unless it is good or unknown, advice."""
    finding = found_in(case_of(machine, environ, **f)).get(name)
    if finding is None:
        return "-"
    assert finding.text
    assert finding.source
    assert finding.advice or finding.state in ("good", "unknown")
    return finding.state
