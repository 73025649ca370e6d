"""A plan with a measured profile in it, as far as the user leaves it room; pure."""

from __future__ import annotations

from bitnet_tuning.command import apply_setting
from bitnet_tuning.openmp import (
    BINDING,
    THREAD_COUNTS,
    WAITING_BY_USER,
    binds_itself,
    exported,
    user_set,
)
from bitnet_tuning.profile_record import Profile, claim, day
from bitnet_tuning.records import TYPE_CHECKING
from bitnet_tuning.setting import Setting, describe
from bitnet_tuning.threads import asked_threads

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from bitnet_tuning.command import Facts, Plan
    from bitnet_tuning.ggml_types import ModelFile
    from bitnet_tuning.host import Host
    from bitnet_tuning.request import Request

COPY_SHARE = 0.8
"""Of the available memory, which a model read without mmap may take at most: unlike mapped
pages, its copy cannot be dropped."""

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
    room = has_room(facts.host, facts.model) or obeyed.mmap is not False
    wanted = obeyed._replace(
        env=tuple(_environment(found, facts.environ).items()),
        cpus=None if binds_itself(facts.environ) else found.cpus,
        ubatch=request.ubatch or found.ubatch,
        mmap=obeyed.mmap if room else None,
        mlock=plan.mlock,
        nice=plan.nice,
    )
    tuned = apply_setting(plan, wanted, request, facts)
    if _is_partial(wanted, found):
        why = f"{why}, with more than can be used here"
    warning = "the model is not read without mmap as was measured: too little memory is available"
    return tuned._replace(
        reasons={**plan.reasons, **_reasons(tuned, found, why, request, facts.environ)},
        warnings=plan.warnings if room else (*plan.warnings, warning),
    )


def _is_partial(wanted: Setting, found: Setting) -> bool:
    """Whether something of what was measured is missing; performance mode only adds."""
    same = wanted._replace(env=found.env, mlock=found.mlock, nice=found.nice) == found
    return not same or not set(found.env) <= set(wanted.env)


def _not_obeyed(request: Request, facts: Facts) -> dict[str, Any]:
    flags = facts.engine.chat_flags if request.chat else facts.engine.flags
    return {field: None for field, names in _FLAGS.items() if not flags.intersection(names)}


def has_room(host: Host, model: ModelFile) -> bool:
    """Whether the model may be read without mmap."""
    available = host.memory.available
    return available is not None and model.size <= COPY_SHARE * available


def _environment(found: Setting, environ: Mapping[str, str]) -> dict[str, str]:
    """The profile's variables but for what the user decided. Half of a binding, or another
    word on how to wait beside the user's, would be something that was never measured."""
    theirs = {name for name in dict(found.env) if user_set(environ, name)}
    if binds_itself(environ):
        theirs |= set(BINDING)
    if any(user_set(environ, name) for name in WAITING_BY_USER):
        theirs |= set(WAITING_BY_USER)
    kept = {name: text for name, text in found.env if name not in theirs}
    if "OMP_PROC_BIND" in exported(environ) and "OMP_PROC_BIND" not in kept:
        kept["OMP_PROC_BIND"] = "false"  # what bitnet-env.sh exported would reach the engine
    return kept


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
        if value is not None and not (name == "ubatch" and request.ubatch):
            ours[name] = f"{_word(value)}: {why}"
    return ours


def _word(value: object) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
