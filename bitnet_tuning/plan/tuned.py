"""A plan with a measured profile in it, as far as the user leaves it room; pure."""

from __future__ import annotations

from bitnet_tuning.plan.command import KNOB_FLAGS, obeys
from bitnet_tuning.plan.memory import (
    AUTO,
    TUNABLES,
    estimate,
    has_room,
    need_of,
    no_lock,
    with_setting,
)
from bitnet_tuning.plan.openmp import (
    BINDING,
    THREAD_COUNTS,
    WAITING_BY_USER,
    binds_itself,
    exported,
    user_set,
)
from bitnet_tuning.plan.profile import Profile, claim
from bitnet_tuning.plan.setting import Setting, describe, shown
from bitnet_tuning.plan.threads import asked_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bitnet_tuning.plan.facts import Facts, Plan, Request


COPY_RATE = 0.5e9
"""Bytes per second by which a copied model is loaded more slowly than a mapped one that is in
the page cache: 1.18 GB took 1.3 s longer, in huge pages 2.1 s (docs/measurements.md)."""


def with_profile(plan: Plan, profile: Profile, request: Request, facts: Facts) -> Plan:
    """Return the computed plan, tuned. Only what was itself measured is recommended: whoever
    chooses the threads gets nothing of a profile that has others."""
    theirs = asked_threads(request.threads, facts.environ) or request.threads_batch
    setting = profile.setting
    if setting is None:
        nothing = f"a tuning on {profile.day} found nothing faster"
        return plan if theirs else _noted(plan, nothing)
    left_out = f"a measured profile ({describe(setting)}) is left out"
    if theirs:
        return _noted(plan, f"{left_out}: the threads are yours")
    if request.max_threads and setting.threads > request.max_threads:
        return _noted(plan, f"{left_out}: it has more than --max-threads allows")
    return _tuned(plan, setting, claim(profile), request, facts)


def _noted(plan: Plan, note: str) -> Plan:
    reasons = {**plan.reasons, "threads": f"{plan.reasons['threads']}; {note}"}
    return plan._replace(reasons=reasons)


def _tuned(plan: Plan, found: Setting, why: str, request: Request, facts: Facts) -> Plan:
    ours, is_asked = plan.setting, request.memory != AUTO
    obeyed = _obeyed(found, request, facts)
    too_short = None if is_asked else _too_short(found, request, facts)
    if too_short:
        obeyed = obeyed._replace(mmap=None)
    room = has_room(facts.host, facts.model) or obeyed.mmap is not False
    wanted = obeyed._replace(
        env=_environment(ours, found, request, facts, copied=obeyed.mmap is False and room),
        cpus=None if binds_itself(facts.environ) else found.cpus,
        # A prompt that fits in less was given less, and so was one for want of memory.
        ubatch=request.ubatch or ours.ubatch or found.ubatch,
        mmap=ours.mmap if is_asked else obeyed.mmap if room else None,
        mlock=ours.mlock or (found.mlock and not is_asked and _may_lock(request, facts)),
        nice=ours.nice,
    )
    if request.performance:
        # Eager waiting, and CPUs where none were measured and the planned ones hold all threads.
        held = max(wanted.threads, wanted.threads_batch) <= max(ours.threads, ours.threads_batch)
        wanted = wanted._replace(
            cpus=wanted.cpus or (ours.cpus if held else None),
            poll=ours.poll if wanted.poll is None else wanted.poll,
        )
    if _is_partial(wanted, found):
        why = f"{why}, with more than can be used here"
    reasons = _reasons(wanted, found, why, request, facts.environ)
    if too_short:
        reasons["mmap"] = too_short
    warning = "the model is not read without mmap as was measured: too little memory is available"
    plan = with_setting(plan, wanted, request)
    return plan.updated(wanted, reasons, () if room else (warning,))


def _may_lock(request: Request, facts: Facts) -> bool:
    need = need_of(facts.model, request.ctx_size, request.ubatch)
    flags = facts.engine.flags_for(request.chat)
    return no_lock(flags, need, facts.host.memory.available, facts.privileges) is None


