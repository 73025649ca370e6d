"""Find engines, and hold what is known of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from bitnet_tuning.errors import MissingError
from bitnet_tuning.namedtuple import NamedTuple

GOMP, LLVM, MSVC, NONE = "libgomp", "libomp", "vcomp", "none"
"""OpenMP runtimes: GNU's, LLVM's (Intel's is the same code), Microsoft's, and no OpenMP."""

EMBEDDED = "embedded"
"""The name by which --engine and BITNET_ENGINE ask for the embedded engine."""

NONE_COMPILED = "no compiled engine was found"
"""Source of an embedded engine that nobody asked for."""

_SUFFIX = ".exe" if os.name == "nt" else ""
_CLI = "llama-cli" + _SUFFIX
_BUILD = "build"
"""How the names of build folders begin; the plain one comes first."""
_BINS = (os.path.join("bin", "Release"), "bin")

ARCHITECTURES = (
    "bitnet",
    "bitnet-25",
    "bitnet-b1.58",
    "llama",
    "falcon",
    "gemma",
    "qwen2",
    "qwen3",
)
"""Architectures of published ternary models; a probe asks whether an engine knows them."""


class Location(NamedTuple):
    """Where an engine was found."""

    cli: str
    """Absolute path of llama-cli, or of the embedded engine's module."""
    source: str
    """How it was found, for the plan's reasons."""
    embedded: bool = False


class Engine(NamedTuple):
    """An engine and what a probe learned of it. None means "not known"."""

    location: Location
    version: str
    flags: frozenset[str]
    """In the help of the program for one-shot prompts."""
    chat_flags: frozenset[str]
    """In llama-cli's own help."""
    openmp: str | None
    blas: tuple[str, ...]
    isa: frozenset[str]
    """Instruction sets it is built with, in llama.cpp's spelling: AVX2, NEON."""
    i2_s: bool | None
    architectures: Mapping[str, bool]
    files: tuple[str, ...]
    """The program and its own libraries."""
    completion: str | None
    """llama-completion beside llama-cli, which then is a chat program."""
    cpu: frozenset[str] = frozenset()
    """Flags of the CPU on which it was probed."""
    ran: bool | None = None
    """Whether the demo model ran there; False if SIGILL ended it."""

    @property
    def bench(self) -> str | None:
        """llama-bench beside llama-cli."""
        return None if self.embedded else beside(self.path, "llama-bench")

    @property
    def server(self) -> str | None:
        """llama-server beside llama-cli."""
        return None if self.embedded else beside(self.path, "llama-server")

    @property
    def embedded(self) -> bool:
        return self.location.embedded

    @property
    def path(self) -> str:
        return self.location.cli

    @property
    def checkout(self) -> str | None:
        """The folder that holds build*/bin/llama-cli; None for another layout."""
        return checkout_of(self.path)

    def flags_for(self, chat: bool) -> frozenset[str]:
        """Return the flags of the program that ``program`` starts."""
        return self.chat_flags if chat else self.flags

    def program(self, chat: bool) -> tuple[str, ...]:
        """Return the argv that starts a chat or a one-shot prompt."""
        if self.embedded:
            return (sys.executable, self.path)
        return (self.path if chat or self.completion is None else self.completion,)


def locate_all(
    named: str | None, environ: Mapping[str, str], folders: tuple[str, ...]
) -> tuple[Location, ...]:
    """Return the engine to use: the named one, BITNET_ENGINE, a build below one of
    ``folders``, PATH, the embedded one. A folder with several builds gives several to choose
    from, the one in ``build`` first.

    Raise MissingError where there is none, also for a named engine: it is never silently
    replaced by another.
    """
    for name, source in ((named, "--engine"), (environ.get("BITNET_ENGINE"), "BITNET_ENGINE")):
        if name:
            return _named(name, source)
    for folder in folders:
        built = _built_below(folder)
        if built:
            return tuple(Location(cli, f"found in {os.path.dirname(cli)}") for cli in built)
    found = on_path(environ.get("PATH", ""))
    if found:
        return (Location(found, "found on PATH"),)
    if has_embedded():
        return (_embedded(NONE_COMPILED),)
    raise MissingError(
        "no engine: looked for build/bin/llama-cli in "
        f"{', '.join(folders)}, for llama-cli on PATH and for the embedded engine",
        "build bitnet.cpp and name its llama-cli with --engine or BITNET_ENGINE, "
        "or install the embedded engine: pip install xllamacpp",
    )


def _named(name: str, source: str) -> tuple[Location, ...]:
    """Return a named program, the one in a named folder, or the builds below a checkout."""
    if name == EMBEDDED:
        if not has_embedded():
            raise MissingError(
                f"{source} asks for the embedded engine, which is not installed",
                "install it: pip install xllamacpp",
            )
        return (_embedded(f"asked for with {source}"),)
    path = os.path.abspath(os.path.expanduser(name))
    why = f"named with {source}"
    if os.path.isfile(path):
        return (Location(path, why),)
    direct = os.path.join(path, _CLI)
    found = (direct,) if os.path.isfile(direct) else _built_below(path) or _programs(path)[:1]
    if found:
        return tuple(Location(cli, why) for cli in found)
    what = f"no {_CLI} in the folder" if os.path.isdir(path) else "no such engine:"
    raise MissingError(f"{what} {path} (from {source})", f"name a {_CLI} or a folder that holds it")


def _built_below(folder: str) -> tuple[str, ...]:
    """Return one llama-cli for every ``build*`` in the folder; links to one file count once."""
    path = os.path.abspath(folder)
    try:
        names = [name for name in os.listdir(path) if name.startswith(_BUILD)]
    except OSError:
        return ()
    names.sort(key=lambda name: (name != _BUILD, name))
    apart: dict[str, str] = {}
    for name in names:
        for cli in _programs(os.path.join(path, name))[:1]:
            apart.setdefault(os.path.realpath(cli), cli)
    return tuple(apart.values())


def _programs(build: str) -> tuple[str, ...]:
    candidates = (os.path.join(build, place, _CLI) for place in _BINS)
    return tuple(candidate for candidate in candidates if os.path.isfile(candidate))


def checkout_of(cli: str) -> str | None:
    """Return the folder in whose ``build*/bin`` the program lies; None for another layout."""
    folder = os.path.dirname(cli)
    for place in _BINS:
        build = folder.removesuffix(os.sep + place)
        if build != folder and os.path.basename(build).startswith(_BUILD):
            return os.path.dirname(build)
    return None


def on_path(path: str, name: str = _CLI) -> str | None:
    """Return the program in the first of the folders of PATH that has it."""
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder or os.curdir, name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    return None


def has_embedded() -> bool:
    """Return whether this Python can run the embedded engine."""
    return embedded_library() is not None


def embedded_library() -> str | None:
    """Return the folder of the installed xllamacpp, found without importing it."""
    for folder in sys.path:
        candidate = os.path.join(folder or os.curdir, "xllamacpp")
        if os.path.isfile(os.path.join(candidate, "__init__.py")):
            return candidate
    return None


def _embedded(source: str) -> Location:
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    module = os.path.join(package, "embedded", "__main__.py")
    return Location(module, source, embedded=True)


def beside(cli: str, name: str) -> str | None:
    """Return another program of the same build, such as ``llama-bench``; where ``cli`` is a
    link, also look beside its target."""
    for program in (cli, os.path.realpath(cli)):
        path = os.path.join(os.path.dirname(program), name + _SUFFIX)
        if os.path.isfile(path):
            return path
    return None
