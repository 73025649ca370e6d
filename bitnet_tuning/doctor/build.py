"""Checks of the engine: its build, age, kernels, libraries, self-test and saved profile."""

from __future__ import annotations

from shlex import quote

from bitnet_tuning.console import command, counted
from bitnet_tuning.doctor.case import MEASURE, Case, Check, Finding, bad, good, unknown, warn
from bitnet_tuning.engine.builds import version_words
from bitnet_tuning.engine.find import NONE_COMPILED
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA, has, refusal
from bitnet_tuning.errors import TuningError
from bitnet_tuning.model.types import I2_S
from bitnet_tuning.plan.profile import claim
from bitnet_tuning.plan.setting import describe

OLD = 365
"""Age in days from which an update is advised; bitnet.cpp's kernels change a few times a year."""

_SELFTEST = f"see whether the texts are right: {command('selftest')}"
_MEASURE = f"measure which setting is fastest: {MEASURE}"


def _engine(case: Case) -> Finding | None:
    engine = case.engine
    if engine is None:
        return None
    if isinstance(engine, TuningError):
        return bad(engine.cause, engine.remedy)
    if engine.location.source == NONE_COMPILED:
        text = f"the embedded engine is used because {NONE_COMPILED}; it has no i2_s kernels"
        return warn(text, "build bitnet.cpp, then name its folder with --engine or BITNET_ENGINE")
    if refused := refusal(engine, case.host.isa):
        return bad(f"{engine.path} {refused}", "build it on this machine")
    if not engine.flags:
        remedy = f"look at what it prints: {quote(engine.path)} --help"
        return bad(f"{engine.path} cannot be run: it does not answer --help", remedy)
    kind = "mainline llama.cpp" if engine.i2_s is False else "bitnet.cpp"
    program = "llama-cli" if engine.completion is None else "llama-completion"
    kind = "the embedded engine" if engine.embedded else f"{kind} whose {program} completes prompts"
    openmp = f"OpenMP runtime: {engine.openmp or 'unknown'}"
    return good(f"{kind}: {engine.path}{version_words(engine.version)}, {openmp}")


def _age(case: Case) -> Finding | None:
    if case.built is None:
        return None
    days = int((case.now - case.built) / 86400)
    text = f"built {counted(days, 'day')} ago" if days > 0 else "built today"
    if days <= OLD:
        return good(text)
    advice = "in its checkout: git pull --recurse-submodules, then build it again with setup_env.py"
    return warn(f"{text}; newer kernels may be faster", advice)


def _cpu_kernels(case: Case) -> Finding:
    if not case.host.isa:
        return _untold(case, "the CPU's instruction sets are not known")
    cpu = has(case.host.isa)
    if "AVX2" in cpu:
        return good("the CPU has AVX2, which the i2_s kernels use")
    if "DOTPROD" in cpu:
        return good("the CPU has NEON with dot products, which the i2_s kernels use")
    if "NEON" in cpu:
        text = "the CPU has NEON without dot products, so the i2_s kernels take a slower path"
        return warn(text, "no setting helps; use a smaller model or another CPU")
    text = "the CPU has neither AVX2 nor NEON, and i2_s kernels exist for these two only"
    return bad(text, "use a TQ2_0 or TQ1_0 file of the model with mainline llama.cpp")


def _build_kernels(case: Case) -> Finding | None:
    engine, model = case.known_engine, case.known_model
    if engine is None:
        return None
    if not engine.isa:
        return _untold(case, f"{engine.path} does not print what it is built for")
    if found := sorted(engine.isa & KERNEL_ISA):
        return good(f"built with {', '.join(found)}")
    worse = bad if model is not None and model.quantization == I2_S else warn
    text = f"{engine.path} is built without AVX2 and NEON: with i2_s it prints garbage or aborts"
    return worse(text, "build it again with -DGGML_NATIVE=ON, or with -DGGML_AVX2=ON -DGGML_FMA=ON")


def _untold(case: Case, text: str) -> Finding:
    passed = getattr(case.selftest, "passed", None)
    return good(f"{text}, but the self-test passed") if passed else unknown(text, _SELFTEST)


def _libraries(case: Case) -> Finding | None:
    if case.swapped is None:
        return None
    if case.swapped:
        what = f"load {', '.join(case.swapped)} of another build"
        return bad(f"LD_LIBRARY_PATH makes the engine {what}", "unset LD_LIBRARY_PATH")
    return good("the engine loads the libraries that it was built with")


def _selftest(case: Case) -> Finding | None:
    report = case.selftest
    if case.known_engine is None:
        return None
    if report is None:
        return unknown("the self-test was not run", _SELFTEST)
    if isinstance(report, TuningError):
        return bad(f"the self-test could not run: {report.cause}", report.remedy)
    text = f"{report.right} of {len(report.results)} runs gave the expected text"
    if report.passed:
        return good(text)
    worse = unknown if report.passed is None else bad
    return worse(f"{text}: {report.cause}", report.remedy or _SELFTEST)


def _profile(case: Case) -> Finding | None:
    profile = case.profile
    if case.known_engine is None or case.known_model is None:
        return None
    if profile is not None:
        if profile.setting is None:
            return good(f"a tuning on {profile.day} found no setting faster than the default")
        return good(f"{describe(profile.setting)}: {claim(profile)}")
    if case.stale:
        stale, changes = case.stale
        text = f"profile {stale.id} does not apply any more: {'; '.join(changes)}"
        return warn(text, _MEASURE)
    return unknown("no tuning was saved for this machine, engine and model", _MEASURE)


_KERNEL_SOURCE = "bitnet.cpp: src/ggml-bitnet-mad.cpp has AVX2 and NEON kernels only"

CHECKS: tuple[Check, ...] = (
    ("engine", _engine, "the engine's --help and --version, asked once and remembered"),
    ("engine age", _age, "modification times of the engine's files"),
    ("CPU for i2_s", _cpu_kernels, _KERNEL_SOURCE),
    ("build for i2_s", _build_kernels, f"the engine's system_info; {_KERNEL_SOURCE}"),
    ("libraries", _libraries, "ld.so(8): LD_LIBRARY_PATH goes before a program's RUNPATH"),
    ("self-test", _selftest, "the demo model: every correct kernel generates the same text"),
    ("profile", _profile, "tunings that the benchmark saved on this machine"),
)
