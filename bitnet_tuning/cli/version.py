"""The versions of the program, of Python and of the engine."""

from __future__ import annotations

import os
import platform

from bitnet_tuning.bench.results import program
from bitnet_tuning.engine import builds
from bitnet_tuning.engine.find import locate_all
from bitnet_tuning.engine.known import recall
from bitnet_tuning.errors import TuningError
from bitnet_tuning.prepare import engine_folders
from bitnet_tuning.store.state import State


def version_text(engine: str | None = None) -> str:
    """Return our version and Python's, and in a second line what is known of the engine's."""
    name, version, commit = program()
    from_git = f" (git {commit[:7]})" if commit else ""
    ours = f"{name} {version}{from_git}, Python {platform.python_version()}"
    try:
        location = locate_all(engine, os.environ, engine_folders())[0]
    except TuningError:
        return ours
    known = recall(location, State())
    version = builds.version_words(known.version) if known else ""
    return f"{ours}\nengine {'embedded' if location.embedded else location.cli}{version}"
