"""``python3 -m bitnet_tuning model``: show what a model file costs per token, and improve it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence

from bitnet_tuning import prepare
from bitnet_tuning.bench.llama_bench import FailedRunError
from bitnet_tuning.bench.runner import Patience, run_cli
from bitnet_tuning.bench.words import QUESTION, TOKENS, difference
from bitnet_tuning.cli.arguments import Parser, add_commands, add_engine, expanded, run_command
from bitnet_tuning.cli.commands import nearest
from bitnet_tuning.console import Progress, aligned, columns, command, fitted, say, size_text, word
from bitnet_tuning.engine.find import Location, find_quantizer, locate_all
from bitnet_tuning.errors import MissingError, UnsupportedError, UsageError
from bitnet_tuning.launch.signals import Stop, Stopped
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model import find, slim, types
from bitnet_tuning.model.download import get_model
from bitnet_tuning.model.find import REPOSITORY
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import EMBEDDING, OUTPUT, TERNARY, ModelFile, Part, part_paths
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.store.codec import to_json
from bitnet_tuning.store.state import State
from bitnet_tuning.verify.selftest import continuation, first_difference


def run(arguments: list[str]) -> int:
    first, actions = next(iter(arguments), "-"), ("show", "slim", "get")
    if first not in actions and not first.startswith("-"):
        found = nearest(first, actions)
        if found and not os.path.exists(expanded(first)):
            remedy = f"did you mean {command('model')} {found}?"
            raise MissingError(f"no such command or file: {first}", remedy)
        arguments = ["show", *arguments]
    return run_command(make_parser(), arguments, "show")


def make_parser() -> Parser:
    about = "Show what a model file costs per token, and improve it."
    parser = Parser("model", "[COMMAND] [options]", "", "get", "slim", description=about)
    command = add_commands(parser, "show")
    showing = command("show", _show, "Print what each token reads of a model, part by part.")
    _add_file(showing)
    add_engine(showing)
    showing.add_argument("--json", action="store_true", help="print JSON")
    getting = command("get", _get, "Download a published model, or continue a download.")
    repo = f"repo on the Hugging Face Hub (default: {REPOSITORY})"
    getting.add_argument("repo", metavar="REPO", nargs="?", default=REPOSITORY, help=repo)
    name = "file in REPO (default: its only .gguf file, or its only i2_s file)"
    getting.add_argument("file", metavar="FILE", nargs="?", help=name)
    what = "Write a copy of a model with a smaller embedding beside it, and check the copy."
    slimming = command("slim", _slim, what)
    _add_file(slimming)
    add_engine(slimming)
    add = slimming.add_argument
    what = f"type of the embedding: {', '.join(slim.PERPLEXITY)} (default: q6_k where it fits)"
    add("--embedding", type=str.lower, choices=slim.PERPLEXITY, metavar="TYPE", help=what)
    what = "file to write, or its folder (default: beside FILE, where runs find it)"
    add("-o", "--output", type=expanded, metavar="OUT", help=what)
    add("--yes", action="store_true", help="accept a type that loses more than q6_k")
    return parser


def _add_file(parser: argparse.ArgumentParser) -> None:
    add, absent = parser.add_mutually_exclusive_group().add_argument, argparse.SUPPRESS
    what = "GGUF model file (default: the one that a run would use)"
    add("file", metavar="FILE", nargs="?", default=absent, type=expanded, help=what)
    add("-m", "--model", dest="file", metavar="FILE", type=expanded, help="the same as FILE")


def _slim(options: argparse.Namespace, state: State) -> int:
    kind: str | None = options.embedding
    if kind and not options.yes:
        slim.check_loss(kind)
    found = prepare.find_pair(options.engine, options.file, state)[1].model
    model = find.original_of(found, state) or found
    matrices = [part for part in model.parts if part.name in (EMBEDDING, OUTPUT)]
    if kind is None and not any(part.type in types.WIDE for part in matrices):
        kinds = "/".join(part.type for part in matrices)
        print(f"{model.path} has a small embedding already: {kinds}")
        return 0
    kind = kind or types.slim_type(model)
    slim.check_model(model, kind)
    after = types.slimmed(model.parts, kind)
    if after == model.parts:
        print(f"{model.path} has nothing to gain: {kind} makes no matrix of it smaller")
        return 0
    out = _place(options.output, find.slim_path(model.path, kind))
    if os.path.lexists(out):
        if os.path.realpath(out) == os.path.realpath(model.path):
            raise UsageError(f"{out} is the model itself", "name another file with -o")
        if wrong := slim.problem(model, after, out):
            remedy = "remove it, or name another file with -o"
            raise UsageError(f"{out} exists and is not that copy: it {wrong}", remedy)
        if find.is_older(out, model.path):
            os.utime(out)  # so that runs use it again
        print(fitted(f"{out} is that copy already\n{_use(out, options, state)}"))
        return 0
    try:
        compared = _write(model, after, out, options.engine, state)
    except Stopped as end:
        say(f"stopped by {end}: nothing was written")
        return 128 + end.number
    sizes = f"{out}: {size_text(os.path.getsize(out))}, the model: {size_text(model.size)}"
    lines = [sizes, *_gains(model, after), compared, _use(out, options, state)]
    print(fitted("\n".join(lines)))
    return 0


def _place(named: str | None, beside: str) -> str:
    """Return the path of the copy: that of the flag -o, which may be a folder, else ``beside``."""
    if not named:
        return os.path.abspath(beside)
    if os.path.isdir(named):
        return os.path.join(os.path.abspath(named), os.path.basename(beside))
    if named.endswith(os.sep):
        raise UsageError(f"no such folder: {named}", "make it first, or name a file")
    if part_paths(named) != [named]:
        cause = f"{named} is the name of one of several files of a model"
        raise UsageError(cause, "name another file with -o")
    return os.path.abspath(named)


def _write(
    model: ModelFile, after: Sequence[Part], out: str, engine: str | None, state: State
) -> str:
    """Write the copy and return how its text differs. After an error, nothing is left."""
    named = Request(engine=engine, model=model.path, prompt=QUESTION)
    request = named._replace(n_predict=TOKENS, ctx_size=512, temperature=0.0)
    facts, plan = prepare.prepare(request, state=state)
    state.warning = None  # it has been said
    program = find_quantizer(facts.engine)
    size = slim.size_of(model, after, facts.host.memory.available)
    with Stop() as stop, stop.interruptible(), slim.drafted(out, size) as draft:
        say(f"writing {out} from {model.path}")
        argv = slim.command(program, model, after, draft, plan.setting.threads_batch)
        with Progress(size, lambda done: f"{size_text(done)} of {size_text(size)}") as shown:
            slim.write(argv, draft, size, shown)
        say("comparing it with the model, and generating a text with both")
        shutil.copymode(model.path, draft)
        if wrong := slim.problem(model, after, draft):
            raise slim.failed(draft, size, f"the copy {wrong}")
        with_copy = facts._replace(model=read_model(draft))
        ours, theirs = (_text(each, plan, request) for each in (facts, with_copy))
        if ours and not theirs:
            raise UnsupportedError("the engine writes nothing with the copy")
    return _compared(ours, theirs)


def _text(facts: Facts, plan: Plan, request: Request) -> str:
    """Return the text that the model adds to the prompt. Raise UnsupportedError if it fails."""
    try:
        done = run_cli(facts, plan.setting, request, Patience().first)
    except FailedRunError as failed:
        raise UnsupportedError(f"cannot run {facts.model.path}: {failed}") from failed
    return continuation(done.stdout, QUESTION).strip()


def _gains(model: ModelFile, after: Sequence[Part]) -> list[str]:
    whole, gain = types.output_matrix(model.parts), types.bound(model.parts, after)
    reads = [size_text(types.bytes_per_token(each) or 0) for each in (after, model.parts)]
    lines = []
    for old, new in zip(model.parts, after, strict=True):
        if old == new:
            continue
        text = "one row read per token: less memory and disk, not faster"
        if old is whole and gain:
            text = f"{' instead of '.join(reads)} read per token: up to ×{gain:.2f} as fast"
        if old.type not in types.WIDE:
            text += f"; it loses more than {new.type} made from the original"
        sizes = f"{old.type} {size_text(old.size)}, now {new.type} {size_text(new.size)}"
        lines.append(f"{old.name}: {sizes}; {text}")
    return lines


def _compared(ours: str, theirs: str) -> str:
    """Return how the copy's text differs; an engine may lose the end of one (see TRIES)."""
    at = first_difference(ours, theirs)
    found = f"its text at temperature 0 begins with the same {at} characters"
    if at < min(len(ours), len(theirs)):
        differs = difference(theirs, ours, "than the model")
        found += f", then it {differs}; that is normal for a rounded embedding"
    # A good copy has at least about three tokens in common with the model.
    good = "the copy is good" if at >= 12 else "the copy is whole, but try it before you use it"
    return f"{good}: all else is the model's, byte for byte, and {found}"


