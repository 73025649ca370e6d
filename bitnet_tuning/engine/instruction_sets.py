"""The table of instruction sets by llama.cpp's names (AVX512 in its ``system_info`` line) and the
kernel's (avx512f in /proc/cpuinfo), and whether a CPU has what a build needs."""

from __future__ import annotations

from collections.abc import Iterable

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.model.types import I2_S, TERNARY
from bitnet_tuning.namedtuple import NamedTuple


class InstructionSet(NamedTuple):
    """An instruction set under each of its names."""

    name: str
    """Name in llama.cpp's ``system_info`` line."""
    flags: tuple[str, ...]
    """Flags of a CPU that has it, without underscores. The first one alone implies ``implied``."""
    implied: tuple[str, ...] = ()
    """Flags that every such CPU has, even if a list of its flags is only an excerpt."""


_X86 = (
    InstructionSet("SSE3", ("pni",)),
    InstructionSet("SSSE3", ("ssse3",), ("pni",)),
    InstructionSet("AVX", ("avx",), ("ssse3",)),
    InstructionSet("F16C", ("f16c",), ("avx",)),
    InstructionSet("FMA", ("fma",), ("avx",)),
    InstructionSet("BMI2", ("bmi2",)),
    InstructionSet("AVX2", ("avx2",), ("avx",)),
    InstructionSet("AVX_VNNI", ("avxvnni",)),
    # GGML_AVX512 compiles with all three (ggml-cpu/CMakeLists.txt).
    InstructionSet("AVX512", ("avx512f", "avx512bw", "avx512dq"), ("avx2", "fma", "f16c")),
    InstructionSet("AVX512_VBMI", ("avx512vbmi",)),
    InstructionSet("AVX512_VNNI", ("avx512vnni",)),
    InstructionSet("AVX512_BF16", ("avx512bf16",)),
    InstructionSet("AMX_INT8", ("amxint8", "amxtile")),
)
_ARM = (
    InstructionSet("NEON", ("asimd",)),
    InstructionSet("ARM_FMA", ("asimd",)),
    InstructionSet("FP16_VA", ("asimdhp",)),
    InstructionSet("DOTPROD", ("asimddp",)),
    InstructionSet("MATMUL_INT8", ("i8mm",)),
    InstructionSet("SVE", ("sve",)),
    InstructionSet("SME", ("sme",)),
)
_SETS = (*_X86, *_ARM)
"""All sets of both families; each one comes after the sets that it implies."""

X86, ARM = (frozenset(each.name for each in family) for family in (_X86, _ARM))
"""Names of the sets of each family of CPUs."""

KERNEL_ISA = frozenset(("AVX2", "NEON", "ARM_FMA"))
"""Sets of which i2_s kernels need at least one (ggml-bitnet-mad.cpp)."""

WIDE = frozenset(("AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8"))
"""Sets that are fast for other tensor types, but that no ternary type has kernels for."""

OF_THE_CPU = frozenset(("NEON", "SVE", "MATMUL_INT8", "DOTPROD"))
"""Sets for which bitnet.cpp and llama.cpp of 2024 print what the CPU has, and not what the build
uses (ggml.c, ggml_init_arm_arch_features)."""

_BASIC = frozenset(("SSE3", "SSSE3", "BMI2"))
"""Sets that do not count when builds are compared: no ternary kernel needs one alone, and some
generations of engines do not print them."""


def has(flags: Iterable[str]) -> frozenset[str]:
    """Return the sets of a CPU with these flags; empty if the flags tell nothing."""
    # The kernel writes avx512vbmi, but avx512_vnni (arch/x86/include/asm/cpufeatures.h).
    seen = {flag.replace("_", "").lower() for flag in flags}
    if "neon" in seen:  # the name of asimd on 32-bit ARM
        seen.add("asimd")
    for each in reversed(_SETS):
        if each.flags[0] in seen:
            seen.update(each.implied)
    return frozenset(each.name for each in _SETS if seen.issuperset(each.flags))


def vector_flags(flags: Iterable[str]) -> list[str]:
    """Return the flags of a CPU that belong to a set in this table."""
    known = {"neon", *(flag for each in _SETS for flag in each.flags)}
    return [flag for flag in flags if flag.replace("_", "") in known]


def lacking(isa: Iterable[str], flags: Iterable[str]) -> tuple[str, ...]:
    """Return the sets in ``isa`` that a CPU with these flags lacks; none if the flags are not
    known, or the build is for another family of CPUs."""
    cpu = has(flags)
    known = [names for names in (X86, ARM) if cpu & names]
    return ordered(frozenset[str]().union(*known) & set(isa) - cpu)


def matching(isa: Iterable[str], flags: Iterable[str]) -> tuple[str, ...]:
    """Return the sets that the build uses and the CPU has, without the basic ones."""
    return ordered((has(flags) & set(isa)) - _BASIC)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names that are in this table, in its order."""
    wanted = set(names)
    return tuple(each.name for each in _SETS if each.name in wanted)


def chooses_itself(engine: Engine) -> bool:
    """Return whether the engine has kernels for several CPUs and picks some as it starts."""
    # llama.cpp with GGML_CPU_ALL_VARIANTS builds libggml-cpu-haswell.so and others.
    names = (path.replace("\\", "/").rpartition("/")[2] for path in engine.files)
    return any(name.removeprefix("lib").startswith("ggml-cpu-") for name in names)


def refusal(engine: Engine, flags: Iterable[str]) -> str | None:
    """Return why a CPU with these flags cannot run the build, as the rest of a sentence; None if
    it can, or if nothing is known against it."""
    flags = frozenset(flags)
    tried_here = engine.ran is not None and engine.cpu == flags
    # A run on this CPU counts more than names: a virtual machine may hide flags of its CPU.
    if tried_here and engine.ran:
        return None
    missing = () if chooses_itself(engine) else lacking(engine.isa - OF_THE_CPU, flags)
    if missing:
        return f"is built for {', '.join(missing)}, which this CPU lacks"
    if tried_here:
        return "crashed here with SIGILL: it uses instructions that this CPU lacks"
    return None


def lacks_kernels(engine: Engine, quantization: str) -> bool:
    """Return whether the build is known to lack kernels for the model: it would write garbage."""
    # The wide sets imply AVX2.
    return quantization == I2_S and bool(engine.isa) and not engine.isa & (KERNEL_ISA | WIDE)


def reason(engine: Engine, flags: Iterable[str], quantization: str) -> str:
    """Return, for a plan's reasons, what the build uses of the CPU and what more would bring."""
    cpu = has(flags)
    used = ordered(engine.isa - _BASIC)
    text = f"built for {', '.join(used)}" if used else "what the build uses is not known"
    if chooses_itself(engine):
        text = f"chosen by the engine as it starts ({', '.join(used) or 'not known'})"
    idle = ordered((cpu & WIDE) - engine.isa)
    if engine.isa and idle:
        text += f", not for this CPU's {', '.join(idle)}"
        if quantization in TERNARY:  # is it worth building the engine again?
            text += f", which would speed up other tensors, but not {quantization}"
    return text
