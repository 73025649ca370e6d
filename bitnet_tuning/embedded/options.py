"""The options that all programs of the embedded engine share: how a model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from bitnet_tuning.embedded.flags import CliFlag, one_of, parse, whole


@dataclass
class LoadOptions:
    """How a model is loaded. Sizes are in tokens; None leaves a value to llama.cpp."""

    help: bool = False
    version: bool = False
    model: str = ""
    context: int = 4096
    threads: int = 0
    threads_batch: int = 0
    batch: int = 2048
    ubatch: int = 512
    mmap: bool | None = None
    mlock: bool = False
    flash: bool | None = None
    numa: str = ""
    chat_template: str = ""

    def __post_init__(self) -> None:
        """Replace thread counts below 1 by a default, as llama.cpp does."""
        if self.threads < 1:
            self.threads = allowed_cpus()
        if self.threads_batch < 1:
            self.threads_batch = self.threads


def allowed_cpus() -> int:
    """Return the number of logical CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class LookAlike(NamedTuple):
    """A program of the embedded engine, with the flags of a program of llama.cpp."""

    title: str
    """First line of its help."""
    flags: tuple[CliFlag, ...]
    options: type[LoadOptions]
    """Class of the options that the flags set."""
    run: Callable[[Any], None]
    """Function that does the work with such options."""

    def parse(self, argv: Sequence[str]) -> Any:
        """Return the options that ``argv`` sets; raise TuningError as ``flags.parse`` does."""
        return self.options(**parse(argv, self.flags))


_FLASH = {"on": True, "off": False, "auto": None, "1": True, "0": False}
_NUMA = {kind: kind for kind in ("distribute", "isolate", "numactl")}

LOAD_FLAGS = (
    CliFlag("-h, --help", "help", "print this text and exit"),
    CliFlag("--version", "version", "print the versions and exit"),
    CliFlag("-m, --model FNAME", "model", "model file (GGUF)"),
    CliFlag(
        "-c, --ctx-size N", "context", "context in tokens (default: 4096; 0: the model's)", whole
    ),
    CliFlag("-t, --threads N", "threads", "threads (default: CPUs this process may use)", whole),
    CliFlag("-tb, --threads-batch N", "threads_batch", "threads for prompts (default: -t)", whole),
    CliFlag("-b, --batch-size N", "batch", "logical batch size (default: 2048)", whole),
    CliFlag("-ub, --ubatch-size N", "ubatch", "physical batch size (default: 512)", whole),
    CliFlag("--mmap, --no-mmap", "mmap", "map the model file into memory, or copy it"),
    CliFlag("--mlock", "mlock", "keep the model in RAM"),
    CliFlag("-fa, --flash-attn MODE", "flash", "on, off or auto (default)", one_of(_FLASH)),
    CliFlag("--numa TYPE", "numa", "distribute, isolate or numactl", one_of(_NUMA)),
    CliFlag("-ngl, --gpu-layers, --n-gpu-layers N", "", "accepted; everything runs on the CPU"),
)