def _is_partial(wanted: Setting, found: Setting) -> bool:
    """Return whether something of what was measured is missing. Performance mode only adds, and a
    prompt that one micro-batch holds loses nothing by another size."""
    added: dict[str, Any] = {"env": found.env, "nice": found.nice, "ubatch": found.ubatch}
    if wanted.mlock:
        added["mlock"] = found.mlock
    for name in ("cpus", "poll"):
        if getattr(found, name) is None:
            added[name] = None
    missing = found.variables.keys() - wanted.variables.keys()
    return wanted._replace(**added) != found or bool(missing)


def _obeyed(found: Setting, request: Request, facts: Facts) -> Setting:
    """Return the setting without what this program has no flag for: a chat may have another
    program than was measured."""
    flags = facts.engine.flags_for(request.chat)
    missing = {field for field in KNOB_FLAGS if not obeys(field, flags)} - {"threads_batch"}
    if not facts.numactl:
        missing |= {"node", "interleave"}
    return found._replace(**{field: Setting._field_defaults[field] for field in missing})


def _too_short(found: Setting, request: Request, facts: Facts) -> str | None:
    """Return why this run is too short for a copy of the model to pay, or None where it is not. A
    copy makes tokens faster and the start slower, and only the first was measured."""
    evidence = facts.profile.evidence if facts.profile else None
    alone = request.prompt is not None or request.prompt_file is not None
    if found.mmap is not False or not alone or request.chat or request.n_predict < 0:
        return None
    if evidence is None or evidence.ratio is None:
        return None
    is_prompt = evidence.objective.name == "pp"
    speed = evidence.speeds.get("pp" if is_prompt else "tg")
    size = request.prompt_bytes(facts.prompt_file_bytes)
    tokens = estimate(size or 0) if is_prompt else request.n_predict
    saved = (evidence.ratio.median - 1) / speed if speed else 0.0
    cost = facts.model.size / COPY_RATE
    if saved <= 0 or tokens * saved >= cost:
        return None
    return (
        f"left on: a copy was measured faster, but takes about {cost:.1f} s at the start, which "
        f"pays from some {cost / saved:.0f} tokens on"
    )


def _environment(
    ours: Setting, found: Setting, request: Request, facts: Facts, copied: bool
) -> tuple[tuple[str, str], ...]:
    """Return the profile's variables but for what the user decided. Half of a binding, or another
    word on how to wait beside the user's, would be something that was never measured."""
    environ, planned = facts.environ, ours.variables
    theirs = {name for name, _ in found.env if user_set(environ, name)}
    if binds_itself(environ):
        theirs |= set(BINDING)
    if any(user_set(environ, name) for name in WAITING_BY_USER):
        theirs |= set(WAITING_BY_USER)
    if not copied or request.memory != AUTO:
        theirs.add(TUNABLES)
    kept = {name: text for name, text in found.env if name not in theirs}
    if "OMP_PROC_BIND" in exported(environ) and "OMP_PROC_BIND" not in kept:
        kept["OMP_PROC_BIND"] = "false"  # what bitnet-env.sh exported would reach the engine
    if TUNABLES in planned:
        kept[TUNABLES] = planned[TUNABLES]
    if request.performance:
        kept |= {name: planned[name] for name in WAITING_BY_USER if name in planned}
    return tuple(sorted(kept.items()))


def _reasons(
    wanted: Setting, found: Setting, why: str, request: Request, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return a sentence for every field that the profile decides."""
    decided = {*wanted.variables, *THREAD_COUNTS}
    left = [name for name, _ in found.env if name not in decided]
    ours = {
        name: f"{shown(value)}: {why}"
        for name, value in wanted._asdict().items()
        if value == getattr(found, name) and value != Setting._field_defaults.get(name)
    }
    if request.ubatch:
        ours.pop("ubatch", None)
    places = "not bound: you chose places for the threads yourself"
    return {
        **ours,
        "env": f"{why}; {', '.join(left)} left to what you set" if left else why,
        "cpus": places if binds_itself(environ) else why,
    }