def _use(out: str, options: argparse.Namespace, state: State) -> str:
    flags = _flags(out, options.engine, state)
    use = f'to use it: {command("run")}{flags} -p "Your prompt here"'
    return f"{use}\nto measure it, and settings for it: {command('bench')}{flags}"


def _flags(path: str, engine: str | None, state: State) -> str:
    """Return the flags with which a run has that engine and model, where it needs any."""
    flags = f" --engine {word(engine)}" if engine else ""
    is_needless = prepare.runs_unnamed(path, _located(engine), state)
    return flags if is_needless else f"{flags} -m {word(path)}"


def _get(options: argparse.Namespace, state: State) -> int:
    model = find.know(get_model(options.repo, options.file, prepare.engine_folders()), state)
    run = f'{command("run")}{_flags(model.path, None, state)} -p "Your prompt here"'
    lines = [*_lines(model, state), "", "To run this file:", run]
    print(fitted("\n".join(lines)))
    return 0


def _located(engine: str | None) -> Location | None:
    """Return the engine of a run; None if none is named and there is none."""
    try:
        return locate_all(engine, os.environ, prepare.engine_folders())[0]
    except MissingError:
        if engine:
            raise
        return None


def _show(options: argparse.Namespace, state: State) -> int:
    choice = prepare.find_model(options.file, _located(options.engine), state)
    say(choice.note)
    model = choice.model
    read, gain = types.bytes_per_token(model.parts), types.possible_gain(model)
    facts = {**to_json(model), "bytes_per_token": read, "possible_gain": gain}
    lines = "\n".join(_lines(model, state))
    print(json.dumps(facts, indent=2) if options.json else fitted(lines))
    return 0


