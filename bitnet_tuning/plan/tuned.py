"""Apply a measured profile to a computed plan, as far as the user's choices allow."""

from __future__ import annotations

from bitnet_tuning.console import times
from bitnet_tuning.plan import memory, openmp
from bitnet_tuning.plan.command import KNOB_FLAGS, obeys, read_by_engine
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.memory import AUTO, TUNABLES
from bitnet_tuning.plan.openmp import BINDING, THREAD_COUNTS, WAITING_BY_USER
from bitnet_tuning.plan.profile import Evidence, Profile, claim
from bitnet_tuning.plan.setting import SAVED, Setting, describe, shown
from bitnet_tuning.plan.threads import NOT_BOUND, asked_threads

COPY_RATE = 0.5e9
"""Bytes of a model for which loading takes 1 s longer if it is copied instead of mapped: 1.18e9
bytes took 1.3 s longer, in huge pages 2.1 s, with a warm page cache (docs/measurements.md)."""


def with_profile(plan: Plan, profile: Profile, request: Request, facts: Facts) -> Plan:
    """Return the plan with the profile's setting. A profile was measured with its own threads, so
    none of it is used if the user chose others."""
    theirs = asked_threads(request.threads, facts.environ) or request.threads_batch
    setting = profile.setting
    if setting is None:
        least = profile.evidence.resolution
        more = f"more than {100 * least:g} % faster" if least else "faster"
        nothing = f"the tuning of {profile.day} found nothing {more}"
        if ratio := profile.evidence.ratio:
            nothing += f", at best {times(*ratio)} over the default"
        return plan if theirs else _noted(plan, nothing)
    not_used = f"the measured profile ({describe(setting)}) is not used"
    if theirs:
        return _noted(plan, f"{not_used}: you chose the number of threads")
    limits = (request.max_threads, openmp.thread_limit(facts.engine.openmp, facts.environ))
    if any(limit and setting.threads > limit for limit in limits):
        what = "--max-threads or OMP_THREAD_LIMIT allows"
        return _noted(plan, f"{not_used}: it has more threads than {what}")
    usual = describe(plan.setting).split(", ")
    own = ", ".join(each for each in describe(setting).split(", ") if each not in usual)
    why = f"{SAVED}{f' ({own})' if own else ''} was {claim(profile)}"
    return _tuned(plan, setting, why, request, facts)


def _noted(plan: Plan, note: str) -> Plan:
    return plan.updated(plan.setting, {"threads": f"{plan.reasons['threads']}; {note}"})


def _tuned(plan: Plan, found: Setting, why: str, request: Request, facts: Facts) -> Plan:
    ours, is_asked = plan.setting, request.memory != AUTO
    # Leave out fields that this program has no flags for: a chat may use another program of the
    # engine than the one that was measured.
    flags = facts.engine.flags_for(request.chat)
    unread = {field for field in KNOB_FLAGS if not obeys(field, flags)} - {"threads_batch"}
    unread |= read_by_engine(facts.environ).keys()
    if "numa" in unread or not facts.numactl:
        unread |= {"node", "interleave"}
    obeyed = found._replace(**{field: Setting._field_defaults[field] for field in unread})
    too_short = None if is_asked else _too_short(found, request, facts)
    if too_short:
        obeyed = obeyed._replace(mmap=None)
    room = memory.has_room(facts.host, facts.model) or obeyed.mmap is not False
    need = memory.need_of(facts.model, request.ctx_size, request.ubatch)
    no_lock = memory.no_lock(facts, request.chat, need)
    wanted = obeyed._replace(
        env=_environment(ours, found, request, facts, copied=obeyed.mmap is False and room),
        cpus=None if openmp.user_binding(facts.environ) else found.cpus,
        # The plan has a smaller micro-batch if the prompt fits in it, or memory needs it.
        ubatch=request.ubatch or ours.ubatch or found.ubatch,
        mmap=ours.mmap if is_asked else obeyed.mmap if room else None,
        mlock=ours.mlock or (found.mlock and not is_asked and not no_lock),
        nice=ours.nice,
    )
    if request.performance:
        # Let threads spin, and bind them to the plan's CPUs if none were measured and they suffice
        # for all threads.
        held = max(wanted.threads, wanted.threads_batch) <= max(ours.threads, ours.threads_batch)
        wanted = wanted._replace(
            cpus=wanted.cpus or (ours.cpus if held else None),
            poll=ours.poll if wanted.poll is None else wanted.poll,
        )
    if missing := _missing(wanted, found):
        why = f"{why}; left out in this run: {', '.join(missing)}"
    plan = memory.with_setting(plan, wanted, request)
    reasons = _reasons(plan, found, why, request, facts)
    if too_short:
        reasons["mmap"] = too_short
    warning = "too little memory to copy the model, as in the measured profile: it is mapped"
    return plan.updated(wanted, reasons, () if room else (warning,))


