"""Find an engine; what is known of one."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from bitnet_tuning.errors import MissingError
from bitnet_tuning.records import NamedTuple

EMBEDDED = "embedded"
"""The name by which --engine and BITNET_ENGINE ask for the embedded engine."""

_SUFFIX = ".exe" if os.name == "nt" else ""
_CLI = "llama-cli" + _SUFFIX
_BUILD_FOLDERS = (os.path.join("build", "bin", "Release"), os.path.join("build", "bin"))

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
"""Those in which ternary models are published; whether an engine knows them is probed."""


class Location(NamedTuple):
    """Where an engine was found."""

    cli: str
    """Absolute path of llama-cli, or of the embedded engine's module."""
    source: str
    """How it was found, for the plan's reasons."""
    embedded: bool = False


class Engine(NamedTuple):
    """An engine and what a probe learned of it. None stands for "not known"."""

    location: Location
    version: str
    flags: frozenset[str]
    """What the help of the program for one-shot prompts lists."""
    chat_flags: frozenset[str]
    """What llama-cli's own help lists."""
    openmp: str | None
    blas: tuple[str, ...]
    isa: frozenset[str]
    """Instruction sets it is built with, in llama.cpp's spelling: AVX2, NEON."""
    i2_s: bool | None
    architectures: Mapping[str, bool]
    files: tuple[str, ...]
    """The program and its own libraries."""
    completion: str | None
    """llama-completion beside llama-cli: there, llama-cli is a chat program."""

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
        """The folder that holds build/bin/llama-cli, where it is laid out like that."""
        folder = os.path.dirname(self.path)
        for build in _BUILD_FOLDERS:
            if folder.endswith(os.sep + build):
                return folder[: -len(build) - 1]
        return None

    def program(self, chat: bool) -> tuple[str, ...]:
        """The argv that starts it for a chat or for a one-shot prompt."""
        if self.embedded:
            return (sys.executable, self.path)
        return (self.path if chat or self.completion is None else self.completion,)


def locate(named: str | None, environ: Mapping[str, str], folders: tuple[str, ...]) -> Location:
    """The engine to use: the named one, BITNET_ENGINE, a build below one of ``folders``,
    PATH, the embedded one; raises MissingError.

    A named engine that is not there is an error: never quietly another one.
    """
    for name, source in ((named, "--engine"), (environ.get("BITNET_ENGINE"), "BITNET_ENGINE")):
        if name:
            return _named(name, source)
    for folder in folders:
        built = _built_below(folder)
        if built:
            return Location(built, f"found in {os.path.dirname(built)}")
    found = on_path(environ.get("PATH", ""))
    if found:
        return Location(found, "found on PATH")
    if has_embedded():
        return _embedded("no compiled engine was found")
    raise MissingError(
        "no engine: looked for build/bin/llama-cli in "
        f"{', '.join(folders)}, for llama-cli on PATH and for the embedded engine",
        "build bitnet.cpp and name its llama-cli with --engine or BITNET_ENGINE, "
        "or install the embedded engine: pip install xllamacpp",
    )


def _named(name: str, source: str) -> Location:
    if name == EMBEDDED:
        if not has_embedded():
            raise MissingError(
                f"{source} asks for the embedded engine, which is not installed",
                "install it: pip install xllamacpp",
            )
        return _embedded(f"asked for with {source}")
    path = os.path.abspath(os.path.expanduser(name))
    if os.path.isfile(path):
        return Location(path, f"named with {source}")
    for folder in ("", *_BUILD_FOLDERS, "bin"):
        candidate = os.path.join(path, folder, _CLI)
        if os.path.isfile(candidate):
            return Location(candidate, f"named with {source}")
    what = f"no {_CLI} in the folder" if os.path.isdir(path) else "no such engine:"
    raise MissingError(f"{what} {path} (from {source})", f"name a {_CLI} or a folder that holds it")


def _built_below(folder: str) -> str | None:
    for build in _BUILD_FOLDERS:
        candidate = os.path.join(os.path.abspath(folder), build, _CLI)
        if os.path.isfile(candidate):
            return candidate
    return None


def on_path(path: str, name: str = _CLI) -> str | None:
    """A program in one of the folders of PATH."""
    for folder in path.split(os.pathsep):
        candidate = os.path.join(folder or os.curdir, name)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return os.path.abspath(candidate)
    return None


def has_embedded() -> bool:
    """Whether this Python can run the embedded engine."""
    return embedded_library() is not None


def embedded_library() -> str | None:
    """The folder of the installed xllamacpp, found without importing it."""
    for folder in sys.path:
        candidate = os.path.join(folder or os.curdir, "xllamacpp")
        if os.path.isfile(os.path.join(candidate, "__init__.py")):
            return candidate
    return None


def _embedded(source: str) -> Location:
    module = os.path.join(os.path.dirname(os.path.abspath(__file__)), "embedded.py")
    return Location(module, source, embedded=True)


def identity(path: str) -> list[object]:
    """Path, size in bytes and modification time in nanoseconds; raises OSError."""
    seen = os.stat(path)
    return [path, seen.st_size, seen.st_mtime_ns]


def beside(cli: str, name: str) -> str | None:
    """Another program of the same build, such as ``llama-bench``; beside the program
    itself where ``cli`` is a link to it."""
    for program in (cli, os.path.realpath(cli)):
        path = os.path.join(os.path.dirname(program), name + _SUFFIX)
        if os.path.isfile(path):
            return path
    return None
