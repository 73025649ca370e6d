"""Read from an engine's files, without running it, what it links and what it knows."""

from __future__ import annotations

import mmap
import os
import re
import sys
from collections.abc import Callable, Iterable
from glob import escape, glob

from bitnet_tuning.engine.find import GOMP, LLVM, MSVC, NONE

_OWN_LIBRARY = r"(?i)(lib)?(ggml|llama|mtmd|bitnet|xllamacpp)[^/\\]*\.(so|dylib|dll)"
_EXECUTABLE_MAGIC = (
    b"\x7fELF",
    b"MZ",  # Windows
    b"\xcf\xfa\xed\xfe",  # macOS: mach-o/loader.h, little-endian
    b"\xfe\xed\xfa\xcf",
    b"\xca\xfe\xba\xbe",  # macOS, several architectures: mach-o/fat.h
)

# Each runtime by its library, and GNU's and LLVM's also by a variable that they read, for static
# linking. LLVM's comes last: ggml sets KMP_BLOCKTIME in every build with OpenMP (ggml-cpu.c,
# ggml_cpu_init), so its name is in builds with the other runtimes, too.
_RUNTIMES = (
    (GOMP, (b"libgomp.so", b"libgomp-1.dll", b"libgomp.1.dylib", b"GOMP_SPINCOUNT")),
    (MSVC, (b"vcomp140",)),
    (LLVM, (b"libomp.so", b"libiomp5", b"libomp140", b"libomp.dylib", b"KMP_BLOCKTIME")),
)

Trace = Callable[[str], str]
"""Function that returns the libraries of a program as ``ldd`` prints them."""


def is_executable_image(path: str) -> bool:
    """Return whether the file is a compiled program or library, and not a script."""
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(_EXECUTABLE_MAGIC)
    except OSError:
        return False


def own_files(program: str, trace: Trace) -> tuple[str, ...]:
    """Return the real paths of the program and of the libraries that were built with it: those
    that it links, and those beside it, since ggml's backends are loaded at run time."""
    beside = os.path.dirname(os.path.realpath(program))
    found, linked = [os.path.realpath(program)], list[str]()
    if sys.platform.startswith("linux") and is_executable_image(program):
        # Lines are ``name => /path (0x…)`` or ``/path (0x…)``.
        linked = re.findall(r"(?:^\s*|=> )(/\S.*?) \(0x", trace(program), re.MULTILINE)
    found += [path for path in linked if re.search(_OWN_LIBRARY, os.path.basename(path))]
    files = sorted(glob(f"{escape(beside)}/*"))
    found += [path for path in files if re.match(_OWN_LIBRARY, os.path.basename(path))]
    return tuple(dict.fromkeys(os.path.realpath(path) for path in found))


def openmp_runtime(files: Iterable[str]) -> str | None:
    """Return GOMP, LLVM, MSVC or NONE; None if no file is compiled code of ggml."""
    images = _ggml_images(files)
    for runtime, names in _RUNTIMES:
        if any(contains(path, names) for path in images):
            return runtime
    return NONE if images else None


def _ggml_images(files: Iterable[str]) -> list[str]:
    """Return the compiled files, or none if ggml is not in them: the llama-cli that was named
    may be a script or a program that starts another one."""
    images = [path for path in files if is_executable_image(path)]
    return images if any(contains(path, (b"ggml_",)) for path in images) else []


def knows_name(files: Iterable[str], name: str) -> bool | None:
    """Return whether a file holds ``name``, of a tensor type or an architecture, as a whole C
    string; None if no file is compiled code of ggml."""
    images = _ggml_images(files)
    mark = name.encode() + b"\0"
    return any(contains(path, (mark,)) for path in images) if images else None


def contains(path: str, marks: Iterable[bytes]) -> bool:
    """Return whether the file holds any of the ``marks``; False if it cannot be read."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(data.find(mark) >= 0 for mark in marks)
    except (OSError, ValueError):
        return False
