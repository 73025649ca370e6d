"""A plan with a measured profile in it, as far as the user leaves it room; pure."""

from __future__ import annotations

from bitnet_tuning.plan.batch import estimate, prompt_bytes
from bitnet_tuning.plan.command import apply_setting
from bitnet_tuning.plan.memory import AUTO, COPY_SHARE, TUNABLES, fits, need_of, no_lock
from bitnet_tuning.plan.openmp import (
    BINDING,
    THREAD_COUNTS,
    WAITING_BY_USER,
    binds_itself,
    exported,
    user_set,
)
from bitnet_tuning.plan.profile import Profile, claim, day
from bitnet_tuning.plan.setting import Setting, describe
from bitnet_tuning.plan.threads import asked_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Facts, Plan
    from bitnet_tuning.plan.request import Request


_USUAL_CONTEXT = 2048
"""Tokens, as run_inference.py has it by default."""

COPY_RATE = 0.5e9
"""Bytes per second by which a copied model is loaded more slowly than a mapped one that is in
the page cache: 1.18 GB took 1.3 s longer, in huge pages 2.1 s (docs/measurements.md)."""

_FLAGS = {
    "mmap": ("--no-mmap", "--load-mode"),
    "flash": ("-fa",),
    "poll": ("--poll",),
    "numa": ("--numa",),
}
"""Of which a program must list one to obey a field. A chat may have another program."""


def with_profile(plan: Plan, profile: Profile, request: Request, facts: Facts) -> Plan:
    """The computed plan, tuned. Only what was itself measured is recommended: whoever
    chooses the threads gets nothing of a profile that has others."""
    theirs = asked_threads(request.threads, facts.environ) or request.threads_batch
    setting = profile.setting
    if setting is None:
        nothing = f"a tuning on {day(profile)} found nothing faster"
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
    obeyed = found._replace(**_not_obeyed(request, facts))
    asked = request.memory not in (None, AUTO)
    too_short = None if asked else _too_short(found, request, facts)
    if too_short:
        obeyed = obeyed._replace(mmap=None)
    room = has_room(facts.host, facts.model) or obeyed.mmap is not False
    wanted = obeyed._replace(
        env=_environment(plan, found, request, facts, copied=obeyed.mmap is False and room),
        cpus=None if binds_itself(facts.environ) else found.cpus,
        # A prompt that fits in less was given less, and so was one for want of memory.
        ubatch=request.ubatch or plan.ubatch or found.ubatch,
        mmap=plan.mmap if asked else obeyed.mmap if room else None,
        mlock=plan.mlock or (found.mlock and not asked and _may_lock(request, facts)),
        nice=plan.nice,
    )
    if request.performance:
        wanted = _boosted(wanted, plan)
    tuned = apply_setting(plan, wanted, request, facts)
    if _is_partial(wanted, found):
        why = f"{why}, with more than can be used here"
    warning = "the model is not read without mmap as was measured: too little memory is available"
    reasons = _reasons(tuned, found, why, request, facts.environ)
    if too_short:
        reasons["mmap"] = too_short
    return tuned._replace(
        reasons={**plan.reasons, **reasons},
        warnings=plan.warnings if room else (*plan.warnings, warning),
    )


def _boosted(wanted: Setting, plan: Plan) -> Setting:
    """What performance mode adds: eager waiting, and CPUs where none were measured and the
    planned ones hold all threads."""
    threads = max(wanted.threads, wanted.threads_batch)
    held = threads <= max(plan.threads, plan.threads_batch)
    return wanted._replace(
        cpus=wanted.cpus or (plan.cpus if held else None),
        poll=plan.poll if wanted.poll is None else wanted.poll,
    )


def _may_lock(request: Request, facts: Facts) -> bool:
    need = need_of(facts.model, request.ctx_size, request.ubatch)
    flags = facts.engine.flags_for(request.chat)
    return no_lock(flags, need, facts.host.memory.available, facts.privileges) is None


