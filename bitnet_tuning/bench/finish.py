"""What a tuning ends with: how near the limit the winner is, what it costs in energy, what
the machine did meanwhile, and what is remembered."""

from __future__ import annotations

import os
from collections.abc import Mapping
from statistics import median

from bitnet_tuning.bench import bandwidth, limits
from bitnet_tuning.bench.bandwidth import Bandwidth, measure_bandwidth
from bitnet_tuning.bench.ledger import DEFAULT, UPSTREAM, Done
from bitnet_tuning.bench.results import Decision, Kept, Part, Results, Surroundings
from bitnet_tuning.bench.samples import Absent
from bitnet_tuning.bench.statistics import VERDICT_ROUNDS
from bitnet_tuning.bench.summary import against, phase_speeds
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.conditions import Conditions, between
from bitnet_tuning.machine.warnings import warnings_after
from bitnet_tuning.model.gguf import read_tensors
from bitnet_tuning.plan.openmp import BINDING_BY_USER, TUNABLE, user_set
from bitnet_tuning.plan.profile import (
    PP,
    TG,
    EngineKey,
    Evidence,
    Profile,
    claim,
    engine_changes,
    load,
)
from bitnet_tuning.plan.profiles import new_profile, store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.bench.runner import Runner
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.plan.facts import Facts
    from bitnet_tuning.plan.setting import Setting
    from bitnet_tuning.store.state import State


def decided(done: Done) -> Decision:
    """For the document."""
    return Decision(done.winner, done.verdict, done.estimate, done.floor, done.reason)


def read_per_token(path: str) -> int | Absent:
    """Bytes of weights that a token needs; raises MissingError for a damaged model."""
    return limits.bytes_per_token(read_tensors(path))


def after(results: Results, before: Conditions, host: Host) -> Results:
    """With the machine's state now, and what has become of it since ``before``, which this
    process took."""
    now = conditions.take(host)
    found = (warning.text for warning in warnings_after(before, now))
    warnings = tuple(dict.fromkeys((*results.warnings, *found)))
    seen = Surroundings(results.conditions.before, now, between(before, now))
    return results._replace(warnings=warnings, conditions=seen)


def near_the_limit(results: Results, host: Host, earlier: Bandwidth | Absent | None) -> Results:
    """With the memory's bandwidth for the winner's threads, and its share that is used.
    ``earlier`` was measured before the tuning, for the default's threads."""
    name = results.decision.winner if results.decision else DEFAULT
    setting = results.settings[name]
    found = measure_bandwidth(setting.threads, host, setting.cpus)
    if isinstance(found, Absent):
        return results._replace(bandwidth=Part(None, found.reason), roof=Part(None, found.reason))
    if isinstance(earlier, Bandwidth) and earlier.threads == found.threads:
        found = bandwidth.pooled(earlier, found)
    part = Part(bandwidth.as_json(found))
    return results._replace(bandwidth=part, roof=_roof(results, name, found))


def _roof(results: Results, name: str, found: Bandwidth) -> Part:
    read, speeds = results.model.bytes_per_token, phase_speeds(results, name)[TG]
    if read is None or not speeds:
        return Part(None, "how much a token reads is not known" if speeds else "tg not measured")
    limit = limits.Roof(found.median, read, median(speeds))
    facts = {**limits.as_json(limit), "words": limits.words(limit, found.reader_limits)}
    return Part(facts)


def with_energy(results: Results, runner: Runner) -> Results:
    """With tokens per joule of the winner, where the machine counts joules."""
    name = results.decision.winner if results.decision else DEFAULT
    setting, sizes = results.settings[name], runner.sizes

    def run(tokens: int) -> None:
        runner.sizes = sizes._replace(n_gen=tokens, repetitions=1)
        try:
            done = runner.measure(name, setting, (TG,))
        finally:
            runner.sizes = sizes
        if done.problem is not None:
            raise UnsupportedError(done.problem)

    found = limits.tokens_per_joule(run)
    if isinstance(found, Absent):
        return results._replace(energy=Part(None, found.reason))
    low, high = f"{found.low:.3g}", f"{found.high:.3g}"
    text = f"{found.median:.3g} tokens per joule ({low}–{high}); {limits.NOTE}"
    return results._replace(energy=Part({**limits.energy_as_json(found), "words": text}))


