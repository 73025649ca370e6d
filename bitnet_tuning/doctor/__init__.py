"""Find what slows this machine, engine and model down.

``gather`` reads the facts into a ``Case``, the other modules judge it without reading anything,
and ``examine`` runs all their checks.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_tuning.console import command, printable
from bitnet_tuning.doctor import build, clock, cpus, model, wsl
from bitnet_tuning.doctor.case import WORST_FIRST, Case, Check, Finding, bad, unknown
from bitnet_tuning.errors import TuningError, cause_of

CHECKS = (*build.CHECKS, *model.CHECKS, *cpus.CHECKS, *clock.CHECKS, *wsl.CHECKS)
"""All checks, the most important ones, such as of an engine that cannot run, first."""


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Return the finding of every check that applies to the case, the worst first."""
    found = []
    for name, judge, source in checks:
        try:
            finding = judge(case)
        except TuningError as error:
            finding = bad(error.cause, error.remedy)
        except Exception as error:  # a check that fails does not stop the others
            finding = unknown(
                f"this check failed: {cause_of(error)}",
                "this is a bug in bitnet-tuning; report it with the output of: "
                f"{command('host')} --json",
            )
        if finding:
            _, state, text, advice, _ = finding
            advice = advice and printable(advice)
            found.append(Finding(name, state, printable(text), advice, source))
    return sorted(found, key=lambda finding: WORST_FIRST.index(finding.state))
