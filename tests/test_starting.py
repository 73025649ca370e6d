"""Programs started by an old Python, without their folder on sys.path, or for a full disk."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.engines import FakeEngine

SCRIPTS = (
    "run_inference.py",
    "run_inference_optimized.py",
    "benchmark_optimized.py",
    "test_optimizations.py",
)
EMBEDDED = "bitnet_tuning/embedded/__main__.py"
PATIENCE = 60.0


def run(*command: str, cwd: Path = REPOSITORY, **env: str) -> subprocess.CompletedProcess[str]:
    variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command,
        cwd=cwd,
        env=variables | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# Old Pythons

NEEDS = "bitnet-tuning: error: Python 3.10 or later is needed, but "
PRETEND = (
    "import runpy, sys; sys.version_info = (3, 9, 18, 'final', 0); sys.path.insert(0, '.'); "
    "name = sys.argv.pop(1); "
    "(runpy.run_path if name.endswith('.py') else runpy.run_module)(name, run_name='__main__')"
)


@pytest.mark.parametrize("name", [*SCRIPTS, "bitnet_tuning", "bitnet_tuning.embedded"])
def test_an_old_python_is_one_sentence(name: str) -> None:
    done = run(sys.executable, "-c", PRETEND, name, "--help")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == f"{NEEDS}{sys.executable} is 3.9\n"


@pytest.mark.parametrize("name", [*SCRIPTS, "bitnet_tuning/__init__.py"])
@pytest.mark.parametrize("minor", [6, 7, 8, 9])
def test_an_old_python_can_read_what_it_reads_before_it_is_refused(name: str, minor: int) -> None:
    tree = ast.parse((REPOSITORY / name).read_text(), feature_version=(3, minor))
    futures = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert "__future__" not in [node.module for node in futures]  # 3.6 lacks annotations


def _old_pythons() -> list[str]:
    roots = [Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"]
    found = [path for root in roots for path in root.glob("3.[6-9].*/bin/python")]
    return [str(path) for path in found if os.access(path, os.X_OK)]


@pytest.mark.skipif(not _old_pythons(), reason="no Python older than 3.10 below pyenv's folder")
def test_real_old_pythons_print_that_sentence() -> None:
    for python in _old_pythons():
        for words in (*([name] for name in SCRIPTS), ["-m", "bitnet_tuning", "host"]):
            done = run(python, *words)
            assert (done.returncode, done.stdout) == (3, "")
            assert done.stderr.startswith(f"{NEEDS}{python} is 3.")


# Copies


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the scripts and the package."""
    folder = tmp_path_factory.mktemp("copied")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "bitnet_tuning", folder / "bitnet_tuning", ignore=ignored)
    for name in SCRIPTS:
        shutil.copy(REPOSITORY / name, folder)
    return folder


@pytest.mark.parametrize("isolated", [True, False])
@pytest.mark.parametrize("name", SCRIPTS)
def test_copied_scripts_find_the_package_beside_them(
    copied: Path, tmp_path: Path, name: str, isolated: bool
) -> None:
    """Neither -I nor PYTHONSAFEPATH lets Python put the script's folder on sys.path."""
    (tmp_path / name).symlink_to(copied / name)
    for script in (copied / name, tmp_path / name):
        flags = ["-I"] if isolated else []
        command = [sys.executable, *flags, "-S", str(script), "--help"]
        done = run(*command, cwd=tmp_path, PYTHONSAFEPATH="1")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("usage:")


# Ctrl-C

SITE = """\
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == os.environ["INTERRUPT_AT"]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.skipif(os.name == "nt", reason="os.kill sends no SIGINT on Windows")
@pytest.mark.parametrize("name", ["console", "cli.arguments"])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(tmp_path: Path, name: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join((str(tmp_path), str(REPOSITORY)))
    module = f"bitnet_tuning.{name}"
    with (REPOSITORY / "pyproject.toml").open() as file:
        found = [line.partition('"')[2].rstrip('"\n') for line in file if ":" in line[:70]]
    installed = [each for each in found if each.startswith("bitnet_tuning.")]
    assert len(installed) == 5
    call = "import sys; from {} as door; sys.exit(door())"  # as the installed programs do
    doors = [call.format(each.replace(":", " import ")) for each in installed]
    commands = [[name] for name in SCRIPTS] + [["-c", code] for code in doors]
    for command in (*commands, ["-m", "bitnet_tuning", "host"], [EMBEDDED]):
        if (command, name) != ([EMBEDDED], "cli.arguments"):
            done = run(sys.executable, *command, "host", PYTHONPATH=path, INTERRUPT_AT=module)
            assert (done.returncode, done.stdout, done.stderr) == (130, "", ""), command


# Full disks


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize(
    "words",
    [
        "-m bitnet_tuning --help",
        "-m bitnet_tuning host",
        "-m bitnet_tuning host --json",
        "-m bitnet_tuning env",
        "-m bitnet_tuning profile list --json",
        *(f"{name} --help" for name in SCRIPTS),
    ],
)
def test_what_does_not_fit_on_the_disk_is_an_error(words: str) -> None:
    done = run("sh", "-c", f'exec "$0" {words} >/dev/full', sys.executable)
    assert done.returncode == 1
    assert done.stderr == "bitnet-tuning: error: No space left on device\n"


def test_a_reader_that_leaves_early_is_no_error_message() -> None:
    done = run("sh", "-c", 'trap "" PIPE; "$0" -m bitnet_tuning host --json | :', sys.executable)
    assert done.stderr == ""


# Paths


def test_a_tilde_that_the_shell_left_is_the_users_folder(tmp_path: Path) -> None:
    """Shells expand it in ``-m ~/FILE``, not in ``--model=~/FILE``."""
    model = tmp_path / "m.gguf"
    shutil.copy(REPOSITORY / "bitnet_tuning/demo/demo-tq2_0.gguf", model)
    fake = FakeEngine(tmp_path / "checkout")
    home, state = str(tmp_path), "~/state"

    def wanted(*words: str, variable: str = "") -> str:
        script = ("run_inference_optimized.py", "-p", "x", "--dry-run", "--json", *words)
        engine = ("--engine", str(fake.checkout))
        named: dict[str, Any] = {
            "HOME": home,
            "BITNET_TUNING_HOME": state,
            "BITNET_MODEL": variable,
        }
        done = run(sys.executable, *script, *engine, **named)
        return str(json.loads(done.stdout)["model"]) if done.returncode == 0 else done.stderr

    assert wanted("--model=~/m.gguf") == wanted(variable="~/m.gguf") == str(model)
    assert str(tmp_path / "none.gguf") in wanted("--model=~/none.gguf")
    assert list((tmp_path / "state").iterdir())
    others = ("benchmark_optimized.py", "--resume=~/a.json")
    assert str(tmp_path / "a.json") in run(sys.executable, *others, HOME=home).stderr
    prompts = ("run_inference_optimized.py", "--prompts=~/p.jsonl", "--model=~/m.gguf")
    done = run(sys.executable, *prompts, "--engine", str(fake.checkout), HOME=home)
    assert str(tmp_path / "p.jsonl") in done.stderr
    assert not (REPOSITORY / "~").exists()
