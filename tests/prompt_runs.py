"""Runs of ``--prompts``, in this process or as a user starts them, and their results."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest

from bitnet_tuning import demo
from bitnet_tuning.cli.run import main
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

    def __init__(
        self, folder: Path, engine: str, model: str, capture: pytest.CaptureFixture[bytes]
    ) -> None:
        self.engine = engine
        self.model = model
        self.file = folder / "prompts.jsonl"
        self.out = folder / "out.jsonl"
        self._capture = capture
        self._begun: list[subprocess.Popen[bytes]] = []

    def write(self, prompts: Sequence[object]) -> None:
        self.file.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))

    def arguments(self, *flags: str) -> list[str]:
        named = ["--engine", self.engine, "-m", self.model, "--prompts", str(self.file)]
        return [*named, *flags]

    def command(self, *flags: str) -> list[str]:
        return [sys.executable, str(SCRIPT), *self.arguments(*flags)]

    def variables(self, **behaviour: object) -> dict[str, str]:
        """Return the variables that make the fake server behave: see fake_llama_server.py."""
        said = {f"FAKE_SERVER_{key.upper()}": str(value) for key, value in behaviour.items()}
        return {"OMP_WAIT_POLICY": "passive", **said}

    def run(self, *flags: str, **behaviour: object) -> Done:
        """Run to the end in this process; the answers are printed."""
        self._capture.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.variables(**behaviour).items():
                patch.setenv(name, value)
            code = main(self.arguments(*flags), report=True)
        return checked(code, *self._capture.readouterr())

    def printed(self) -> bytes:
        """Return what has been printed to standard output since the last run."""
        return self._capture.readouterr().out

    def to_file(self, *flags: str, **behaviour: object) -> Done:
        """Do the same with the answers in ``self.out``, whose content is the result's ``out``."""
        done = self.run("-o", str(self.out), *flags, **behaviour)
        assert done.out == b""
        return done._replace(out=self.out.read_bytes() if self.out.exists() else b"")

    def begin(
        self, *flags: str, out: IO[bytes] | int, **behaviour: object
    ) -> subprocess.Popen[bytes]:
        """Start a program in a session of its own that writes its answers to ``out``."""
        process = subprocess.Popen(
            self.command(*flags),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            env={**os.environ, **self.variables(**behaviour)},
            start_new_session=True,
        )
        self._begun.append(process)
        return process

    def end(self) -> None:
        """Kill what still runs. A server ends with its launcher."""
        for process in self._begun:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


class FakePrompts(Prompts):
    """The same with a fake server."""

    def __init__(
        self, folder: Path, fake: FakeEngine, capture: pytest.CaptureFixture[bytes]
    ) -> None:
        super().__init__(folder, str(fake.cli), demo.I2_S, capture)
        self.fake = fake
        for log in fake.bin.glob("*.jsonl"):
            log.unlink()


def checked(code: int, out: bytes, error: bytes) -> Done:
    """Return the result; no traceback may reach a user."""
    err = error.decode("utf-8", "replace")
    assert "Traceback" not in err
    assert "this is a bug in" not in err
    return Done(code, out, err)
