"""Run the commands that the documents print, in the form in which they are printed.

usage, from the repository's root: python3 -m tools.run_blocks [PAGE ...] [--list]

Each page gets a copy of the checkout, an empty HOME and, beside the copy, a checkout of BitNet with
fake engines; models are downloaded from a server on the loopback. Each section of a page is a new
bash in the copy's folder, with the environment .venv active if an earlier section made it. The
first command that fails ends the page. A comment before a block says why it cannot run
everywhere: `<!-- not run: REASON -->`, or `<!-- needs: PROGRAM -->`, which runs where that is.
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
_BLOCK = re.compile(
    r"^(## )|(?:<!-- (not run|needs): (.+?) -->\n)?^```bash\n(.*?)^```$", re.M | re.S
)
_KEPT = re.compile(r"PATH|USER|TERM|LANG|.*_proxy|.*_PROXY|PIP_.*|UV_.*|SSL_.*|.*_CA_BUNDLE")
"""Variables of ours that a new user's shell might have, too."""


class Block(NamedTuple):
    """The commands between two fences."""

    line: int
    """Line of the first command in the page, from 1."""
    section: int
    commands: str
    skipped: str | None
    """Why it does not run here."""


def read_blocks(page: Path) -> list[Block]:
    """Return the blocks of commands of a page, in order."""
    text = page.read_text(encoding="utf-8")
    section, blocks = 0, []
    for found in _BLOCK.finditer(text):
        heading, mark, why, commands = found.groups()
        section += bool(heading)
        if heading:
            continue
        line = text.count("\n", 0, found.start(4)) + 1
        missing = mark == "needs" and not shutil.which(why)
        skipped = why if mark == "not run" else f"{why} is missing" if missing else None
        blocks.append(Block(line, section, commands, skipped))
    return blocks


def commands_of(block: Block) -> list[str]:
    """Return a block's lines, those that end with a backslash joined with the next."""
    joined = re.sub(r"\\\n\s*", "", block.commands)
    return [line for line in joined.splitlines() if line and not line.startswith("#")]


def run_page(page: str) -> bool:
    """Run a page, list its commands, and return whether all that ran succeeded."""
    blocks = read_blocks(ROOT / page)
    failed: Block | None = None
    with _surroundings() as (folder, environment):
        for number in sorted({block.section for block in blocks}):
            here = [block for block in blocks if block.section == number and not block.skipped]
            failed = _run(here, folder, environment)
            if failed:
                break
    reached = failed is None
    for block in blocks:
        state = "skip" if block.skipped else "ok" if failed is None or block < failed else "--"
        state = "FAIL" if block is failed else state
        why = f"  ({block.skipped})" if block.skipped else ""
        for command in commands_of(block):
            print(f"{state:4} {page}:{block.line}  {command}{why}", flush=True)
    return reached


def _run(blocks: list[Block], folder: Path, environment: dict[str, str]) -> Block | None:
    """Run one section; return the block that failed."""
    begun, script = folder.parent / "begun", folder.parent / "section.sh"
    lines = ["set -eo pipefail", "[ ! -e .venv/bin/activate ] || . .venv/bin/activate"]
    for position, block in enumerate(blocks):
        lines += [f"echo {position} > '{begun}'", f"printf '%s\\n' {quote(block.commands)}"]
        lines += [block.commands]
    script.write_text("\n".join(lines), encoding="utf-8")
    command = ["bash", str(script)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, cwd=folder, env=environment, check=False
    )
    return blocks[int(begun.read_text())] if done.returncode else None


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
            for block in read_blocks(ROOT / page):
                print(*(f"{page}:{block.line}  {line}" for line in commands_of(block)), sep="\n")
        return 0
    failed = [page for page in options.pages if not run_page(page)]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
