"""Documents name only files, folders, functions, commands and flags that exist."""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout, suppress
from functools import cache
from importlib import import_module
from itertools import takewhile
from pathlib import Path

import pytest

from bitnet_tuning.__main__ import main
from bitnet_tuning.cli.commands import COMMANDS
from tools.run_blocks import PAGES, read_commands

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


def spans(document: Path) -> list[str]:
    """Return the code in a document: its inline code, and the lines of its blocks of commands."""
    text = document.read_text(encoding="utf-8")
    blocks = [command.text for command in read_commands(document)]
    inline = re.findall(r"`([^`]+)`", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S))
    return [*blocks, *(code.replace("\\|", "|").replace("\n", " ") for code in inline)]


def simple_commands(code: str) -> Iterator[list[str]]:
    """Yield the words of each command in a line of shell, without what follows a ``--``."""
    lexer = shlex.shlex(code, posix=True, punctuation_chars=";&<>()")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if word[:1] in set(";&<>()") or word == "|":
            yield list(takewhile(lambda each: each != "--", words))
            words = []
        else:
            words.append(word)


@cache
def help_of(*names: str) -> str:
    """Return what a command of the program prints for --help."""
    out = io.StringIO()
    with redirect_stdout(out), suppress(SystemExit):
        main([*names, "--help"])
    return out.getvalue()


def called(words: list[str]) -> tuple[str, list[str]] | None:
    """Return the help of the command of ours in these words, and its arguments."""
    while words and (re.fullmatch(r"\w+=.*|(.*/)?python3?|-m|pipx|run|uvx|\.\[.*\]", words[0])):
        words = words[1:]
    if words[:1] in (["--spec"], ["--from"]):
        return called(words[2:])
    program, *rest = words or [""]
    if program in SCRIPTS:
        return help_of(SCRIPTS[program]), rest
    if program not in ("bitnet-tuning", "bitnet_tuning") or not rest:
        return None
    name, *rest = rest
    if name.startswith("-") or name in ("COMMAND", "…"):
        return help_of(), []
    assert name in COMMANDS, words
    names = rest[0].split("|") if rest and name in ("model", "profile") else []
    for each in names:
        if not each.startswith("-"):
            assert each in help_of(name), words
            return help_of(name, each), rest[1:]
    return help_of(name), rest


def flags_in(words: Iterable[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}


SCRIPTS = {
    "run_inference.py": "run",
    "run_inference_optimized.py": "run",
    "benchmark_optimized.py": "bench",
    "test_optimizations.py": "test",
}
OTHERS = {
    *("--cpus", "--cpuset-cpus", "--ulimit"),  # Docker's
    *("--numa", "--no-mmap", "-i", "--spec", "--from"),  # engines', sed's, pipx's, uvx's
}
"""Flags of other programs."""

PARTS = {
    "model": ("show", "get", "slim"),
    "profile": ("list", "show", "remove", "export", "import"),
}
GUIDES = ("README.md", "docs/usage.md", "docs/prompts.md", "docs/deciding.md")


def test_commands_in_documents_have_the_flags_that_they_are_given(repository: Path) -> None:
    found = 0
    for document in documents(repository):
        if document.name == "CHANGELOG.md":  # it also names what older versions had
            continue
        for code in spans(document):
            for words in simple_commands(code):
                if known := called(words):
                    found += 1
                    offered = set(re.findall(r"--?[a-z][a-z-]*", known[0])) | {"--help"}
                    assert flags_in(known[1]) <= offered, (document.name, code)
    assert found > 50


def test_flags_in_guides_exist(repository: Path) -> None:
    offered = {
        flag
        for name in COMMANDS
        for part in (help_of(name), *(help_of(name, each) for each in PARTS.get(name, ())))
        for flag in re.findall(r"--?[a-z][a-z-]*", part)
    }
    named = {
        (guide, flag)
        for guide in GUIDES
        for code in spans(repository / guide)
        if code.startswith("-")
        for flag in flags_in(takewhile(lambda word: word != "--", code.split()))
    }
    assert named
    assert {each for each in named if each[1] not in offered | OTHERS} == set()


def test_flags_of_benchmarks_exist(repository: Path) -> None:
    for document in documents(repository):
        for code in spans(document):
            if script := re.search(r"\bbenchmarks/\w+\.py\b(.*)", code):
                source = (repository / script[0].split()[0]).read_text(encoding="utf-8")
                for flag in flags_in(script[1].split()) - {"-m"}:
                    assert f'"{flag}"' in source, code


def test_pages_that_are_run_have_commands(repository: Path) -> None:
    """tools/run_blocks.py runs them, which takes many minutes."""
    for page in PAGES:
        commands = read_commands(repository / page)
        assert [command for command in commands if not command.skipped]
        lines = (repository / page).read_text(encoding="utf-8").splitlines()
        for command in commands:
            printed = lines[command.line - 1].removesuffix("\\")
            assert command.text.startswith(printed.strip()), (page, command)
