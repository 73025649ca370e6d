"""The versions of the program, of Python and of the engine."""

from __future__ import annotations

import os
import platform

from bitnet_tuning import __file__ as _package
from bitnet_tuning import __version__
from bitnet_tuning.console import NAME
from bitnet_tuning.engine.find import locate_all
from bitnet_tuning.engine.known import recall
from bitnet_tuning.errors import TuningError
from bitnet_tuning.prepare import engine_folders
from bitnet_tuning.store.state import State


def version_text(engine: str | None = None) -> str:
    """Return our version and Python's, and in a second line what is known of the engine's."""
    commit = checkout_commit(os.path.dirname(os.path.dirname(os.path.realpath(_package))))
    from_git = f" (git {commit})" if commit else ""
    ours = f"{NAME} {__version__}{from_git}, Python {platform.python_version()}"
    try:
        location = locate_all(engine, os.environ, engine_folders())[0]
    except TuningError:
        return ours
    known = recall(location, State())
    version = f", version {known.version}" if known and known.version else ""
    return f"{ours}\nengine {'embedded' if location.embedded else location.cli}{version}"


def checkout_commit(folder: str) -> str:
    """Return the begin of the commit id of our checkout in a folder, "" if it is none, from the
    files of gitrepository-layout(5)."""
    # The package may have been copied into the checkout of another project.
    if 'name = "bitnet-tuning"' not in _read(folder, "pyproject.toml"):
        return ""
    git = os.path.join(folder, _read(folder, ".git").removeprefix("gitdir: ") or ".git")
    head = _read(git, "HEAD")
    if head.startswith("ref: "):
        name, common = head[5:], os.path.join(git, _read(git, "commondir"))
        packed = (
            line for line in _read(common, "packed-refs").splitlines() if name in line.split()
        )
        head = _read(git, name) or _read(common, name) or next(packed, "")
    return head[:7]


def _read(folder: str, name: str) -> str:
    try:
        with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
