"""Find what slows this machine, engine and model down.

``gather`` reads the facts into a ``Case``, the other modules judge it without reading anything,
and ``examine`` runs all their checks.
"""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_tuning.console import printable
from bitnet_tuning.doctor import build, clock, cpus, environment, model, wsl
from bitnet_tuning.doctor.case import WORST_FIRST, Case, Check, Finding, bad, unknown
from bitnet_tuning.errors import TuningError

CHECKS: tuple[Check, ...] = (
    *build.CHECKS,
    *model.CHECKS,
    *cpus.CHECKS,
    *environment.CHECKS,
    *clock.CHECKS,
    *wsl.CHECKS,
)
"""All checks. Those that find an engine unable to run come first: among equally bad findings the
user should start with the first."""


def examine(case: Case, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Return the finding of every check that applies to the case, the worst first."""
    judged = ((_judge(check, case), check) for check in checks)
    found = [_labelled(finding, check) for finding, check in judged if finding]
    return sorted(found, key=lambda finding: WORST_FIRST.index(finding.state))


def _judge(check: Check, case: Case) -> Finding | None:
    """Return what the check finds; a check that fails does not stop the others."""
    try:
        return check[1](case)
    except TuningError as error:
        return bad(error.cause, error.remedy)
    except Exception as error:
        return unknown(
            f"this check failed: {type(error).__name__}: {error}",
            "this is a bug in bitnet-tuning; report it with the output of: "
            "python3 -m bitnet_tuning host --json",
        )


def _labelled(finding: Finding, check: Check) -> Finding:
    name, _, source = check
    _, state, text, advice, _ = finding
    return Finding(name, state, printable(text), advice and printable(advice), source)