def remembered(
    results: Results, facts: Facts, engine: EngineKey, state: State, path: str
) -> Results:
    """With the winner stored for later runs, where the search came to a decision.
    ``engine`` as it was when the tuning began; ``path`` holds the results."""
    against = _against_it(results, facts.environ)
    if against is not None:
        return not_remembered(results, against)
    assert results.decision is not None
    name = results.decision.winner
    setting: Setting | None = None if name == DEFAULT else results.settings[name]
    profile = new_profile(facts.host, engine, facts.model, setting, evidence(results, path))
    changes = engine_changes(profile)
    if changes:
        return not_remembered(results, f"{changes[0]} since the tuning began")
    before = load(state, facts.host, facts.engine, facts.model)
    if setting is None and before is not None and _outweighs(before, profile):
        longer = f"{claim(before)}, in a longer tuning ({before.id})"
        return not_remembered(results, f"what is remembered was {longer}")
    mark = store(state, profile)
    if mark is None:
        return not_remembered(results, str(state.warning))
    what = "that the default stays" if setting is None else name
    kept = Kept(True, mark, f"Remembered as {mark}: {what}. run_inference.py uses it by itself.")
    return results._replace(profile=kept)


def _outweighs(before: Profile, now: Profile) -> bool:
    """Whether a setting that was shown to be faster must not give way to a search that had
    less time and saw no difference."""
    then, since = before.evidence, now.evidence
    longer = (then.budget or 0.0) > (since.budget or 0.0)
    return before.setting is not None and longer and then.objective == since.objective


def not_remembered(results: Results, why: str) -> Results:
    """With the reason."""
    return results._replace(profile=Kept(False, None, f"Nothing is remembered: {why}."))


def _against_it(results: Results, environ: Mapping[str, str]) -> str | None:
    """What speaks against remembering the decision."""
    if results.decision is None:
        return "there is no decision yet"
    theirs = taking_part(environ)
    if theirs:
        return f"your {theirs} took part in it"
    if results.decision.winner != DEFAULT:
        return None
    if _rounds(results) < VERDICT_ROUNDS:
        return "the rounds were too few"
    # A part of the space that holds nothing better is no reason to forget a setting that
    # a whole tuning found.
    asked = results.options
    is_part = asked.threads is not None or "optimized" not in (asked.modes or ("optimized",))
    return "only a part of the settings was searched" if is_part else None


def taking_part(environ: Mapping[str, str]) -> str:
    """Variables of the user's that were in force while it was measured: without them, what
    was found may not hold, and with them no profile is used."""
    found = [name for name in sorted({*TUNABLE, *BINDING_BY_USER}) if user_set(environ, name)]
    if environ.get("BITNET_THREADS", "").strip("0 "):
        found.append("BITNET_THREADS")
    return ", ".join(found)


def _rounds(results: Results) -> int:
    return sum(1 for each in results.rounds if any(r.setting == DEFAULT for r in each.runs))


def evidence(results: Results, path: str) -> Evidence:
    """What speaks for the decision."""
    decision = results.decision
    assert decision is not None
    speeds = phase_speeds(results, decision.winner)
    return Evidence(
        objective=results.options.objective,
        verdict=decision.verdict,
        ratio=decision.estimate,
        floor=decision.floor,
        against_upstream=against(results, decision.winner, UPSTREAM),
        speeds={phase: median(speeds[phase]) if speeds[phase] else None for phase in (PP, TG)},
        results=os.path.abspath(path),
        budget=results.options.budget,
    )
