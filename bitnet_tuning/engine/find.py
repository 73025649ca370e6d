"""Find engines on this machine, and define the record of what is known about one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from bitnet_tuning.console import word
from bitnet_tuning.errors import MissingError
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import LATER, Annotated

GOMP, LLVM, MSVC, NONE = "libgomp", "libomp", "vcomp", "none"
"""OpenMP runtimes: GNU's, LLVM's (also Intel's, the same code), Microsoft's, and none at all."""

EMBEDDED = "embedded"
"""Value of --engine and BITNET_ENGINE that selects the embedded engine."""

NONE_COMPILED = "no compiled engine was found"
"""Source of the location of an embedded engine that is used for want of another one."""

_SUFFIX = ".exe" if os.name == "nt" else ""
_CLI = "llama-cli" + _SUFFIX
_RUNNING = ("llama-cli", "llama-completion")
"""Beginnings of the names of llama.cpp's programs that run a prompt."""
_BUILD = "build"
"""Beginning of the names of build folders; a folder of exactly this name comes first."""
_BINS = (os.path.join("bin", "Release"), "bin")

_BITNET = ("bitnet", "bitnet-25", "bitnet-b1.58")  # bitnet.cpp of October 2024 lacks the last
ARCHITECTURES = (*_BITNET, "llama", "falcon", "gemma", "qwen2", "qwen3")
"""Architectures of published ternary models, which a probe looks for in an engine's files."""


class Location(NamedTuple):
    """The place of an engine, before it is known what the engine can do."""

    cli: str
    """Absolute path of llama-cli, or of the embedded engine's main module."""
    source: str
    """How the engine was found, as a phrase for the plan's reasons."""
    embedded: bool = False


class Engine(NamedTuple):
    """An engine and what a probe found out about it; None means "not known"."""

    location: Location
    version: str
    flags: frozenset[str]
    """Flags that the program for one-shot prompts lists in its help."""
    chat_flags: frozenset[str]
    """Flags that llama-cli lists in its help."""
    openmp: str | None
    """GOMP, LLVM, MSVC or NONE."""
    isa: frozenset[str]
    """Instruction sets that it uses, by llama.cpp's names, such as AVX2 and NEON."""
    i2_s: bool | None
    """Whether it has the tensor type i2_s, which is bitnet.cpp's own."""
    architectures: Mapping[str, bool]
    """Whether it knows a model architecture, for those that were looked for."""
    files: tuple[str, ...]
    """Real paths of the program and of the libraries built with it."""
    completion: str | None
    """llama-completion beside llama-cli, which then only chats: in llama.cpp since December 2025
    and in bitnet.cpp since July 2026."""
    cpu: frozenset[str] = frozenset()
    """Flags of the CPU on which the engine was probed, as the kernel writes them."""
    ran: bool | None = None
    """Whether the demo model ran on that CPU; False after SIGILL, None after other failures."""
    fault: Annotated[tuple[str, str] | None, LATER] = None
    """Why the system cannot start it and what to do; such an engine is never stored."""

    @property
    def embedded(self) -> bool:
        return self.location.embedded

    @property
    def path(self) -> str:
        return self.location.cli

    @property
    def checkout(self) -> str | None:
        """The folder above build*/bin/llama-cli; None if it lies elsewhere."""
        return checkout_of(self.path)

    def flags_for(self, chat: bool) -> frozenset[str]:
        """Return the flags of the program for chats or for one-shot prompts."""
        return self.chat_flags if chat else self.flags

    def program(self, chat: bool) -> tuple[str, ...]:
        """Return the argv, without flags, that starts a chat or a one-shot prompt."""
        if self.embedded:
            return (sys.executable, self.path)
        return (self.path if chat or self.completion is None else self.completion,)

    def other(self, name: str) -> tuple[str, ...]:
        """Return the argv, without flags, of the build's llama-``name``; empty without one."""
        if self.embedded:
            return (sys.executable, self.path, name)
        found = beside(self.path, f"llama-{name}")
        return (found,) if found else ()


def locate_all(
    named: str | None, environ: Mapping[str, str], folders: tuple[str, ...]
) -> tuple[Location, ...]:
    """Return the first of these engines: ``named`` (the flag --engine), BITNET_ENGINE, a build
    below one of ``folders``, llama-cli on PATH, the embedded engine. A folder with several builds
    gives them all, ``build`` first. Raise MissingError if there is none, or if an engine that was
    named is missing: no other one replaces it."""
    for name, source in ((named, "--engine"), (environ.get("BITNET_ENGINE"), "BITNET_ENGINE")):
        if name:
            return _named(name, source)
    for folder in folders:
        if built := _built_below(folder):
            return tuple(Location(cli, f"found in {os.path.dirname(cli)}") for cli in built)
    if found := on_path(environ.get("PATH", "")):
        return (Location(found, "found on PATH"),)
    if embedded_library():
        return (_embedded(NONE_COMPILED),)
    raise MissingError(
        "found no engine: there is no build/bin/llama-cli in "
        f"{', '.join(folders)}, no llama-cli on PATH, and the embedded engine is not installed",
        "build bitnet.cpp and name its llama-cli with --engine or BITNET_ENGINE, "
        "or install the embedded engine: pip install xllamacpp",
    )


def _named(name: str, source: str) -> tuple[Location, ...]:
    if name == EMBEDDED:
        if not embedded_library():
            cause = f"{source} selects the embedded engine, which is not installed"
            raise MissingError(cause, "install it: pip install xllamacpp")
        return (_embedded(f"selected with {source}"),)
    path = os.path.abspath(os.path.expanduser(name))
    origin = f"named with {source}"
    if os.path.isfile(path):
        name = os.path.basename(path)
        is_model = name.endswith(".gguf")
        if is_model or (name.startswith("llama-") and not name.startswith(_RUNNING)):
            cause = f"{path} (from {source}) is {'a model' if is_model else name}, no engine"
            remedy = "name a model with -m" if is_model else f"name the {_CLI} beside it"
            raise MissingError(cause, remedy)
        return (Location(path, origin),)
    direct = os.path.join(path, _CLI)
    found = (direct,) if os.path.isfile(direct) else _built_below(path) or _programs(path)[:1]
    if found:
        return tuple(Location(cli, origin) for cli in found)
    cause = f"no such engine: {path} (from {source})"
    if os.path.isdir(path):
        cause = f"no {_CLI} in the folder {path} (from {source}), nor in a build*/bin below it"
    raise MissingError(cause, f"name a {_CLI}, a folder that holds it, or a checkout with a build")


def _built_below(folder: str) -> tuple[str, ...]:
    """Return the llama-cli of every ``build*`` in the folder; several links to one count once."""
    path = os.path.abspath(folder)
    try:
        names = [name for name in os.listdir(path) if name.startswith(_BUILD)]
    except OSError:
        return ()
    names.sort(key=lambda name: (name != _BUILD, name))
    by_file: dict[str, str] = {}
    for name in names:
        for cli in _programs(os.path.join(path, name))[:1]:
            by_file.setdefault(os.path.realpath(cli), cli)
    return tuple(by_file.values())


def _programs(build: str) -> tuple[str, ...]:
    candidates = (os.path.join(build, place, _CLI) for place in _BINS)
    return tuple(candidate for candidate in candidates if os.path.isfile(candidate))


def checkout_of(cli: str) -> str | None:
    """Return the folder in whose ``build*/bin`` the program lies; None if it lies elsewhere."""
    folder = os.path.dirname(cli)
    for place in _BINS:
        build = folder.removesuffix(os.sep + place)
        if build != folder and os.path.basename(build).startswith(_BUILD):
            return os.path.dirname(build)
    return None


def on_path(path: str, name: str = _CLI) -> str | None:
    """Return the program in the first folder that has it; ``path`` is a list like $PATH."""
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder or os.curdir, name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    return None


def embedded_library() -> str | None:
    """Return the folder of the installed package xllamacpp; None without one."""
    # By hand, so that a start does not import importlib.util.
    found = (os.path.join(folder or os.curdir, "xllamacpp") for folder in sys.path)
    return next((each for each in found if os.path.isfile(f"{each}/__init__.py")), None)


def _embedded(source: str) -> Location:
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    module = os.path.join(package, "embedded", "__main__.py")
    return Location(module, source, embedded=True)


def beside(cli: str, name: str) -> str | None:
    """Return another program of the same build, such as ``llama-bench``, beside ``cli`` or, if it
    is a link, beside its target; None without one."""
    folders = (os.path.dirname(program) for program in (cli, os.path.realpath(cli)))
    paths = (os.path.join(folder, name + _SUFFIX) for folder in folders)
    return next(filter(os.path.isfile, paths), None)


def find_quantizer(engine: Engine) -> str:
    """Return llama-quantize beside an engine or in its checkout; raise MissingError without one."""
    checkout = engine.checkout
    for cli in (engine.path, *(_built_below(checkout) if checkout else ())):
        if found := beside(cli, "llama-quantize"):
            return found
    remedy = "name a build of bitnet.cpp that has one with --engine"
    if checkout:
        build = os.path.join(checkout, os.path.relpath(engine.path, checkout).split(os.sep)[0])
        remedy = f"build it: cmake --build {word(build)} --target llama-quantize"
    raise MissingError(f"there is no llama-quantize beside {engine.path}", remedy)
