"""Run the commands that the documents print, in the form in which they are printed.

usage, from the repository's root: python3 -m tools.run_blocks [PAGE ...] [--list]

Each page gets a copy of the checkout, an empty HOME and, beside the copy, a checkout of BitNet with
fake engines; models are downloaded from a server on the loopback. Each section of a page is a new
bash in the copy's folder, with the environment .venv active if an earlier section made it. The
first command that fails ends the page. A comment before a block says what is special about it:
`<!-- not run: REASON -->`, `<!-- needs: PROGRAM -->`, without which it is not run, and
`<!-- may exit with 1: REASON -->`, which is a judgement on the machine, not a failure.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from bitnet_tuning.verify.selftest import load_cases
from tests.engines import FakeEngine
from tests.fake_hub import fake_hub
from tests.gguf_files import write_bitnet

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/usage.md", "docs/prompts.md")
REPOSITORY, FILE = "microsoft/BitNet-b1.58-2B-4T-gguf", "ggml-model-i2_s.gguf"
_JUDGES = "may exit with 1"
_MARK = rf"(?:<!-- (not run|needs|{_JUDGES}): (.+?) -->\n)?"
_BLOCK = re.compile(rf"^(## )|{_MARK}^```bash\n(.*?)^```$", re.M | re.S)
_KEPT = re.compile(r"USER|TERM|LANG|.*_(proxy|PROXY)|(PIP|UV|SSL)_.*|.*_CA_BUNDLE|PYTEST_ADDOPTS")
"""Variables of ours that a new user's shell might have, too. PYTEST_ADDOPTS can choose tests for
the README's second command."""


class Command(NamedTuple):
    """A command in a page; lines that end with a backslash are joined with the next."""

    line: int
    """Line in the page, from 1."""
    section: int
    text: str
    skipped: str | None
    """Why it does not run here."""
    judges: bool
    """Whether the exit code 1 is no failure."""


def read_commands(page: Path) -> list[Command]:
    """Return the commands in a page's blocks, in order."""
    text = page.read_text(encoding="utf-8")
    section, commands = 0, []
    for found in _BLOCK.finditer(text):
        heading, mark, why, block = found.groups()
        if heading:
            section += 1
            continue
        missing = mark == "needs" and not shutil.which(why)
        skipped = why if mark == "not run" else f"{why} is missing" if missing else None
        line = text.count("\n", 0, found.start(4)) + 1
        for command in re.findall(r"(?:.*\\\n)*.*\n", block):
            joined = re.sub(r"\\\n\s*", "", command).strip()
            commands.append(Command(line, section, joined, skipped, mark == _JUDGES))
            line += command.count("\n")
    return commands


def run_page(page: str) -> bool:
    """Run a page, list its commands, and return whether all that ran succeeded."""
    commands = read_commands(ROOT / page)
    failed: Command | None = None
    with _surroundings() as (folder, environment):
        for number in sorted({command.section for command in commands}):
            here = [each for each in commands if each.section == number and not each.skipped]
            failed = failed or _run(here, folder, environment)
    for command in commands:
        state = "ok" if failed is None or command.line < failed.line else "--"
        state = "FAIL" if command == failed else "skip" if command.skipped else state
        why = f"  ({command.skipped})" if command.skipped else ""
        print(f"{state:4} {page}:{command.line}  {command.text}{why}", flush=True)
    return failed is None


def _run(commands: list[Command], folder: Path, environment: dict[str, str]) -> Command | None:
    """Run one section; return the command that failed."""
    begun, script = folder.parent / "begun", folder.parent / "section.sh"
    lines = ["set -eo pipefail", "[ ! -e .venv/bin/activate ] || . .venv/bin/activate"]
    for position, command in enumerate(commands):
        lines += [f"echo {position} > '{begun}'", f"printf '$ %s\\n' {quote(command.text)}"]
        lines += ["{", command.text, "} || [ $? = 1 ]"] if command.judges else [command.text]
    script.write_text("\n".join(lines), encoding="utf-8")
    done = subprocess.run(
        ["bash", str(script)], stdin=subprocess.DEVNULL, cwd=folder, env=environment, check=False
    )
    return commands[int(begun.read_text())] if done.returncode else None


@contextmanager
def _surroundings() -> Iterator[tuple[Path, dict[str, str]]]:
    """Make a copy of the checkout and a checkout of BitNet for the block, and return the copy's
    folder and the environment."""
    with tempfile.TemporaryDirectory() as below, fake_hub(REPOSITORY) as hub:
        base = Path(below).resolve()
        copy = base / "bitnet-tuning"
        left = shutil.ignore_patterns(".venv", ".*_cache", "__pycache__", "*.egg-info", "build")
        shutil.copytree(ROOT, copy, symlinks=True, ignore=left)
        engine = FakeEngine(base / "BitNet", bench=True, server=True, quantize=True)
        engine.curve(texts={case.prompt: case.text for case in load_cases()})
        for name in ("home", "tmp"):
            (base / name).mkdir()
        hub.files = {FILE: write_bitnet(base / "model").read_bytes()}
        python = os.path.join(sys.base_prefix, "bin")
        direct = f"127.0.0.1,{os.environ.get('no_proxy') or os.environ.get('NO_PROXY', '')}"
        environment = {
            **{name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)},
            "PATH": f"{python}:{os.environ['PATH']}",
            "HOME": str(base / "home"),
            "TMPDIR": str(base / "tmp"),
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            **dict.fromkeys(("NO_PROXY", "no_proxy"), direct),
            "FAKE_COPY": str(write_bitnet(base / "slim", embedding="q6_k")),
        }
        yield copy, environment


def main() -> int:
    """Run the pages; return 1 if one failed."""
    parser = argparse.ArgumentParser(description="Run the commands that the documents print.")
    parser.add_argument("pages", nargs="*", metavar="PAGE", default=PAGES)
    parser.add_argument("--list", action="store_true", help="print the commands, run nothing")
    options = parser.parse_args()
    if options.list:
        for page in options.pages:
            for command in read_commands(ROOT / page):
                print(f"{page}:{command.line}  {command.text}")
        return 0
    failed = [page for page in options.pages if not run_page(page)]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
