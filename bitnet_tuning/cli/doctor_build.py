"""How old an engine's files are, and whose libraries it gets."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from bitnet_tuning.builds import build_name
from bitnet_tuning.doctor.facts import Build
from bitnet_tuning.engine import Engine

_SOURCE_FOLDERS = ("src", "include", "common", "ggml", "3rdparty")
"""Of a checkout of bitnet.cpp or llama.cpp; what else it holds does not change a build."""

_SOURCES = (".c", ".cc", ".cpp", ".h", ".hpp", ".S", "CMakeLists.txt")
_GENERATED = ("build-info.cpp",)
"""Written into the sources by every build."""

_MOST_FOLDERS = 2000
"""A checkout has some hundreds; what is more is not looked at."""


def read_build(engine: Engine, environ: Mapping[str, str]) -> Build:
    """Raises OSError for files that are gone."""
    if engine.embedded:
        return Build(None, None, ())
    return Build(
        built=max(os.stat(file).st_mtime for file in engine.files),
        changed=_newest_source(engine.checkout),
        swapped=_swapped(engine, environ),
    )


def _newest_source(checkout: str | None) -> float | None:
    """Seconds since the epoch."""
    times = _source_times(checkout) if checkout else ()
    return max(times, default=None)


def _source_times(checkout: str) -> Iterator[float]:
    folders = [os.path.join(checkout, name) for name in _SOURCE_FOLDERS]
    for _ in range(_MOST_FOLDERS):
        if not folders:
            return
        for entry in _entries(folders.pop()):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.endswith(_SOURCES) and entry.name not in _GENERATED:
                yield entry.stat(follow_symlinks=False).st_mtime


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except OSError:
        return []


def _swapped(engine: Engine, environ: Mapping[str, str]) -> tuple[str, ...]:
    """Libraries outside of the engine's own build with the names of those that it needs."""
    checkout = engine.checkout
    folder = os.path.dirname(engine.path)
    own = os.path.realpath(os.path.join(checkout, build_name(engine.path)) if checkout else folder)
    needed = {_stem(file) for file in engine.files if ".so" in os.path.basename(file)}
    folders = [folder for folder in environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    paths = [entry.path for folder in folders for entry in _entries(folder)]
    return tuple(
        path
        for path in sorted(paths)
        if _stem(path) in needed and not os.path.realpath(path).startswith(f"{own}{os.sep}")
    )


def _stem(path: str) -> str:
    """``libggml`` of ``libggml.so.0.9``."""
    return os.path.basename(path).partition(".so")[0]
