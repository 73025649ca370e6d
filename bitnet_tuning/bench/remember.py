"""Save what a tuning found as a profile for later runs, or say why it is not saved."""

from __future__ import annotations

import os
from collections.abc import Mapping

from bitnet_tuning.bench import limits
from bitnet_tuning.bench.comparison import DEFAULT
from bitnet_tuning.bench.results import Kept, Results
from bitnet_tuning.bench.summary import Summary
from bitnet_tuning.console import command, word
from bitnet_tuning.engine.builds import FASTER, OPEN
from bitnet_tuning.plan import profile as profiles
from bitnet_tuning.plan.facts import Facts
from bitnet_tuning.plan.openmp import BINDING_BY_USER, TUNABLE, user_set
from bitnet_tuning.plan.profile import PP, TG, EngineKey, Evidence, claim, engine_changes
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.plan.threads import ENGINE_THREADS
from bitnet_tuning.plan.tuned import copy_pays_from
from bitnet_tuning.store.state import State


def remembered(results: Results, facts: Facts, engine: EngineKey, state: State, path: str) -> Kept:
    """Save the decision as a profile, unless something speaks against it. Return the outcome.
    ``engine`` is the engine as it was when the tuning began, ``path`` the file of results."""
    if objection := _objection(results, facts.environ):
        return not_remembered(objection)
    decision, summary = results.decision, Summary(results)
    assert decision is not None
    name = decision.winner
    setting: Setting | None = None if name == DEFAULT else results.settings[name]
    speeds = {phase: summary.speeds[phase].get(name) for phase in (PP, TG)}
    evidence = Evidence(
        objective=results.options.objective,
        verdict=decision.verdict,
        ratio=decision.estimate,
        floor=None,
        resolution=decision.resolution,
        against_upstream=summary.over_upstream(name),
        speeds={phase: found and found.median for phase, found in speeds.items()},
        results=os.path.abspath(path),
        budget=results.options.budget,
    )
    profile = profiles.new_profile(facts.host, engine, facts.model, setting, evidence)
    if changes := engine_changes(profile):
        return not_remembered(f"the engine changed during the tuning: {changes[0]}")
    before = profiles.load(state, facts.host, facts.engine, facts.model)
    if setting is None and before is not None and before.setting is not None:
        # A shorter search without a winner does not replace a faster setting.
        then = before.evidence
        if then.objective == evidence.objective and (then.budget or 0.0) > results.options.budget:
            longer = f"the saved profile {before.id} comes from a longer tuning: {claim(before)}"
            return not_remembered(longer)
    mark = profiles.store(state, profile)
    if mark is None:
        return not_remembered(str(state.warning))
    flag = "" if results.model.unnamed else f" -m {word(results.model.path)}"
    what = f"keeps using the default (profile {mark})"
    if setting is not None:
        what = f"now runs with {name} automatically (profile {mark})"
        least = copy_pays_from(evidence, facts.model.size)
        if setting.mmap is False and least:
            long = "prompts" if evidence.objective.name == PP else "answers"
            what += f"; it copies the model for {long} of about {least:.0f} tokens or more, "
            what += "in chats and with --prompts"
    return Kept(True, mark, f"Saved: {command('run')}{flag} {what}.")


def not_remembered(why: str) -> Kept:
    return Kept(False, None, f"Not saved: {why}.")


def _objection(results: Results, environ: Mapping[str, str]) -> str | None:
    """Return why the decision must not be saved; None if nothing speaks against it."""
    # Without the user's variables the result may not hold, and with them no profile is used.
    names = sorted({*TUNABLE, *BINDING_BY_USER, ENGINE_THREADS})
    theirs = [name for name in names if user_set(environ, name)]
    if environ.get("BITNET_THREADS", "").strip("0 "):
        theirs.append("BITNET_THREADS")
    if theirs:
        return f"your {', '.join(theirs)} affected it; unset that and tune again"
    if results.decision is None or results.decision.verdict == OPEN:
        return "nothing was decided"
    decision, settings = results.decision, results.settings
    for _, cause, what in limits.disturbances(results.conditions.meanwhile):
        remedy = f"{what} and tune again"
        if decision.verdict != FASTER:
            return f"{cause}, and another setting may be best without that; {remedy}"
        both = settings[DEFAULT], settings[decision.winner]
        default, winner = ((each.threads, each.threads_batch, each.cpus) for each in both)
        if winner != default:
            return f"{cause}, and {decision.winner} may be best only because of that; {remedy}"
    if decision.winner != DEFAULT:
        return None
    # A search of only a part must not replace a faster setting that a whole tuning found.
    asked = results.options
    is_part = asked.threads is not None or "optimized" not in (asked.modes or ("optimized",))
    return "--threads or --modes limited the search" if is_part else None
