"""Run the checks and the tests under every supported Python: ``nox``, or ``nox -l`` for a list."""

from __future__ import annotations

import nox

PYTHONS = ("3.10", "3.11", "3.12", "3.13")

nox.options.sessions = ["lint", "tests"]


@nox.session(python=PYTHONS[1])
def lint(session: nox.Session) -> None:
    """Run ruff, mypy, import-linter and shellcheck."""
    session.install("-e", ".[embedded,test,lint]")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    session.run("shellcheck", ".ci/run", "bitnet-env.sh")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the quick tests; arguments after ``--`` go to pytest."""
    session.install("-e", ".[embedded,test]")
    session.run("python", "-m", "pytest", *(session.posargs or ("-n", "auto")))


@nox.session(python=PYTHONS[1])
def slow(session: nox.Session) -> None:
    """Run the slow tests only."""
    session.install("-e", ".[embedded,test]")
    session.run("python", "-m", "pytest", "-n", "auto", "-m", "slow")