def _lines(model: ModelFile, state: State) -> list[str]:
    context = f"context of {model.context_length} tokens" if model.context_length else None
    size, count = size_text(model.size), len(part_paths(model.path))
    size = f"{size} in {count} files" if count > 1 else size
    facts = (model.name, model.architecture, model.quantization, context, size)
    lines = [model.path, ", ".join(filter(None, facts)), "", aligned(_rows(model), columns())]
    notes = _notes(model, state)
    return [*lines, "", *notes] if notes else lines


def _notes(model: ModelFile, state: State) -> list[str]:
    """Return sentences about what wastes bytes or time, and about copies; the advice is last."""
    notes, kind = [prepare.slow_drive(model.path, Root(), wsl=True)], types.slim_type(model)
    if original := find.original_of(model, state):
        gain = types.bound(original.parts, model.parts)
        faster = f": up to ×{gain:.2f} as fast as that" if gain else ""
        notes.append(f"made from {original.path}{faster}")
        if find.is_older(model.path, original.path):
            check = f"{command('model')} slim {word(original.path)}"
            notes.append(f"it is older than the original, so check it: {check}")
    if types.is_wide(model):
        notes.append(types.gain_text(model))
    # A token reads all of the output matrix, but of a token embedding beside it a single row.
    rows = [part for part in model.parts if part.type in types.WIDE and part.read != part.size]
    saved = sum(part.size for part in rows) - sum(part.size for part in types.slimmed(rows, kind))
    if saved:
        less = f"{size_text(saved)} less memory"
        notes.append(f"token embedding, one row read per token (in {kind} {less}, not faster)")
    if (saved and model.quantization in TERNARY) or types.is_wide(model):
        notes.append(types.slim_advice(model, find.slim_copies(model, state)))
    return [note for note in notes if note]


def _rows(model: ModelFile) -> list[tuple[str, ...]]:
    """Return a table of the parts: their sizes, and what a token reads of them."""
    total = types.bytes_per_token(model.parts)
    rows = [("part", "type", "weights", "in the file", "read per token")]
    for part in model.parts:
        read = "not known" if part.read is None else size_text(part.read)
        share = f" ({100 * part.read / total:.0f} %)" if total and part.read is not None else ""
        rows.append((part.name, part.type, f"{part.weights:,}", size_text(part.size), read + share))
    weights = sum(part.weights for part in model.parts)
    size = sum(part.size for part in model.parts)
    read = "not known" if total is None else size_text(total)
    return [*rows, ("all", "", f"{weights:,}", size_text(size), read)]
