"""From facts to one decision: how to run this engine with this model here; pure."""

from __future__ import annotations

from bitnet_tuning.console import GIBIBYTE
from bitnet_tuning.engine import instruction_sets
from bitnet_tuning.engine.builds import check_isa, check_pair
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.batch import Batch, choose_batch, prompt_bytes
from bitnet_tuning.plan.command import build_command
from bitnet_tuning.plan.facts import Facts, Plan
from bitnet_tuning.plan.memory import BY_DEFAULT, Loading, need_of, sum_text
from bitnet_tuning.plan.openmp import OpenMP, choose_variables
from bitnet_tuning.plan.placement import Boost, Placement
from bitnet_tuning.plan.threads import Threads, choose_threads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.memory import Need
    from bitnet_tuning.plan.request import Request


def make_plan(request: Request, facts: Facts) -> Plan:
    """Decides everything. Raises UnsupportedError where engine and model cannot work
    together, UsageError for a senseless variable."""
    computed = _computed(request, facts)
    if facts.profile is None:
        return computed
    from bitnet_tuning.plan.tuned import with_profile  # noqa: PLC0415

    return with_profile(computed, facts.profile, request, facts)


class _Parts(NamedTuple):
    """The decisions that a plan is made of."""

    threads: Threads
    env: OpenMP
    batch: Batch
    placement: Placement
    loading: Loading
    boost: Boost | None


def _computed(request: Request, facts: Facts) -> Plan:
    """From the facts alone."""
    engine, model = facts.engine, facts.model
    check_pair(engine, model)
    check_isa(engine, facts.host)
    parts = _decide(request, facts)
    threads, placement, loading, boost = parts.threads, parts.placement, parts.loading, parts.boost
    extra = boost.env if boost else {}
    draft = Plan(
        command=(),
        env={**parts.env.variables, **extra, **loading.env},
        cpus=boost.cpus if boost and boost.cpus is not None else placement.cpus,
        threads=threads.generation,
        threads_batch=placement.prompt_threads,
        batch=parts.batch.batch,
        ubatch=parts.batch.ubatch,
        engine=engine.path,
        model=model.path,
        reasons=_reasons(request, facts, parts),
        warnings=(
            *threads.warnings,
            *(boost.warnings if boost else ()),
            *loading.warnings,
            *placement.warnings,
            *parts.batch.warnings,
            *_kernel_warnings(engine, model),
            *_memory_warnings(facts.host, model),
        ),
        mlock=loading.mlock,
        nice=boost.nice if boost else 0,
        mmap=loading.mmap,
        poll=boost.poll if boost else None,
        numa=placement.numa,
        node=placement.node,
        interleave=placement.interleave,
    )
    command = build_command(draft, request, engine, facts.feeds_stdin)
    return draft._replace(command=command)


def _decide(request: Request, facts: Facts) -> _Parts:
    """Each part from the facts and the parts before it."""
    host, engine, environ = facts.host, facts.engine, facts.environ
    flags = engine.flags_for(request.chat)
    threads = choose_threads(
        host, environ, request.threads, request.threads_batch, request.max_threads
    )
    size = prompt_bytes(request, facts.prompt_file_bytes)
    batch = choose_batch(request, facts.model, size, host.memory.available, "-ub" in flags)
    need = need_of(facts.model, request.ctx_size, batch.ubatch)
    placement = _placement(facts, threads, need, flags)
    stops = host.quota_stops(threads.generation)
    openmp = choose_variables(
        *(engine.openmp, engine.blas, threads.generation, stops, environ),
        moved=placement.numa is not None,
    )
    boost = None
    if request.performance:
        from bitnet_tuning.plan.placement import choose_boost  # noqa: PLC0415

        most = max(threads.generation, placement.prompt_threads)
        boost = choose_boost(facts, most, placement, flags)
    loading = _loading(request, facts, need, flags)
    return _Parts(threads, openmp, batch, placement, loading, boost)


def _placement(facts: Facts, threads: Threads, need: Need, flags: frozenset[str]) -> Placement:
    """Most machines have one node; they load no code for more."""
    if len(facts.host.nodes) < 2:
        return Placement(threads.cpus, threads.prompt, "one NUMA node: nothing to do")
    from bitnet_tuning.plan.placement import choose_placement  # noqa: PLC0415

    return choose_placement(facts, threads, need, flags)


def _loading(request: Request, facts: Facts, need: Need, flags: frozenset[str]) -> Loading:
    if request.memory is None and not request.performance:
        return Loading(
            None, False, {}, f"{BY_DEFAULT}; {sum_text(need, facts.host.memory.available)}"
        )
    from bitnet_tuning.plan.memory import choose_loading  # noqa: PLC0415

    return choose_loading(request, facts, flags, need, lock=request.performance)


def _reasons(request: Request, facts: Facts, parts: _Parts) -> dict[str, str]:
    """A sentence for every field of a plan."""
    model, threads, placement, boost = facts.model, parts.threads, parts.placement, parts.boost
    cpus_reason = placement.cpus_reason or threads.cpus_reason
    if boost and boost.cpus_reason:
        cpus_reason = boost.cpus_reason
    prompt_reason = threads.prompt_reason
    if placement.prompt_threads != threads.prompt:
        prompt_reason = f"{placement.prompt_threads}: the cores of the node that generates"
    reasons = {
        "command": _why_command(facts.engine, request),
        "env": parts.env.reason,
        "cpus": cpus_reason,
        "threads": threads.reason,
        "threads_batch": prompt_reason,
        "batch": parts.batch.reason,
        "ubatch": parts.batch.ubatch_reason,
        "engine": facts.engine.location.source,
        "isa": instruction_sets.reason(facts.engine, facts.host.isa, model.quantization),
        "model": f"{facts.model_reason}: {model.architecture}, {model.quantization}",
        "numa": placement.reason,
        "memory": parts.loading.reason,
    }
    return {**reasons, "performance": boost.reason} if boost else reasons


def _why_command(engine: Engine, request: Request) -> str:
    if engine.embedded:
        return "the embedded engine takes llama-cli's flags"
    if request.chat:
        return "llama-cli runs chats"
    if engine.completion:
        return "one-shot prompts belong to llama-completion; llama-cli beside it is a chat program"
    return "llama-cli completes a prompt and exits"


def _kernel_warnings(engine: Engine, model: ModelFile) -> tuple[str, ...]:
    """i2_s has kernels for AVX2 and NEON only; others compute garbage without a word."""
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
