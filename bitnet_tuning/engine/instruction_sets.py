"""Which instruction sets a build needs, which ones a CPU has, and what gains from them; pure.

Builds are known by the names of llama.cpp's ``system_info`` line (AVX512), compilers by
their flags (-mavx512f), CPUs by the kernel's (avx512f in /proc/cpuinfo).
"""

from __future__ import annotations

import json
import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from bitnet_tuning.engine.find import Engine


KERNEL_ISA = frozenset(("AVX2", "NEON", "ARM_FMA"))
"""As ``system_info`` names them: i2_s has kernels for these only."""

_X86 = {
    "SSE3": ("pni",),
    "SSSE3": ("ssse3",),
    "AVX": ("avx",),
    "F16C": ("f16c",),
    "FMA": ("fma",),
    "BMI2": ("bmi2",),
    "AVX2": ("avx2",),
    "AVX_VNNI": ("avxvnni",),
    "AVX512": ("avx512f", "avx512bw", "avx512dq"),
    "AVX512_VBMI": ("avx512vbmi",),
    "AVX512_VNNI": ("avx512vnni",),
    "AVX512_BF16": ("avx512bf16",),
    "AMX_INT8": ("amxint8", "amxtile"),
}
"""The CPU's flags, without underscores, that each name stands for. GGML_AVX512 compiles with
all three of its flags."""

_ARM = {
    "NEON": ("asimd",),
    "ARM_FMA": ("asimd",),
    "FP16_VA": ("asimdhp",),
    "DOTPROD": ("asimddp",),
    "MATMUL_INT8": ("i8mm",),
    "SVE": ("sve",),
    "SME": ("sme",),
}

OF_THE_CPU = frozenset(("NEON", "SVE", "MATMUL_INT8", "DOTPROD"))
"""What llama.cpp of 2024, and bitnet.cpp with it, says of these comes from the CPU that it
runs on, not from the build (ggml.c: ggml_init_arm_arch_features)."""

_RANKED = (*_X86, *_ARM)
"""Narrow ones first."""

_BASIC = frozenset(("SSE3", "SSSE3", "BMI2"))
"""Not counted when builds are compared: no ternary kernel rests on one alone, and not every
generation prints them."""

_IMPLIED = {
    "avx512f": ("avx2", "fma", "f16c"),
    "avx2": ("avx",),
    "fma": ("avx",),
    "f16c": ("avx",),
    "avx": ("ssse3",),
    "ssse3": ("pni",),
    "neon": ("asimd",),  # as 32-bit ARM calls it
}
"""What no CPU with the flag is without: a list of flags may be an excerpt."""

