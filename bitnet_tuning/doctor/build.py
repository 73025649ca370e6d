"""The engine: which one, how old, its kernels and libraries, what was measured of it; pure."""

from __future__ import annotations

from bitnet_tuning.doctor.case import BENCHMARK, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.engine.find import NONE, NONE_COMPILED, Engine
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA, WIDE, has, refusal
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.plan.profile import claim
from bitnet_tuning.plan.setting import describe

OLD = 365.0
"""Days. Bitnet.cpp's kernels change a few times a year."""

SAME_TIME = 60.0
"""Seconds between a source and a build that prove nothing: a checkout and its build may
begin together, and some sources are written while building."""

_DAY = 86400.0
_SELFTEST = "python3 -m bitnet_tuning selftest"


def _engine(case: Case) -> Finding | None:
    engine = case.engine
    if engine is None:
        return None
    if isinstance(engine, TuningError):
        return bad(engine.cause, engine.remedy)
    if engine.location.source == NONE_COMPILED:
        return warn(
            f"the embedded engine, since {NONE_COMPILED}: it has no i2_s kernels",
            "build bitnet.cpp, then --engine or BITNET_ENGINE names its llama-cli",
        )
    refused = refusal(engine, case.host.isa)
    if refused:
        return bad(f"{engine.path} {refused}", "build it on this machine")
    if not engine.flags:
        return bad(
            f"{engine.path} does not answer --help, so it cannot be run",
            f"see what it says: {engine.path} --help",
        )
    version = f", version {engine.version}" if engine.version else ""
    return good(f"{_kind(engine)}: {engine.path}{version}")


def _kind(engine: Engine) -> str:
    if engine.embedded:
        return "the embedded engine"
    is_mainline = engine.i2_s is False
    kind = "mainline llama.cpp" if is_mainline else "bitnet.cpp"
    if engine.completion is None:
        return f"{kind} whose llama-cli completes prompts"
    since = "December 2025" if is_mainline else "July 2026"
    return f"{kind} of {since} or later, whose llama-completion completes prompts"


def _age(case: Case) -> Finding | None:
    build = case.build
    if build is None or isinstance(build, TuningError) or build.built is None:
        return None
    days = max(0.0, case.now - build.built) / _DAY
    if build.changed is not None and build.changed > build.built + SAME_TIME:
        return warn(
            "sources of the checkout changed after the engine was built",
            "build it again: cmake --build build --config Release",
        )
    text = "built today" if days < 1 else f"built {days:.0f} days ago"
    if days <= OLD:
        return good(text)
    return warn(text, "update and build it again: git pull --recurse-submodules, then setup_env.py")


def _cpu_kernels(case: Case) -> Finding:
    """Judge what the processor offers to i2_s."""
    if not case.host.isa:
        return unknown("the CPU's instruction sets are not known", _SELFTEST)
    cpu = has(case.host.isa)
    if "AVX2" in cpu:
        return good("the CPU has AVX2, which i2_s kernels use")
    if "DOTPROD" in cpu:
        return good("the CPU has NEON with dot products, which i2_s kernels use")
    if "NEON" in cpu:
        return warn(
            "the CPU has NEON without dot products: i2_s takes a slower way",
            "only another CPU helps; a smaller model is faster",
        )
    return bad(
        "the CPU has neither AVX2 nor NEON, and i2_s has kernels for no other",
        "take a TQ2_0 or TQ1_0 file of the model and a mainline llama.cpp",
    )


def _build_kernels(case: Case) -> Finding | None:
    """Judge what the build offers to i2_s, by its system_info line."""
    engine, model = case.known_engine, case.known_model
    if engine is None:
        return None
    if not engine.isa:
        return unknown(f"{engine.path} printed no system_info", _SELFTEST)
    found = sorted(engine.isa & KERNEL_ISA)
    if found:
        return good(f"built with {', '.join(found)}")
    worse = bad if model is not None and model.quantization == I2_S else warn
    return worse(
        f"{engine.path} is built without AVX2 and NEON: i2_s computes garbage or aborts",
        "build it again with -DGGML_NATIVE=ON, or -DGGML_AVX2=ON -DGGML_FMA=ON",
    )


