"""Instruction sets: the names they go by, what a build needs, what a CPU has; pure.

Builds are known by the names in llama.cpp's ``system_info`` line (AVX512), compilers by their
options (-mavx512f), CPUs by the kernel's flags (avx512f in /proc/cpuinfo).
"""

from __future__ import annotations

from bitnet_tuning.model.types import TERNARY
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bitnet_tuning.engine.find import Engine


class InstructionSet(NamedTuple):
    """An instruction set by all its names."""

    name: str
    """As llama.cpp's ``system_info`` line has it."""
    flags: tuple[str, ...]
    """The CPU's flags that it stands for, without underscores, the characteristic one first."""
    option: str
    """The compiler's option; on ARM the extension behind ``-march=armv8-a``."""
    implied: tuple[str, ...] = ()
    """Flags that no CPU with the first flag is without: a list of flags may be an excerpt."""


_X86 = (
    InstructionSet("SSE3", ("pni",), "-msse3"),
    InstructionSet("SSSE3", ("ssse3",), "-mssse3", ("pni",)),
    InstructionSet("AVX", ("avx",), "-mavx", ("ssse3",)),
    InstructionSet("F16C", ("f16c",), "-mf16c", ("avx",)),
    InstructionSet("FMA", ("fma",), "-mfma", ("avx",)),
    InstructionSet("BMI2", ("bmi2",), "-mbmi2"),
    InstructionSet("AVX2", ("avx2",), "-mavx2", ("avx",)),
    InstructionSet("AVX_VNNI", ("avxvnni",), "-mavxvnni"),
    # GGML_AVX512 compiles with all three.
    InstructionSet(
        "AVX512", ("avx512f", "avx512bw", "avx512dq"), "-mavx512f", ("avx2", "fma", "f16c")
    ),
    InstructionSet("AVX512_VBMI", ("avx512vbmi",), "-mavx512vbmi"),
    InstructionSet("AVX512_VNNI", ("avx512vnni",), "-mavx512vnni"),
    InstructionSet("AVX512_BF16", ("avx512bf16",), "-mavx512bf16"),
    InstructionSet("AMX_INT8", ("amxint8", "amxtile"), "-mamx-int8"),
)
_ARM = (
    InstructionSet("NEON", ("asimd",), "+simd"),
    InstructionSet("ARM_FMA", ("asimd",), "+simd"),
    InstructionSet("FP16_VA", ("asimdhp",), "+fp16"),
    InstructionSet("DOTPROD", ("asimddp",), "+dotprod"),
    InstructionSet("MATMUL_INT8", ("i8mm",), "+i8mm"),
    InstructionSet("SVE", ("sve",), "+sve"),
    InstructionSet("SME", ("sme",), "+sme"),
)
_SETS = (*_X86, *_ARM)
"""By rank: a wide set stands behind the narrow ones that it implies."""

X86, ARM = (frozenset(each.name for each in family) for family in (_X86, _ARM))

KERNEL_ISA = frozenset(("AVX2", "NEON", "ARM_FMA"))
"""The sets that i2_s has kernels for."""

WIDE = frozenset(("AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8"))
"""Sets that no ternary type has a kernel for, though much is promised of them elsewhere."""

OF_THE_CPU = frozenset(("NEON", "SVE", "MATMUL_INT8", "DOTPROD"))
"""Sets for which llama.cpp of 2024, and bitnet.cpp with it, prints what the CPU has, not what
the build uses (ggml.c: ggml_init_arm_arch_features)."""

_BASIC = frozenset(("SSE3", "SSSE3", "BMI2"))
"""Not counted when builds are compared: no ternary kernel rests on one alone, and not every
generation prints them."""

_V3 = "AVX AVX2 FMA F16C BMI2"
_V4 = f"{_V3} AVX512"
_TARGETS = {
    "/arch:avx": "AVX",
    "/arch:avx2": "AVX2 FMA F16C",
    "/arch:avx512": "AVX512 AVX2 FMA F16C",
    "-march=x86-64-v3": _V3,
    "-march=x86-64-v4": _V4,
    "-march=haswell": _V3,
    "-march=skylake": _V3,
    "-march=alderlake": f"{_V3} AVX_VNNI",
    "-march=znver2": _V3,
    "-march=znver3": _V3,
    "-march=znver4": f"{_V4} AVX512_VBMI AVX512_VNNI AVX512_BF16",
    "-march=skylake-avx512": _V4,
    "-march=cascadelake": f"{_V4} AVX512_VNNI",
    "-march=icelake-server": f"{_V4} AVX512_VBMI AVX512_VNNI",
    "-march=sapphirerapids": f"{_V4} AVX_VNNI AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_INT8",
}
"""Compiler options that stand for several sets (GCC: x86 Options; MSVC: /arch)."""

