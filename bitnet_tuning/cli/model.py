"""``python3 -m bitnet_tuning model``: show what a model file costs per token, and improve it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from shlex import quote
from typing import Any

from bitnet_tuning.cli.arguments import Parser, add_engine, expanded
from bitnet_tuning.console import aligned, say, size_text
from bitnet_tuning.engine.find import locate_all
from bitnet_tuning.errors import MissingError
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.find import DEFAULT, REPOSITORY, know, original_of, slim_copies
from bitnet_tuning.model.parts import (
    SLIM,
    WIDE,
    bytes_per_token,
    cost_text,
    is_wide,
    possible_gain,
    slim_advice,
    slimmed,
    wide_text,
)
from bitnet_tuning.model.types import ModelFile, Part, part_paths
from bitnet_tuning.prepare import engine_folders, find_model, slow_drive
from bitnet_tuning.store.codec import to_json
from bitnet_tuning.store.state import State, default_folder

_FILE = "GGUF model file (default: the one that a run would use)"


def run(arguments: list[str]) -> int:
    """Run one of the subcommands."""
    options = _parser().parse_args(arguments or ["show"])
    state = State(default_folder(os.environ))
    try:
        code: int = options.action(options, state)
    finally:
        if state.warning:
            say(f"warning: {state.warning}")
    return code


def _parser() -> Parser:
    about = "Show what a model file costs per token, and improve it."
    parser = Parser(prog="python3 -m bitnet_tuning model", description=about)
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, help="what to do (default: show)"
    )

    def command(name: str, action: Any, what: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
        added.set_defaults(action=action)
        return added

    showing = command("show", _show, "Print what each token reads of a model, part by part.")
    showing.add_argument("file", metavar="FILE", nargs="?", type=expanded, help=_FILE)
    add_engine(showing)
    showing.add_argument("--json", action="store_true", help="print JSON")
    getting = command("get", _get, "Download a published model, or continue a download.")
    repo = f"repo on the Hugging Face Hub (default: {REPOSITORY})"
    getting.add_argument("repo", metavar="REPO", nargs="?", default=REPOSITORY, help=repo)
    name = "file in REPO (default: its only .gguf file, or its only i2_s file)"
    getting.add_argument("file", metavar="FILE", nargs="?", help=name)
    return parser


def _get(options: argparse.Namespace, state: State) -> int:
    from bitnet_tuning.model.download import get_model  # noqa: PLC0415 (few commands download)

    model = know(get_model(options.repo, options.file, engine_folders()), state)
    flag = "" if model.path.endswith(DEFAULT) else f" -m {quote(model.path)}"
    lines = [*_lines(model, state), "", "To run it:"]
    print("\n".join([*lines, f'python3 run_inference.py{flag} -p "Your prompt here"']))
    return 0


def _show(options: argparse.Namespace, state: State) -> int:
    try:
        engine = locate_all(options.engine, os.environ, engine_folders())[0]
    except MissingError:
        if options.engine:
            raise
        engine = None
    choice = find_model(options.file, engine, state)
    say(choice.note)
    model = choice.model
    print(json.dumps(_facts(model), indent=2) if options.json else "\n".join(_lines(model, state)))
    return 0


def _facts(model: ModelFile) -> dict[str, Any]:
    """Return a model's facts as ``--json`` prints them."""
    more = {"bytes_per_token": bytes_per_token(model.parts), "possible_gain": possible_gain(model)}
    return {**to_json(model), **more}


def _lines(model: ModelFile, state: State) -> list[str]:
    total = bytes_per_token(model.parts)
    context = f"context of {model.context_length} tokens" if model.context_length else None
    size, count = size_text(model.size), len(part_paths(model.path))
    size = f"{size} in {count} files" if count > 1 else size
    facts = (model.name, model.architecture, model.quantization, context, size)
    lines = [model.path, ", ".join(filter(None, facts)), "", aligned(_rows(model.parts, total))]
    notes = _notes(model, state)
    return [*lines, "", *notes] if notes else lines


def _notes(model: ModelFile, state: State) -> list[str]:
    """Return sentences about what wastes bytes or time, and about copies; the advice is last."""
    notes = [slow_drive(model.path, Root(), wsl=True)]
    if original := original_of(model, state):
        notes.append(f"made from {original.path}: {cost_text(original)}")
    notes.append(wide_text(model))
    # A token reads all of the output matrix, but of a token embedding beside it a single row.
    parts = [part for part in model.parts if part.type in WIDE and part.read != part.size]
    saved = sum(part.size for part in parts) - sum(part.size for part in slimmed(parts, SLIM))
    if saved:
        less = f"{size_text(saved)} less memory"
        notes.append(f"token embedding, one row read per token (in {SLIM} {less}, not faster)")
    if saved or is_wide(model):
        notes.append(slim_advice(model, slim_copies(model, state)))
    return [note for note in notes if note]


def _rows(parts: Sequence[Part], total: int | None) -> list[tuple[str, ...]]:
    """Return a table of the parts: their sizes, and what a token reads of them."""
    rows = [("part", "type", "weights", "in the file", "read per token")]
    for part in parts:
        read = "not known" if part.read is None else size_text(part.read)
        share = f" ({100 * part.read / total:.0f} %)" if total and part.read is not None else ""
        rows.append((part.name, part.type, f"{part.weights:,}", size_text(part.size), read + share))
    weights, size = (sum(getattr(part, field) for part in parts) for field in ("weights", "size"))
    read = "not known" if total is None else size_text(total)
    return [*rows, ("all", "", f"{weights:,}", size_text(size), read)]
