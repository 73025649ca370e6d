"""From facts to one decision: how to run this engine with this model here; pure."""

from __future__ import annotations

from bitnet_tuning.console import GIBIBYTE
from bitnet_tuning.engine import instruction_sets
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA
from bitnet_tuning.engine.known import check_isa, check_pair
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.plan.command import build_command
from bitnet_tuning.plan.memory import choose_batch, choose_loading, need_of, with_setting
from bitnet_tuning.plan.openmp import choose_variables
from bitnet_tuning.plan.threads import choose_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.facts import Facts, Plan, Request
    from bitnet_tuning.plan.setting import Setting


def make_plan(request: Request, facts: Facts, setting: Setting | None = None) -> Plan:
    """Decide everything, then build the command. A ``setting`` replaces what can be tuned.

    Raise UnsupportedError where engine and model cannot work together, UsageError for a
    senseless variable.
    """
    check_pair(facts.engine, facts.model)
    check_isa(facts.engine, facts.host)
    plan = _computed(request, facts)
    if setting is not None:
        plan = with_setting(plan, setting, request)
    elif facts.profile is not None:
        from bitnet_tuning.plan.tuned import with_profile  # noqa: PLC0415 (most runs have none)

        plan = with_profile(plan, facts.profile, request, facts)
    return plan._replace(command=build_command(plan, request, facts))


def _computed(request: Request, facts: Facts) -> Plan:
    """Return the plan from the facts alone: each subject adds its part to those before it."""
    host, engine, model = facts.host, facts.engine, facts.model
    plan = choose_threads(request, host, facts.environ)
    plan = choose_batch(plan, request, facts)
    need = need_of(model, request.ctx_size, plan.setting.ubatch)
    if len(host.nodes) < 2:
        plan = plan.updated(plan.setting, {"numa": "one NUMA node: nothing to do"})
    else:
        from bitnet_tuning.plan.placement import choose_placement  # noqa: PLC0415 (few machines)

        plan = choose_placement(plan, request, facts, need)
    threads = plan.setting.threads
    variables, reason = choose_variables(
        *(engine.openmp, engine.blas, threads, host.quota_stops(threads), facts.environ),
        moved=plan.setting.numa is not None,
    )
    plan = plan.updated(plan.setting.with_env(variables), {"env": reason})
    if request.performance:
        from bitnet_tuning.plan.placement import choose_boost  # noqa: PLC0415 (few runs)

        plan = choose_boost(plan, facts, engine.flags_for(request.chat))
    plan = choose_loading(plan, request, facts, need)
    reasons = {
        "command": _why_command(engine, request),
        "engine": engine.location.source,
        "isa": instruction_sets.reason(engine, host.isa, model.quantization),
        "model": f"{facts.model_reason}: {model.architecture}, {model.quantization}",
    }
    warnings = (*_kernel_warnings(engine, model), *_memory_warnings(host, model))
    return plan.updated(plan.setting, reasons, warnings)


def _why_command(engine: Engine, request: Request) -> str:
    if engine.embedded:
        return "the embedded engine takes llama-cli's flags"
    if request.chat:
        return "llama-cli runs chats"
    if engine.completion:
        return "one-shot prompts belong to llama-completion; llama-cli beside it is a chat program"
    return "llama-cli completes a prompt and exits"


def _kernel_warnings(engine: Engine, model: ModelFile) -> tuple[str, ...]:
    """Warn of a build without the kernels of i2_s: it computes garbage without a word."""
    has_kernel = engine.isa & KERNEL_ISA
    if model.quantization != I2_S or not engine.isa or has_kernel:
        return ()
    return (
        f"{engine.path} is built without AVX2 and NEON, which i2_s needs: expect garbage; "
        "`python3 -m bitnet_tuning selftest` shows it",
    )


def _memory_warnings(host: Host, model: ModelFile) -> tuple[str, ...]:
    available = host.memory.available
    if available is None or model.size <= available:
        return ()
    return (
        f"the model takes {model.size / GIBIBYTE:.1f} GiB, available are "
        f"{available / GIBIBYTE:.1f}: it will be read from disk again for every token",
    )
