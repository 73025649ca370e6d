"""Documents name only files, folders and functions that exist."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "bitnet_tuning/demo/README.md")
_FOLDERS = (
    *("bench", "cli", "demo", "doctor", "embedded", "engine", "launch", "machine", "model"),
    *("plan", "serve", "store", "verify", "bitnet_tuning", "docs", "tests", "benchmarks"),
)


def documents(repository: Path) -> list[Path]:
    return [repository / name for name in _DOCUMENTS] + sorted((repository / "docs").glob("*.md"))


def test_links_lead_to_files(repository: Path) -> None:
    links = [
        (document, target)
        for document in documents(repository)
        for target in re.findall(r"\]\(([^)#\s]+)\)", document.read_text())
        if "://" not in target
    ]
    assert links
    assert [link for link in links if not (link[0].parent / link[1]).exists()] == []


@pytest.mark.parametrize("name", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_named_files_exist(repository: Path, name: str) -> None:
    named = re.findall(
        rf"`((?:{'|'.join(_FOLDERS)})/[\w./-]*)[:`]", (repository / name).read_text()
    )
    assert named
    bases = (repository, repository / "bitnet_tuning")
    assert [
        path
        for path in named
        if not any((base / path).exists() for base in bases) and "NAME" not in path
    ] == []


def test_named_functions_exist(repository: Path) -> None:
    text = (repository / "docs/architecture.md").read_text()
    named = re.findall(r"`(\w+)/(\w+)\.py: (\w+)`", text)
    assert named
    for folder, file, function in named:
        assert callable(getattr(import_module(f"bitnet_tuning.{folder}.{file}"), function))
