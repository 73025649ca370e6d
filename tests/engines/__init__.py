"""Fake engines: programs that answer like llama.cpp's and record how they were started."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


class FakeEngine:
    """A checkout with a fake engine in ``build/bin``.

    Of the generation ``bitnet`` it has llama-cli alone, which completes prompts, and takes the end
    of its input for an empty line in a chat. ``mainline`` also has llama-completion. ``bench``,
    ``server`` and ``quantize`` add llama-bench, llama-server and llama-quantize. Several engines
    may share a checkout if each has its own ``build`` folder.
    """

    def __init__(
        self,
        folder: Path,
        generation: str = "bitnet",
        bench: bool = False,
        build: str = "build",
        server: bool = False,
        quantize: bool = False,
    ) -> None:
        self.checkout = folder
        self.bin = folder / build / "bin"
        self.bin.mkdir(parents=True)
        names = ["llama-cli"] + (["llama-completion"] if generation == "mainline" else [])
        for name in names:
            self._install(name, "fake_llama_cli.py")
        if bench:
            self._install("llama-bench", "fake_llama_bench.py")
        if server:
            self._install("llama-server", "fake_llama_server.py")
        if quantize:
            self._install("llama-quantize", "fake_llama_quantize.py")
        shutil.copyfile(FOLDER / "curve.py", self.bin / "curve.py")
        (self.bin / "generation").write_text(generation)
        self.cli = self.bin / "llama-cli"
        self.completion = self.bin / "llama-completion"
        self.log = self.bin / "runs.jsonl"

    def _install(self, name: str, source: str) -> None:
        text = (FOLDER / source).read_text()
        program = self.bin / name
        # A line "#!…" cannot hold a path with a space, nor a long one, so that a shell starts
        # Python, which reads the shell's line as a string (as in the scripts that pip writes).
        start = f"""#!/bin/sh
'''exec' {shlex.quote(sys.executable)} -IS "$0" "$@"
' '''"""
        # Before a __future__ import there may be one string only.
        text = text.replace("from __future__ import annotations\n", "")
        program.write_text(text.replace("#!/usr/bin/env python3", start, 1))
        program.chmod(0o755)

    def curve(self, **curve: object) -> FakeEngine:
        """Set how fast the engine is and how it misbehaves from now on, as in curve.py."""
        (self.bin / "curve.json").write_text(json.dumps(curve))
        return self

    def isa(self, *names: str, dies: str | None = None) -> FakeEngine:
        """Set the instruction sets that the engine is built for. It dies of an illegal instruction
        at every start if ``dies`` is ``start``, and when it computes if it is ``model``."""
        (self.bin / "isa.json").write_text(json.dumps({"names": names, "dies": dies}))
        return self

    def environment(self, **behaviour: object) -> dict[str, str]:
        """Return the variables that set a behaviour which fake_llama_cli.py describes."""
        return {f"FAKE_{key.upper()}": str(value) for key, value in behaviour.items()}

    def runs(self) -> list[dict[str, Any]]:
        """Return the records of all starts so far, the oldest first, probes included."""
        if not self.log.exists():
            return []
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def prompts(self) -> list[dict[str, Any]]:
        """Return the starts with a prompt or a chat from a launcher, without those of probes."""
        probes = ("--help", "--version")
        runs = [run for run in self.runs() if not set(probes) & set(run["argv"])]
        others = ("llama-bench", "llama-server")
        runs = [run for run in runs if run["program"] not in others]
        return [run for run in runs if run["argv"][1:5] and not _is_isa_probe(run["argv"])]

    def benches(self) -> list[dict[str, Any]]:
        """Return the starts of llama-bench, except those for its help."""
        return [run for run in self.runs() if run["program"] == "llama-bench"]

    def servers(self) -> list[dict[str, Any]]:
        """Return the starts of llama-server, except those for its help."""
        return [run for run in self.runs() if run["program"] == "llama-server"]

    def quantized(self) -> list[dict[str, Any]]:
        """Return the starts of llama-quantize, each with its ``argv`` and ``pid``."""
        path = self.bin / "quantized.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def asked(self) -> list[dict[str, Any]]:
        """Return the requests to its servers, each with the server's ``pid``."""
        path = self.bin / "asked.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def events(self, run: dict[str, Any]) -> list[str]:
        """Return the names of the signals that a run has received, in order."""
        path = self.bin / f"signals-{run['pid']}"
        return path.read_text().split() if path.exists() else []


def _is_isa_probe(argv: list[str]) -> bool:
    return (
        "-n" in argv
        and argv[argv.index("-n") + 1] == "1"
        and os.path.join("demo", "") in " ".join(argv)
    )