_ARMV8 = ("-march=armv8", "-march=armv9")


def of_compiler(words: Iterable[str]) -> frozenset[str]:
    """Return the names of what a compiler's options build for. ``-march=native`` tells nothing."""
    found: set[str] = set()
    for word in words:
        option, *extensions = (word.lower() if word[:1] == "/" else word).split("+")
        found.update(_TARGETS.get(option, "NEON" if option.startswith(_ARMV8) else "").split())
        options = {option, *(f"+{name}" for name in extensions)}
        found.update(each.name for each in _SETS if each.option in options)
    return frozenset(found)


def has(flags: Iterable[str]) -> frozenset[str]:
    """Return the names of what a CPU with these flags has; empty where they tell nothing."""
    # Kernels write avx512vbmi, but avx512_vnni.
    seen = {flag.replace("_", "").lower() for flag in flags}
    if "neon" in seen:  # as 32-bit ARM calls it
        seen.add("asimd")
    for each in reversed(_SETS):
        if each.flags[0] in seen:
            seen.update(each.implied)
    return frozenset(each.name for each in _SETS if seen.issuperset(each.flags))


def vector_flags(flags: Iterable[str]) -> list[str]:
    """Return those flags of a CPU that stand for an instruction set of engines."""
    known = {"neon", *(flag for each in _SETS for flag in each.flags)}
    return [flag for flag in flags if flag.replace("_", "") in known]


def lacking(isa: Iterable[str], flags: Iterable[str]) -> tuple[str, ...]:
    """Return what a build for ``isa`` needs and a CPU with these flags lacks. That is nothing
    where the CPU's flags are not known, or the build is for another family of CPUs."""
    cpu = has(flags)
    known = [names for names in (X86, ARM) if cpu & names]
    return ordered(frozenset[str]().union(*known) & set(isa) - cpu)


def matching(isa: Iterable[str], flags: Iterable[str]) -> tuple[str, ...]:
    """Return what a build uses and the CPU has, without what every CPU has."""
    return ordered((has(flags) & set(isa)) - _BASIC)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return those of the names that are instruction sets, narrow ones first."""
    wanted = set(names)
    return tuple(each.name for each in _SETS if each.name in wanted)


def chooses_itself(engine: Engine) -> bool:
    """Return whether the build holds kernels for several CPUs and loads those that run: current
    llama.cpp with GGML_CPU_ALL_VARIANTS has libggml-cpu-haswell.so and others."""
    names = (path.replace("\\", "/").rpartition("/")[2] for path in engine.files)
    return any(name.removeprefix("lib").startswith("ggml-cpu-") for name in names)


def refusal(engine: Engine, flags: Iterable[str]) -> str | None:
    """Return why this CPU cannot run the build, as the rest of a sentence; None where it can,
    or nothing is known against it. A run on this very CPU counts more than names."""
    flags = frozenset(flags)
    was_here = engine.ran is not None and engine.cpu == flags
    if was_here and engine.ran:
        return None
    named = engine.isa if engine.ran is False else engine.isa - OF_THE_CPU
    missing = () if chooses_itself(engine) else lacking(named, flags)
    if missing:
        return f"is built for {', '.join(missing)}, which this CPU lacks"
    if was_here:
        return "was ended by SIGILL here: it has instructions that this CPU lacks"
    return None


def reason(engine: Engine, flags: Iterable[str], quantization: str) -> str:
    """Return what the build uses of the CPU, and what more would gain."""
    cpu = has(flags)
    used = ordered(engine.isa - _BASIC)
    said = f"built for {', '.join(used)}" if used else "what the build uses is not known"
    if chooses_itself(engine):
        said = f"chosen by the engine at its start ({', '.join(used) or 'not known'})"
    idle = ordered((cpu & WIDE) - engine.isa)
    if engine.isa and idle:
        said += f", not for this CPU's {', '.join(idle)}"
    if quantization not in TERNARY or (cpu and not cpu & X86):
        return said
    return (
        f"{said}; {quantization} has kernels for AVX2 and NEON only: AVX-512 gains nothing for "
        "the ternary weights, only for F16 and F32 ones (embedding, output matrix), attention "
        "and softmax"
    )
