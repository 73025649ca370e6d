"""From facts to one decision: how to run this engine with this model here; pure."""

from __future__ import annotations

from bitnet_tuning import isa
from bitnet_tuning.command import Facts, Plan, apply_setting, build_command
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.ggml_types import I2_S
from bitnet_tuning.isa import KERNEL_ISA
from bitnet_tuning.openmp import choose_variables
from bitnet_tuning.records import TYPE_CHECKING, NamedTuple
from bitnet_tuning.threads import Threads, choose_threads

if TYPE_CHECKING:
    from bitnet_tuning.engine import Engine
    from bitnet_tuning.gguf import ModelFile
    from bitnet_tuning.host import Host
    from bitnet_tuning.request import Request

__all__ = ["KERNEL_ISA", "Facts", "Plan", "apply_setting", "make_plan"]

GIBIBYTE = 1 << 30
MEBIBYTE = 1 << 20

PERFORMANCE_NICE = -5
"""Niceness asked for in performance mode: before ordinary work, behind the kernel's own."""

MLOCK_SHARE = 0.8
"""Of the available memory a locked model may take at most this much."""


def make_plan(request: Request, facts: Facts) -> Plan:
    """Decides everything. Raises UnsupportedError where engine and model cannot work
    together, UsageError for a senseless variable."""
    computed = _computed(request, facts)
    if facts.profile is None:
        return computed
    from bitnet_tuning.tuned import with_profile  # noqa: PLC0415

    return with_profile(computed, facts.profile, request, facts)


def _computed(request: Request, facts: Facts) -> Plan:
    """From the facts alone."""
    host, engine, model, environ = facts.host, facts.engine, facts.model, facts.environ
    check_pair(engine, model)
    check_isa(engine, host)
    threads = choose_threads(
        host, environ, request.threads, request.threads_batch, request.max_threads
    )
    openmp = choose_variables(
        engine.openmp, engine.blas, threads.generation, host.quota_binds, environ
    )
    boost = _boost(facts, request.chat) if request.performance else NO_BOOST
    draft = Plan(
        command=(),
        env=openmp.variables,
        cpus=threads.cpus,
        threads=threads.generation,
        threads_batch=threads.prompt,
        batch=request.batch,
        ubatch=request.ubatch,
        engine=engine.path,
        model=model.path,
        reasons={},
        warnings=(
            *threads.warnings,
            *boost.warnings,
            *_kernel_warnings(engine, model),
            *_memory_warnings(host, model),
        ),
        mlock=boost.mlock,
        nice=boost.nice,
    )
    reasons = _reasons(request, facts, threads, openmp.reason)
    if request.performance:
        reasons["performance"] = boost.reason
    return draft._replace(
        command=build_command(draft, request, engine, facts.feeds_stdin), reasons=reasons
    )


def _reasons(request: Request, facts: Facts, threads: Threads, env_reason: str) -> dict[str, str]:
    """A sentence for every field of a plan."""
    model = facts.model
    return {
        "command": _why_command(facts.engine, request),
        "env": env_reason,
        "cpus": threads.cpus_reason,
        "threads": threads.reason,
        "threads_batch": threads.prompt_reason,
        "batch": _why_batch(request.batch, "--batch-size"),
        "ubatch": _why_batch(request.ubatch, "--ubatch-size"),
        "engine": facts.engine.location.source,
        "isa": isa.reason(facts.engine, facts.host.isa, model.quantization),
        "model": f"{facts.model_reason}: {model.architecture}, {model.quantization}",
    }


def check_pair(engine: Engine, model: ModelFile) -> None:
    """Refuses what would fail after loading, or worse, compute garbage; says what works."""
    if model.quantization in ("tl1", "tl2"):
        raise UnsupportedError(
            f"{model.path} is a {model.quantization} file: it works only in a build generated "
            "for its very shape",
            "use the model's i2_s file: python3 setup_env.py -md MODEL_FOLDER -q i2_s",
        )
    if model.quantization == I2_S and engine.i2_s is False:
        kind = "the embedded engine" if engine.embedded else engine.path
        raise UnsupportedError(
            f"{kind} is mainline llama.cpp and has no i2_s kernels, which {model.path} needs",
            "use a llama-cli built from bitnet.cpp (--engine), or a TQ2_0 file of the model",
        )
    if engine.architectures.get(model.architecture) is False:
        raise UnsupportedError(
            f"the engine {engine.path} does not know the architecture "
            f"{model.architecture!r} of {model.path}",
            "use a current bitnet.cpp build (--engine), or another file of the model",
        )


def check_isa(engine: Engine, host: Host) -> None:
    """Refuses a build for another CPU, before an illegal instruction ends it without a word."""
    refused = isa.refusal(engine, host.isa)
    if refused is None:
        return
    if engine.embedded:
        raise UnsupportedError(
            f"the embedded engine {refused}",
            "build bitnet.cpp or llama.cpp on this machine and name its llama-cli with --engine",
        )
    another = engine.checkout and f"; of several in {engine.checkout} that folder takes the best"
    raise UnsupportedError(
        f"{engine.path} {refused}",
        "build it on this machine (cmake -B build -DGGML_NATIVE=ON), or name another build "
        f"with --engine{another or ''}",
    )


def _why_command(engine: Engine, request: Request) -> str:
    if engine.embedded:
        return "the embedded engine takes llama-cli's flags"
    if request.chat:
        return "llama-cli runs chats"
    if engine.completion:
        return "one-shot prompts belong to llama-completion; llama-cli beside it is a chat program"
    return "llama-cli completes a prompt and exits"


def _why_batch(asked: int | None, flag: str) -> str:
    return f"as {flag} says" if asked else "the engine's own default"


class _Boost(NamedTuple):
    """What performance mode comes to."""

    mlock: bool
    nice: int
    reason: str
    warnings: tuple[str, ...]


NO_BOOST = _Boost(False, 0, "", ())


def _boost(facts: Facts, chat: bool) -> _Boost:
    refused = _no_lock(facts, facts.engine.chat_flags if chat else facts.engine.flags)
    privileges = facts.privileges
    lowest = privileges.lowest_nice if privileges else 0
    nice = PERFORMANCE_NICE if lowest <= PERFORMANCE_NICE else 0
    warnings = [refused] if refused else []
    if not nice:
        warnings.append("priority is not raised: that needs root or a nice limit (ulimit -e)")
    said = [f"niceness {nice:+d} where the kernel grants it" if nice else "ordinary priority"]
    said.append("the model stays unlocked" if refused else "the model is locked in memory")
    return _Boost(not refused, nice, "; ".join(said), tuple(warnings))


def _no_lock(facts: Facts, flags: frozenset[str]) -> str | None:
    """Why the model is not locked in memory, or None where that is allowed and safe."""
    model, available = facts.model, facts.host.memory.available
    limit = facts.privileges.lockable if facts.privileges else 0
    if not flags & {"--mlock", "--load-mode"}:
        return "the model is not locked in memory: this engine cannot"
    if available is None or model.size > MLOCK_SHARE * available:
        return "the model is not locked in memory: too little is available"
    if limit is not None and model.size > limit:
        return (
            f"the model is not locked in memory: the limit is {limit // MEBIBYTE} MiB (ulimit -l)"
        )
    return None


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