def _is_partial(wanted: Setting, found: Setting) -> bool:
    """Whether something of what was measured is missing. Performance mode only adds, and a
    prompt that one micro-batch holds loses nothing by another size."""
    added: dict[str, Any] = {"env": found.env, "nice": found.nice, "ubatch": found.ubatch}
    if wanted.mlock:
        added["mlock"] = found.mlock
    for name in ("cpus", "poll"):
        if getattr(found, name) is None:
            added[name] = None
    missing = dict(found.env).keys() - dict(wanted.env).keys()
    return wanted._replace(**added) != found or bool(missing)


def _not_obeyed(request: Request, facts: Facts) -> dict[str, Any]:
    flags = facts.engine.flags_for(request.chat)
    missing = {field: None for field, names in _FLAGS.items() if not flags.intersection(names)}
    return missing if facts.numactl else {**missing, "node": None, "interleave": None}


def _too_short(found: Setting, request: Request, facts: Facts) -> str | None:
    """Why this run is too short for a copy of the model to pay, or None where it is not. A
    copy makes tokens faster and the start slower, and only the first was measured."""
    profile = facts.profile
    alone = request.prompt is not None or request.prompt_file is not None
    if found.mmap is not False or not alone or request.chat or request.n_predict < 0:
        return None
    evidence = profile.evidence if profile else None
    if evidence is None or evidence.ratio is None:
        return None
    is_prompt = evidence.objective["name"] == "pp"
    speed = evidence.speeds.get("pp" if is_prompt else "tg")
    size = prompt_bytes(request, facts.prompt_file_bytes)
    tokens = estimate(size or 0) if is_prompt else request.n_predict
    saved = (evidence.ratio.median - 1) / speed if speed else 0.0
    cost = facts.model.size / COPY_RATE
    if saved <= 0 or tokens * saved >= cost:
        return None
    return (
        f"left on: a copy was measured faster, but takes about {cost:.1f} s at the start, which "
        f"pays from some {cost / saved:.0f} tokens on"
    )


def has_room(host: Host, model: ModelFile) -> bool:
    """Whether the model may be read without mmap, for a context of usual length."""
    need = need_of(model, min(_USUAL_CONTEXT, model.context_length or _USUAL_CONTEXT), None)
    return fits(need, host.memory.available, COPY_SHARE)


def _environment(
    plan: Plan, found: Setting, request: Request, facts: Facts, copied: bool
) -> tuple[tuple[str, str], ...]:
    """The profile's variables but for what the user decided. Half of a binding, or another
    word on how to wait beside the user's, would be something that was never measured."""
    environ = facts.environ
    theirs = {name for name in dict(found.env) if user_set(environ, name)}
    if binds_itself(environ):
        theirs |= set(BINDING)
    if any(user_set(environ, name) for name in WAITING_BY_USER):
        theirs |= set(WAITING_BY_USER)
    if not copied or request.memory not in (None, AUTO):
        theirs.add(TUNABLES)
    kept = {name: text for name, text in found.env if name not in theirs}
    if "OMP_PROC_BIND" in exported(environ) and "OMP_PROC_BIND" not in kept:
        kept["OMP_PROC_BIND"] = "false"  # what bitnet-env.sh exported would reach the engine
    if TUNABLES in plan.env:
        kept[TUNABLES] = plan.env[TUNABLES]
    if request.performance:
        kept |= {name: plan.env[name] for name in WAITING_BY_USER if name in plan.env}
    return tuple(sorted(kept.items()))


def _reasons(
    tuned: Plan, found: Setting, why: str, request: Request, environ: Mapping[str, str]
) -> dict[str, str]:
    """A sentence for every field that the profile decides."""
    env = dict(found.env)
    kept = [name for name in env if name not in tuned.env and name not in THREAD_COUNTS]
    ours = {
        "threads": f"{tuned.threads}: {why}",
        "threads_batch": f"{tuned.threads_batch}: {why}",
        "env": f"{why}; {', '.join(kept)} left to what you set" if kept else why,
        "cpus": why,
    }
    if binds_itself(environ):
        ours["cpus"] = "not bound: you chose places for the threads yourself"
    for name in ("ubatch", "mmap", "flash", "poll", "numa"):
        value = getattr(tuned, name)
        if value is not None and value == getattr(found, name):
            ours[name] = f"{_word(value)}: {why}"
    if request.ubatch:
        ours.pop("ubatch", None)
    return ours


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
