"""What an engine's program and libraries contain, without running the engine itself."""

from __future__ import annotations

import mmap
import os
import re
import sys
from collections.abc import Callable, Iterable

GOMP, LLVM, MSVC, NONE = "libgomp", "libomp", "vcomp", "none"
"""OpenMP runtimes: GNU's, LLVM's (Intel's is the same code), Microsoft's, no OpenMP at all."""

_OWN_LIBRARY = re.compile(r"(lib)?(ggml|llama|mtmd|bitnet|xllamacpp)[^/\\]*\.(so|dylib|dll)", re.I)
_EXECUTABLE_MAGIC = (
    b"\x7fELF",
    b"MZ",
    b"\xcf\xfa\xed\xfe",
    b"\xca\xfe\xba\xbe",
    b"\xfe\xed\xfa\xcf",
)

_RUNTIMES = (
    (GOMP, (b"libgomp.so", b"libgomp-1.dll", b"libgomp.1.dylib", b"GOMP_SPINCOUNT")),
    (MSVC, (b"vcomp140",)),
    (LLVM, (b"libomp.so", b"libiomp5", b"libomp140", b"libomp.dylib", b"KMP_BLOCKTIME")),
)
"""Names as they stand in the tables of libraries that a program needs, and one from the
code of GNU's and LLVM's runtimes, for where they are linked statically. ggml sets
KMP_BLOCKTIME in any OpenMP build, so LLVM is looked for last."""

_BLAS = (("openblas", b"libopenblas"), ("mkl", b"libmkl_"))

Trace = Callable[[str], str]
"""Lists the libraries of a program, as ``ldd`` prints them."""


def is_executable_image(path: str) -> bool:
    """Whether the file is a compiled program, not a script."""
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(_EXECUTABLE_MAGIC)
    except OSError:
        return False


def own_files(program: str, trace: Trace) -> tuple[str, ...]:
    """The program and those of its libraries that were built with it, resolved."""
    beside = os.path.dirname(os.path.realpath(program))
    found = [os.path.realpath(program)]
    found += [
        path for path in _linked(program, trace) if _OWN_LIBRARY.search(os.path.basename(path))
    ]
    found += [os.path.join(beside, name) for name in _names(beside) if _OWN_LIBRARY.match(name)]
    return tuple(dict.fromkeys(os.path.realpath(path) for path in found))


def _linked(program: str, trace: Trace) -> list[str]:
    """Paths in ``name => /path (0x…)`` lines, and in those of libraries that are linked by
    their path; the loader resolves run paths as at a start."""
    if not sys.platform.startswith("linux") or not is_executable_image(program):
        return []
    return re.findall(r"(?:^\s*|=> )(/\S.*?) \(0x", trace(program), re.MULTILINE)


def _names(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def openmp_runtime(files: Iterable[str]) -> str | None:
    """The runtime that any of the files needs or contains; None where nothing can be said."""
    images = _ggml_images(files)
    for runtime, names in _RUNTIMES:
        if any(contains(path, names) for path in images):
            return runtime
    return NONE if images else None


def _ggml_images(files: Iterable[str]) -> list[str]:
    """The compiled files, if ggml is among them: of a script, or of a program that only
    starts another one, nothing can be said."""
    images = [path for path in files if is_executable_image(path)]
    return images if any(contains(path, (b"ggml_",)) for path in images) else []


def blas_libraries(files: Iterable[str]) -> tuple[str, ...]:
    paths = list(files)
    return tuple(name for name, mark in _BLAS if any(contains(path, (mark,)) for path in paths))


def knows_name(files: Iterable[str], name: str) -> bool | None:
    """Whether ``name`` stands as a C string in one of the files; None where nothing can be
    said."""
    images = _ggml_images(files)
    mark = name.encode() + b"\0"
    return any(contains(path, (mark,)) for path in images) if images else None


def contains(path: str, marks: Iterable[bytes]) -> bool:
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(data.find(mark) >= 0 for mark in marks)
    except (OSError, ValueError):
        return False