def _missing(wanted: Setting, found: Setting) -> list[str]:
    """Return the parts of the measured setting that are missing."""
    # Performance mode only adds to it, and a prompt in one micro-batch loses nothing by its size.
    kept = wanted._replace(
        env=found.env,
        nice=found.nice,
        ubatch=found.ubatch,
        mlock=wanted.mlock and found.mlock,
        cpus=found.cpus and wanted.cpus,
        poll=None if found.poll is None else wanted.poll,
    )
    names = sorted(found.variables.keys() - wanted.variables.keys())
    lost = [each for each in describe(found).split(", ") if each not in describe(kept).split(", ")]
    return [*lost, *(f"{name}={found.variables[name]}" for name in names)]


def _too_short(found: Setting, request: Request, facts: Facts) -> str | None:
    """Return why this run is too short for a copy of the model to pay off, or None if it is not. A
    copy makes tokens faster but loading slower, and a tuning measures only the tokens."""
    evidence = facts.profile.evidence if facts.profile else None
    alone = request.prompt is not None or request.prompt_file is not None
    if found.mmap is not False or not alone or request.chat or request.n_predict < 0:
        return None
    if evidence is None or not (least := copy_pays_from(evidence, facts.model.size)):
        return None
    size = request.prompt_bytes(facts.prompt_file_bytes)
    is_prompt = evidence.objective.name == "pp"
    if (memory.estimate(size or 0) if is_prompt else request.n_predict) >= least:
        return None
    cost = f"loads about {facts.model.size / COPY_RATE:.1f} s longer"
    slow = f"a copy of the model was measured faster, but {cost}"
    return f"on: {slow}; it pays off only for {least:.0f} tokens or more"


def copy_pays_from(evidence: Evidence, size: int) -> float | None:
    """Return the number of tokens from which on it pays off to copy a model of ``size`` bytes,
    although that loads slower; None if a setting's gain per token is not known."""
    speed = evidence.speeds.get("pp" if evidence.objective.name == "pp" else "tg")
    gain = evidence.ratio.median - 1 if evidence.ratio else 0.0
    return size / COPY_RATE * speed / gain if speed and gain > 0 else None


def _environment(
    ours: Setting, found: Setting, request: Request, facts: Facts, copied: bool
) -> tuple[tuple[str, str], ...]:
    """Return the profile's variables, except those that the user decides."""
    environ, planned = facts.environ, ours.variables
    theirs = {name for name, _ in found.env if openmp.user_set(environ, name)}
    # A half of the profile's binding or waiting beside the user's own was never measured.
    if openmp.user_binding(environ):
        theirs |= set(BINDING)
    if any(openmp.user_set(environ, name) for name in WAITING_BY_USER):
        theirs |= set(WAITING_BY_USER)
    if not copied or request.memory != AUTO:
        theirs.add(TUNABLES)
    kept = {name: text for name, text in found.env if name not in theirs}
    if "OMP_PROC_BIND" not in kept:
        kept = openmp.without_binding(kept, environ)
    if TUNABLES in planned:
        kept[TUNABLES] = planned[TUNABLES]
    if request.performance:
        kept |= {name: planned[name] for name in WAITING_BY_USER if name in planned}
    return tuple(sorted((openmp.in_chats(kept) if request.chat else kept).items()))


def _reasons(
    plan: Plan, found: Setting, why: str, request: Request, facts: Facts
) -> dict[str, str]:
    """Return a sentence for every field that the profile decides."""
    wanted = plan.setting
    reasons = {
        name: f"{shown(value)}: {why}"
        for name, value in wanted._asdict().items()
        if value == getattr(found, name) and value != Setting._field_defaults.get(name)
    }
    if request.ubatch:
        reasons.pop("ubatch", None)
    if len(facts.host.nodes) > 1:
        placed = wanted.node is not None or wanted.interleave is not None
        reasons["numa"] = f"{wanted.numa or ('numactl' if placed else 'nothing placed')}: {why}"
    if binding := openmp.user_binding(facts.environ):
        reasons["cpus"] = f"{NOT_BOUND}: you bind the threads yourself with {binding}"
    elif wanted.cpus is found.cpus is None:
        reasons["cpus"] = f"{NOT_BOUND}: {why}"
    env = [f"{'as measured' if set(wanted.env) & set(found.env) else 'no variables'}: {why}"]
    decided = {*wanted.variables, *THREAD_COUNTS, TUNABLES}
    left = ", ".join(name for name, _ in found.env if name not in decided)
    env += [f"left out in favour of your own variables: {left}"] if left else []
    if "OMP_PROC_BIND" in wanted.variables.keys() - found.variables.keys():
        env.append("OMP_PROC_BIND=false undoes what bitnet-env.sh exported")
    need = memory.need_of(facts.model, request.ctx_size, wanted.ubatch)
    loading = memory.loading_reason(wanted, need, facts.host.memory.available)
    return {**reasons, "env": "; ".join(env), "memory": loading}
