"""Profiles for people: a table of all, everything of one."""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_tuning.profile_record import Evidence, Profile, Ratio, day, ratio_text
from bitnet_tuning.profiles import Stored
from bitnet_tuning.setting import describe

GIBIBYTE = 1 << 30
HEADER = ("ID", "DATE", "ENGINE", "MODEL", "SETTING", "OVER THE DEFAULT", "STATE")


def row(stored: Stored, changes: Sequence[str]) -> tuple[str, ...]:
    """The fields of ``HEADER``."""
    profile = stored.profile
    ratio = profile.evidence.ratio if profile.setting else None
    return (
        stored.id,
        day(profile),
        profile.engine.path,
        _model(profile),
        _setting(profile),
        _ratio(ratio),
        f"stale: {'; '.join(changes)}" if changes else "valid",
    )


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as what stands in them."""
    lines = [HEADER, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(f"{text:{width}}" for text, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def details(stored: Stored, changes: Sequence[str]) -> str:
    """A line per fact."""
    profile = stored.profile
    facts = {
        "id": stored.id,
        "state": "; ".join(["stale", *changes]) if changes else "valid",
        "created": profile.created,
        "setting": _setting(profile),
        **_evidence(profile.evidence),
        "engine": f"{profile.engine.path} ({profile.engine.version or 'version not known'})",
        "model": f"{_model(profile)}, {profile.model.size / GIBIBYTE:.2f} GiB",
        **{f"host {name}": _plain(value) for name, value in profile.host.items()},
    }
    width = max(len(name) for name in facts)
    return "\n".join(f"{name:{width}}  {text}" for name, text in facts.items())


def _evidence(evidence: Evidence) -> dict[str, str]:
    objective = evidence.objective
    speeds = (f"{phase} {speed:.1f} tokens/s" for phase, speed in evidence.speeds.items() if speed)
    return {
        "verdict": evidence.verdict,
        "objective": f"{objective['name']}, prompt of {objective['n_prompt']} tokens, "
        f"answer of {objective['n_gen']}",
        "over the default": _ratio(evidence.ratio, rounds=True),
        "noise floor": "-" if evidence.floor is None else f"{evidence.floor:.3f}",
        "over upstream": _ratio(evidence.against_upstream, rounds=True),
        "speeds": ", ".join(speeds) or "-",
        "samples": evidence.results or "-",
        "budget": "-" if evidence.budget is None else f"{evidence.budget:g} s",
    }


def _setting(profile: Profile) -> str:
    return describe(profile.setting) if profile.setting else "the default stays"


def _model(profile: Profile) -> str:
    model = profile.model
    return " ".join(part for part in (model.name, model.architecture, model.quantization) if part)


def _ratio(ratio: Ratio | None, rounds: bool = False) -> str:
    if ratio is None:
        return "-"
    return f"{ratio_text(ratio)}, {ratio.rounds} rounds" if rounds else ratio_text(ratio)


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {text}" for name, text in value.items())
    return "-" if value is None else str(value)
