"""Limits on what modules do: who reads the kernel, starts programs, or imports slow modules."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from bitnet_tuning import demo
from tests.engines import FakeEngine

REPO = Path(__file__).resolve().parents[1]
PACKAGE = REPO / "bitnet_tuning"
MODULES = sorted(PACKAGE.rglob("*.py"))

STARTERS = ("fork", "system", "popen", "startfile", "exec", "spawn", "posix_spawn")
"""Beginnings of the names of functions in ``os`` that start a program."""

SLOW = {
    "dataclasses",
    "math",
    "shlex",
    "pathlib",
    "subprocess",
    "psutil",
    "cpuinfo",
    "rich",
    "typing_extensions",
    "inspect",
    "asyncio",
    "traceback",
    "typing",
    "ctypes",
    "xllamacpp",
    "numpy",
    "gguf",
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def texts(path: Path) -> Iterator[str]:
    """Yield the string literals that are not docstrings."""
    tree = parsed(path)
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in documentation:
            yield from (node.value,) if isinstance(node.value, str) else ()


def test_only_the_machine_package_reads_proc_and_sys() -> None:
    folders = ("/proc", "/sys/", "proc/", "sys/devices", "sys/fs")
    found = {
        (name_of(path), text)
        for path in MODULES
        if not name_of(path).startswith("machine/")
        for text in texts(path)
        if text.startswith(folders)
    }
    assert found == set()


def starts(path: Path) -> bool:
    """Return whether a module starts programs through ``os``.

    The import linter checks who imports ``subprocess``.
    """
    return any(
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
        and node.attr.startswith(STARTERS)
        for node in ast.walk(parsed(path))
    )


def test_only_one_module_starts_programs() -> None:
    assert [name_of(path) for path in MODULES if starts(path)] == ["launch/start.py"]


def test_no_module_uses_a_shell() -> None:
    for path in MODULES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.keyword):
                assert node.arg != "shell", path


REPORT = """\
import json, os, sys
sys.path.insert(0, {repo!r})
from bitnet_tuning.cli.{program} import main
code = main(sys.argv[1:])
with open({report!r}, "w") as file:
    json.dump(sorted(sys.modules), file)
sys.exit(code)
"""


def loaded_by(program: str, folder: Path) -> set[str]:
    """Return the modules that a whole run loads with a warm cache, without site-packages."""
    fake, report = FakeEngine(folder / "checkout"), folder / "modules.json"
    code = REPORT.format(repo=str(REPO), report=str(report), program=program)
    flags = ["--engine", str(fake.cli), "-m", demo.I2_S, "-p", "hello"]
    for _ in range(2):  # the first run asks the engine for its flags and fills the cache
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", code, *flags],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "hello and more text\n"), done.stderr
    return set(json.loads(report.read_text()))


@pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems may need more modules"
)
def test_a_run_with_a_warm_cache_loads_no_slow_module(tmp_path: Path) -> None:
    loaded = loaded_by("run", tmp_path)
    assert not loaded & SLOW
    ours = {name.removeprefix("bitnet_tuning.") for name in loaded if "bitnet_tuning." in name}
    assert "launch.run" in ours
    heavy = ("bench", "doctor", "embedded", "machine.foreign", "serve")
    assert not {name for name in ours if name.startswith((*heavy, "verify"))}