def _wide_vectors(case: Case) -> Finding | None:
    wide = has(case.host.isa) & WIDE
    if not wide:
        return None
    names = "AVX-512" if "AVX512" in wide else "VNNI"
    engine = case.known_engine
    if engine and engine.isa and not engine.isa & WIDE:
        return good(f"the CPU has {names}, the build does not use it; i2_s has no kernel for it")
    return good(f"the CPU has {names}; i2_s has no kernel for it and runs its AVX2 one")


def _openmp(case: Case) -> Finding | None:
    engine = case.known_engine
    if engine is None:
        return None
    if engine.openmp is None:
        return unknown(
            f"which OpenMP runtime {engine.path} uses is not known: only portable variables are set"
        )
    if engine.openmp == NONE:
        return good("built without OpenMP: ggml's own threads, which --poll and --prio act on")
    return good(f"{engine.openmp}; --poll, --prio and --cpu-mask do nothing with it")


def _libraries(case: Case) -> Finding | None:
    build = case.build
    if build is None:
        return None
    if isinstance(build, TuningError):
        return unknown(f"the engine's files: {build.cause}", build.remedy)
    if build.swapped:
        return bad(
            f"LD_LIBRARY_PATH puts {', '.join(build.swapped)} in place of the engine's own library",
            "unset LD_LIBRARY_PATH",
        )
    return good("the engine uses the libraries that it was built with")


def _selftest(case: Case) -> Finding | None:
    report = case.selftest
    if case.known_engine is None:
        return None
    if report is None:
        return unknown("the self-test was left out", _SELFTEST)
    if isinstance(report, TuningError):
        return bad(f"the self-test could not run: {report.cause}", report.remedy)
    text = f"{report.right} of {len(report.results)} runs gave the expected text"
    if report.passed:
        return good(text)
    return bad(f"{text}: {report.cause}", report.remedy or _SELFTEST)


def _profile(case: Case) -> Finding | None:
    profile = case.profile
    if case.known_engine is None or case.known_model is None:
        return None
    if isinstance(profile, TuningError):
        return unknown(f"the stored profile cannot be read: {profile.cause}", profile.remedy)
    if profile is not None:
        if profile.setting is None:
            return good(f"a tuning on {profile.day} found nothing faster than the default")
        return good(f"{describe(profile.setting)}: {claim(profile)}")
    if case.stale:
        newest = case.stale[0]
        id_, changes = newest.profile.id, "; ".join(newest.changes)
        return warn(f"profile {id_} is out of date: {changes}", BENCHMARK)
    return unknown("nothing was measured for this machine, engine and model", BENCHMARK)


_KERNEL_SOURCE = "bitnet.cpp: src/ggml-bitnet-mad.cpp has AVX2 and NEON kernels only"

CHECKS: tuple[Check, ...] = (
    ("engine", _engine, "--help and --version, asked once and remembered"),
    ("engine age", _age, "when its files and the checkout's sources were last written"),
    ("CPU for i2_s", _cpu_kernels, _KERNEL_SOURCE),
    ("build for i2_s", _build_kernels, f"the engine's system_info; {_KERNEL_SOURCE}"),
    ("wide vectors", _wide_vectors, _KERNEL_SOURCE),
    ("OpenMP runtime", _openmp, "which libraries the engine needs; llama.cpp's ggml-cpu"),
    ("libraries", _libraries, "ld.so(8): LD_LIBRARY_PATH goes before a program's RUNPATH"),
    ("self-test", _selftest, "the demo model, whose text any correct kernel continues alike"),
    ("profile", _profile, "measured on this machine by benchmark_optimized.py"),
)
