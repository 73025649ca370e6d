"""Make a plan: how to run this engine with this model on this machine."""

from __future__ import annotations

from bitnet_tuning.console import size_text
from bitnet_tuning.engine import instruction_sets
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA, lacks_kernels
from bitnet_tuning.engine.known import check_isa, check_pair
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.host import Host
from bitnet_tuning.model.types import gain_text
from bitnet_tuning.plan import memory, openmp
from bitnet_tuning.plan.command import build_command, read_by_engine
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.plan.threads import BY_OPENMP, NOT_BOUND, choose_threads, make_way

_WEAK = "is built without AVX2 and NEON, one of which i2_s models need: it writes garbage"


def make_plan(request: Request, facts: Facts, setting: Setting | None = None) -> Plan:
    """Return the plan for a request, with its command. A ``setting`` replaces the computed one.
    Raise UnsupportedError if engine, model and host cannot work together, and UsageError if
    BITNET_THREADS is not a valid number or the prompt is too long."""
    check_pair(facts.engine, facts.model)
    check_isa(facts.engine, facts.host)
    weak = lacks_kernels(facts.engine, facts.model.quantization)
    if weak and not facts.force:
        cpu, build = instruction_sets.has(facts.host.isa), "cmake --build build"
        remedy = f"build it again for this CPU: cmake -B build -DGGML_NATIVE=ON && {build}"
        if cpu and not cpu & KERNEL_ISA:
            remedy = "this CPU has neither: use a TQ2_0 file of the model with mainline llama.cpp"
        remedy += " (--force runs it nevertheless)"
        raise UnsupportedError(f"{facts.engine.path} {_WEAK}", remedy)
    plan = _computed(request, facts)
    if setting is not None:
        plan = memory.with_setting(plan, setting, request)
    elif facts.profile is not None:
        from bitnet_tuning.plan.tuned import with_profile  # noqa: PLC0415 (many users have none)

        plan = with_profile(plan, facts.profile, request, facts)
    if facts.neighbours is not None and setting is None:
        plan = make_way(plan, request, facts.host, facts.neighbours, facts.environ)
    named = {field: f"{getattr(request, field)}: set by {name}" for field, name in request.named}
    for field, name in read_by_engine(facts.environ).items():
        if not getattr(plan.setting, field):  # else a flag decides
            named[field] = f"left to the engine, which obeys your {name}={facts.environ[name]}"
    if plan.setting.variables.get("OMP_PROC_BIND") == "true":
        named["cpus"] = plan.reasons["cpus"].replace(NOT_BOUND, BY_OPENMP)
    plan = plan.updated(plan.setting, named)
    return plan._replace(command=build_command(plan, request, facts))


def _computed(request: Request, facts: Facts) -> Plan:
    """Return the plan without a measured profile: each subject adds its part to the ones before."""
    host, engine, model = facts.host, facts.engine, facts.model
    limit = openmp.thread_limit(engine.openmp, facts.environ)
    plan = choose_threads(request, host, facts.environ, limit)
    plan = memory.choose_batch(plan, request, facts)
    need = memory.need_of(model, request.ctx_size, plan.setting.ubatch)
    if len(host.nodes) < 2:
        plan = plan.updated(plan.setting, {"numa": "nothing to choose: one NUMA node"})
    else:
        from bitnet_tuning.plan.placement import choose_placement  # noqa: PLC0415 (few machines need it)

        plan = choose_placement(plan, request, facts, need)
    threads = plan.setting.threads
    unbound = openmp.unbindable(engine.openmp, host.system) or _unbound_reason(plan.setting, host)
    variables, reason = openmp.choose_variables(
        *(engine.openmp, threads, host.quota_stops(threads), facts.environ), unbound=unbound
    )
    plan = plan.updated(plan.setting.with_env(variables), {"env": reason})
    if request.performance:
        from bitnet_tuning.plan.placement import choose_boost  # noqa: PLC0415 (few runs need it)

        plan = choose_boost(plan, request, facts)
    plan = memory.choose_loading(plan, request, facts, need)
    program = "llama-cli, which completes a prompt and exits"
    if engine.embedded:
        program = "the embedded engine, which takes llama-cli's flags"
    elif request.chat:
        program = "llama-cli, which runs chats"
    elif engine.completion:
        program = "llama-completion, since the llama-cli beside it only runs chats"
    cost = gain_text(model)
    reasons = {
        "command": program,
        "engine": f"{'the embedded engine: ' if engine.embedded else ''}{engine.location.source}",
        "isa": instruction_sets.reason(engine, host.isa, model.quantization),
        "model": f"{facts.model_reason}: {model.architecture}, {model.quantization}"
        f"{f'; {cost}' if cost else ''}",
    }
    warnings = (
        *openmp.count_warnings(engine.openmp, facts.environ),
        *((f"{engine.path} {_WEAK}",) if lacks_kernels(engine, model.quantization) else ()),
        *memory.check_context(request, facts),
    )
    available = host.memory.available
    if available is not None and model.size > available:
        sizes = f"the model takes {size_text(model.size)}, but only {size_text(available)}"
        why = "parts of it are read from disk again for every token"
        warnings += (f"{sizes} of memory is available: {why}",)
    return plan.updated(plan.setting, reasons, warnings)


def _unbound_reason(setting: Setting, host: Host) -> str | None:
    """Return why OpenMP's threads are not bound to cores; None if they are."""
    if setting.numa is not None:
        return "the engine binds its threads to nodes itself"
    if not host.topology_known:
        return "the kernel does not show which CPUs share a core"
    # A runtime hands out places from the first CPU of the mask on, so programs whose threads fill
    # only a part of it share the first cores and leave the others idle. Measured with two engines
    # at once: 3.1 + 3.1 tokens/s bound, 4.1 + 4.4 not.
    if host.quota_binds:
        return "other programs under a CPU quota may be bound to the same cores"
    cores = host.cores_in(setting.cpus)
    if setting.threads < cores:
        are = "is" if setting.threads == 1 else "are"
        used = f"{setting.threads} of {cores} cores {are} used"
        return f"{used}, and other programs may choose the same"
    return None
