"""run_inference_optimized.py: the command `run` with a report of governor and speeds."""

from __future__ import annotations

from collections.abc import Sequence

from bitnet_tuning.cli import run


def main(arguments: Sequence[str] | None = None, root: str = "/") -> int:
    """Run the program. ``root`` is the folder that contains the machine's ``sys`` and ``proc``."""
    return run.main(arguments, root, report=True)