WIDE = frozenset(("AVX_VNNI", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8"))
"""Of which much is promised elsewhere; no ternary type has a kernel for one."""

_TERNARY = ("i2_s", "tq1_0", "tq2_0")

_BY_FLAG = {
    "-mavx": "AVX",
    "-mavx2": "AVX2",
    "-mfma": "FMA",
    "-mf16c": "F16C",
    "-mbmi2": "BMI2",
    "-mssse3": "SSSE3",
    "-mavxvnni": "AVX_VNNI",
    "-mavx512f": "AVX512",
    "-mavx512vbmi": "AVX512_VBMI",
    "-mavx512vnni": "AVX512_VNNI",
    "-mavx512bf16": "AVX512_BF16",
    "-mamx-int8": "AMX_INT8",
    "/arch:avx": "AVX",
    "/arch:avx2": "AVX2 FMA F16C",
    "/arch:avx512": "AVX512 AVX2 FMA F16C",
}
_V3 = "AVX AVX2 FMA F16C BMI2"
_V4 = f"{_V3} AVX512"
_BY_ARCH = {
    "x86-64-v3": _V3,
    "x86-64-v4": _V4,
    "haswell": _V3,
    "skylake": _V3,
    "alderlake": f"{_V3} AVX_VNNI",
    "znver2": _V3,
    "znver3": _V3,
    "znver4": f"{_V4} AVX512_VBMI AVX512_VNNI AVX512_BF16",
    "skylake-avx512": _V4,
    "cascadelake": f"{_V4} AVX512_VNNI",
    "icelake-server": f"{_V4} AVX512_VBMI AVX512_VNNI",
    "sapphirerapids": f"{_V4} AVX_VNNI AVX512_VBMI AVX512_VNNI AVX512_BF16 AMX_INT8",
}
_ARMV8 = ("armv8", "armv9")
_BY_EXTENSION = {"dotprod": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE", "fp16": "FP16_VA"}


def of_compiler(words: Iterable[str]) -> frozenset[str]:
    """What a compiler's flags build for. ``-march=native`` says nothing here."""
    found: set[str] = set()
    for word in words:
        found.update(_BY_FLAG.get(word.lower() if word[:1] == "/" else word, "").split())
        if word.startswith("-march="):
            arch, *extensions = word.removeprefix("-march=").split("+")
            found.update(_BY_ARCH.get(arch, "NEON" if arch.startswith(_ARMV8) else "").split())
            found.update(_BY_EXTENSION[name] for name in extensions if name in _BY_EXTENSION)
    return frozenset(found)


def has(flags: Iterable[str]) -> frozenset[str]:
    """The names of what a CPU with these flags has; empty where they say nothing."""
    seen = _closed(flags)
    return frozenset(
        name for table in (_X86, _ARM) for name, needed in table.items() if seen.issuperset(needed)
    )


def _closed(flags: Iterable[str]) -> set[str]:
    """Without underscores: kernels write avx512vbmi, but avx512_vnni."""
    seen = {flag.replace("_", "").lower() for flag in flags}
    waiting = list(seen)
    while waiting:
        new = set(_IMPLIED.get(waiting.pop(), ())) - seen
        seen |= new
        waiting += new
    return seen


def lacking(isa: Iterable[str], flags: Iterable[str]) -> tuple[str, ...]:
    """What a build for ``isa`` needs and a CPU with these flags lacks. Nothing where that
    cannot be said: the CPU's flags are not known, or the build is for another family."""
    cpu = has(flags)
    tables = [table for table in (_X86, _ARM) if cpu & table.keys()]
    wanted = {name for table in tables for name in table} & set(isa)
    return ordered(wanted - cpu)


def matching(isa: Iterable[str], flags: Iterable[str]) -> tuple[str, ...]:
    """What a build uses and the CPU has, but for what every one has."""
    return ordered((has(flags) & set(isa)) - _BASIC)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Those of them that are instruction sets, narrow ones first."""
    return tuple(name for name in _RANKED if name in set(names))


def chooses_itself(engine: Engine) -> bool:
    """Whether the build holds kernels for several CPUs and takes those that run: current
    llama.cpp with GGML_CPU_ALL_VARIANTS has libggml-cpu-haswell.so and others."""
    names = (path.replace("\\", "/").rpartition("/")[2] for path in engine.files)
    return any(name.removeprefix("lib").startswith("ggml-cpu-") for name in names)


def refusal(engine: Engine, flags: Iterable[str]) -> str | None:
    """Why this CPU cannot run the build, as the rest of a sentence; None where it can, or
    where nothing is known against it. Evidence of this very CPU goes before names."""
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
    """What the build uses of the CPU, and what more would gain."""
    cpu = has(flags)
    used = ordered(engine.isa - _BASIC)
    said = f"built for {', '.join(used)}" if used else "what the build uses is not known"
    if chooses_itself(engine):
        said = f"chosen by the engine at its start ({', '.join(used) or 'not known'})"
    idle = ordered((cpu & WIDE) - engine.isa)
    if engine.isa and idle:
        said += f", not for this CPU's {', '.join(idle)}"
    if quantization not in _TERNARY or (cpu and not cpu & _X86.keys()):
        return said
    return (
        f"{said}; {quantization} has kernels for AVX2 and NEON only: AVX-512 gains nothing for "
        "the ternary weights, only for F16 and F32 ones (embedding, output matrix), attention "
        "and softmax"
    )


_CACHE = "CMakeCache.txt"
_COMMANDS = "compile_commands.json"
_LARGEST = 1 << 25
"""Bytes of either file that are read; llama.cpp's have some hundred thousand."""

_LEVELS = 3
"""Folders above the program: build/bin/Release/llama-cli lies three below the checkout."""

_KERNELS = ("ggml.c", "ggml-cpu.c", "ggml-cpu.cpp", "ggml-quants.c")
"""Sources that are compiled with the flags of the kernels."""

_OPTION = re.compile(r"^GGML_([A-Z0-9_]+):[A-Z]+=(?:ON|TRUE|YES|1)\s*$", re.MULTILINE | re.I)
_FLAGS = re.compile(r"^CMAKE_(?:C|CXX)_FLAGS:[A-Z]+=(.*)$", re.MULTILINE)


def configured_isa(cli: str) -> frozenset[str]:
    """The instruction sets that the build of ``cli`` needs, in llama.cpp's names; empty where
    its folder does not say, as for -march=native."""
    folder = _folder(os.path.realpath(cli))
    if folder is None:
        return frozenset()
    return _compiled(os.path.join(folder, _COMMANDS)) or _cached(os.path.join(folder, _CACHE))


def _folder(program: str) -> str | None:
    folder = program
    for _ in range(_LEVELS):
        folder = os.path.dirname(folder)
        if os.path.isfile(os.path.join(folder, _CACHE)):
            return folder
    return None


def _compiled(path: str) -> frozenset[str]:
    """From the very commands that compiled the kernels."""
    try:
        entries = json.loads(_read(path))
        for entry in entries:
            if re.split(r"[/\\]", entry["file"])[-1] in _KERNELS:
                return of_compiler(entry.get("arguments") or entry["command"].split())
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # another generator's, or damaged: the cache will do
    return frozenset()


def _cached(path: str) -> frozenset[str]:
    text = _read(path)
    flags = [word for line in _FLAGS.findall(text) for word in line.split()]
    return of_compiler(flags) | set(ordered(_OPTION.findall(text)))


def _read(path: str) -> str:
    """Empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(_LARGEST)
    except OSError:
        return ""
