"""Runs of ``--prompts`` as a user starts them, and what is left of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from bitnet_tuning import demo
from tests.engines import FakeEngine

REPO = Path(__file__).resolve().parents[1]
SCRIPT = REPO / "run_inference_optimized.py"
SECONDS = 60.0


class Done(NamedTuple):
    code: int
    out: bytes
    err: str

    @property
    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Prompts:
    """A file of prompts with an engine that answers them."""

    def __init__(self, folder: Path, engine: str, model: str, fake: FakeEngine | None) -> None:
        self.folder = folder
        self.engine = engine
        self.model = model
        self._fake = fake
        self.file = folder / "prompts.jsonl"
        self.out = folder / "out.jsonl"

    @property
    def fake(self) -> FakeEngine:
        assert self._fake is not None
        return self._fake

    def write(self, prompts: Sequence[object]) -> list[object]:
        self.file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
        return list(prompts)

    def command(self, *flags: str) -> list[str]:
        named = ["--engine", self.engine, "-m", self.model, "--prompts", str(self.file)]
        return [sys.executable, str(SCRIPT), *named, *flags]

    def environment(self, **behaviour: object) -> dict[str, str]:
        said = {f"FAKE_SERVER_{key.upper()}": str(value) for key, value in behaviour.items()}
        return {**os.environ, "OMP_WAIT_POLICY": "passive", **said}

    def run(self, *flags: str, stdin: bytes = b"", **behaviour: object) -> Done:
        """To its end, its answers read from a pipe."""
        done = subprocess.run(
            self.command(*flags),
            input=stdin,
            capture_output=True,
            env=self.environment(**behaviour),
            timeout=SECONDS,
            check=False,
        )
        return checked(done.returncode, done.stdout, done.stderr)

    def begin(
        self, *flags: str, out: IO[bytes] | int, **behaviour: object
    ) -> subprocess.Popen[bytes]:
        """In a session of its own, its answers written to ``out``."""
        return subprocess.Popen(
            self.command(*flags),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            env=self.environment(**behaviour),
            start_new_session=True,
        )

    def to_file(self, *flags: str, **behaviour: object) -> Done:
        """To its end, with its answers in ``self.out``, which are also the result's."""
        process = self.begin("-o", str(self.out), *flags, out=subprocess.PIPE, **behaviour)
        out, error = process.communicate(timeout=SECONDS)
        assert out == b""
        content = self.out.read_bytes() if self.out.exists() else b""
        return checked(process.returncode, content, error)


def checked(code: int, out: bytes, error: bytes) -> Done:
    """No traceback may reach a user."""
    err = error.decode("utf-8", "replace")
    assert "Traceback" not in err
    assert "this is a bug in" not in err
    return Done(code, out, err)


def with_fake(folder: Path) -> Prompts:
    fake = FakeEngine(folder / "checkout", server=True)
    return Prompts(folder, str(fake.cli), demo.I2_S, fake)


def with_embedded(folder: Path) -> Prompts:
    return Prompts(folder, "embedded", demo.TQ2_0, None)
