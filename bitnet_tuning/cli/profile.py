"""``python3 -m bitnet_tuning profile``: list, show, remove, export and import saved tunings."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from bitnet_tuning.cli.arguments import Parser, add_engine, add_model, add_root
from bitnet_tuning.console import aligned, counted, say, size_text, text_width, times
from bitnet_tuning.engine.builds import verdict_words
from bitnet_tuning.errors import MissingError, TuningError, UsageError
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.plan.profile import Estimate, Profile, load
from bitnet_tuning.plan.profiles import (
    bound_to,
    engine_key,
    find_stale,
    in_words,
    read_profile,
    remove,
    store,
    stored_profiles,
    to_document,
    what_changed,
)
from bitnet_tuning.plan.setting import describe
from bitnet_tuning.prepare import find_engine, find_pair
from bitnet_tuning.store.state import State, default_folder, write_atomically

_TUNE = "to measure one: python3 benchmark_optimized.py"


def run(arguments: list[str]) -> int:
    """Run one of the subcommands."""
    options = _parser().parse_args(arguments or ["list"])
    state = State(default_folder(os.environ))
    try:
        code: int = options.action(options, state)
    finally:
        if state.warning:
            say(f"warning: {state.warning}")
    return code


def _parser() -> Parser:
    about = "Manage profiles: settings measured to be fastest, which runs use automatically."
    parser = Parser(prog="python3 -m bitnet_tuning profile", description=about)
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, help="what to do (default: list)"
    )

    def command(name: str, action: Any, what: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
        added.set_defaults(action=action)
        return added

    its_id = "id of the profile, or the beginning of the id"
    listing = command("list", _list, "List all profiles, and whether they hold on this machine.")
    _add_facts(listing)
    showing = command("show", _show, "Print everything that is saved in one profile.")
    showing.add_argument("id", metavar="ID", help=f"{its_id}; `current`: the one that runs use")
    _add_facts(showing)
    add_engine(showing)
    add_model(showing)
    removal = command("remove", _remove, "Delete one profile, or all.")
    removal.add_argument("id", metavar="ID", nargs="?", help=its_id)
    removal.add_argument("--all", action="store_true", help="delete every profile")
    export = command("export", _export, "Write a profile as JSON, for other machines of this kind.")
    export.add_argument("id", metavar="ID", help=its_id)
    export.add_argument(
        "-o", "--output", metavar="FILE", help="file to write (default: standard output)"
    )
    adoption = command("import", _import, "Save a profile from another machine of this kind.")
    adoption.add_argument("file", metavar="FILE", help="file that `export` wrote")
    add_engine(adoption)
    add_root(adoption, "import for the machine whose sys and proc are in this folder (default: /)")
    return parser


def _add_facts(parser: argparse.ArgumentParser) -> None:
    add_root(parser, "compare with the machine whose sys and proc are in this folder (default: /)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _list(options: argparse.Namespace, state: State) -> int:
    host = read_host(options.root)
    found = [(profile, what_changed(profile, host)) for profile in stored_profiles(state)]
    if options.json:
        print(json.dumps([_facts(*each) for each in found], indent=2))
    elif found:
        print("\n\n".join(_overview(*each) for each in found))
    else:
        say(f"there is no profile in {state.folder}; {_TUNE}")
    return 0


def _facts(profile: Profile, changes: list[str]) -> dict[str, Any]:
    state = {"id": profile.id, "valid": not changes, "changed": changes}
    return {**state, **to_document(profile)}


def _show(options: argparse.Namespace, state: State) -> int:
    host = read_host(options.root)
    is_current = options.id == "current"
    profile = _current(options, state, host) if is_current else _named(options.id, state)
    changes = what_changed(profile, host)
    if options.json:
        print(json.dumps(_facts(profile, changes), indent=2))
    else:
        print(_details(profile, changes))
    return 0


def _current(options: argparse.Namespace, state: State, host: Host) -> Profile:
    """Return the profile that a run would use. Raise MissingError, with the reason, for none."""
    engine, choice = find_pair(options.engine, options.model, state)
    profile = load(state, host, engine, choice.model)
    if profile is not None:
        return profile
    stale = find_stale(state, host, engine, choice.model)
    reasons = [f"{each.profile.id} is out of date: {'; '.join(each.changes)}" for each in stale]
    what = f"there is no profile of {engine.path} with {choice.model.path} for this machine"
    raise MissingError(". ".join([what, *reasons]), _TUNE)


def _named(start: str, state: State) -> Profile:
    """Return the profile whose id begins with ``start``. Raise MissingError if there is none,
    UsageError if there are several."""
    every = stored_profiles(state)
    found = [profile for profile in every if start and profile.id.startswith(start)]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(profile.id for profile in found or every)
    if found:
        raise UsageError(f"several ids begin with '{start}': {ids}", "give more of the id")
    remedy = f"the ids are: {ids}" if ids else f"there is no profile at all; {_TUNE}"
    raise MissingError(f"there is no profile '{start}'", remedy)


def _remove(options: argparse.Namespace, state: State) -> int:
    if options.all == (options.id is not None):
        remedy = "for the ids: python3 -m bitnet_tuning profile list"
        raise UsageError("give either an ID or --all", remedy)
    chosen = stored_profiles(state) if options.all else [_named(options.id, state)]
    gone = remove(state, [profile.id for profile in chosen])
    for profile in chosen:
        if profile.id in gone:
            print(f"removed {_in_a_line(profile)}")
    if not chosen:
        say("there is no profile to remove")
    return 0


def _export(options: argparse.Namespace, state: State) -> int:
    text = json.dumps(to_document(_named(options.id, state)), indent=2)
    if options.output is None:
        print(text)
        return 0
    write_atomically(os.path.abspath(options.output), f"{text}\n".encode())
    say(f"wrote {options.output}")
    return 0


def _import(options: argparse.Namespace, state: State) -> int:
    profile = read_profile(options.file)
    engine = find_engine(options.engine, state)
    bound = bound_to(profile, read_host(options.root), engine_key(engine))
    if store(state, bound) is None:
        raise TuningError("the profile could not be saved", state.warning or "")
    print(f"imported {_in_a_line(bound)}")
    return 0


def _in_a_line(profile: Profile) -> str:
    return f"{profile.id}, measured on {profile.day}: {_setting(profile)}"


def _overview(profile: Profile, changes: list[str]) -> str:
    """Return the lines for one profile in the list."""
    facts = {
        "state": _state(changes),
        "setting": _setting(profile),
        "over the default": _ratio(profile.evidence.ratio) if profile.setting else "-",
        "engine": profile.engine.path,
        "model": _model(profile),
    }
    rows = [(f"  {name}", text) for name, text in facts.items()]
    return f"{profile.id}  measured on {profile.day}\n{aligned(rows, text_width())}"


def _details(profile: Profile, changes: list[str]) -> str:
    """Return one line for each fact."""
    evidence, objective = profile.evidence, profile.evidence.objective
    speeds = (f"{phase} {speed:.1f} tokens/s" for phase, speed in evidence.speeds.items() if speed)
    facts = {
        "id": profile.id,
        "state": _state(changes),
        "created": profile.created,
        "setting": _setting(profile),
        "verdict": verdict_words(evidence.verdict),
        "objective": f"{objective.name}, prompt of {objective.n_prompt} tokens, "
        f"answer of {objective.n_gen}",
        "over the default": _ratio(evidence.ratio, rounds=True),
        "noise floor": "-" if evidence.floor is None else f"{evidence.floor:.3f}",
        "over upstream": _ratio(evidence.against_upstream, rounds=True),
        "speeds": ", ".join(speeds) or "-",
        "samples": evidence.results or "-",
        "budget": "-" if evidence.budget is None else f"{evidence.budget:g} s",
        "engine": f"{profile.engine.path} ({profile.engine.version or 'unknown version'})",
        "model": f"{_model(profile)}, {size_text(profile.model.size)}",
        **{f"host {name}": in_words(value) for name, value in profile.host._asdict().items()},
    }
    return aligned([*facts.items()])


def _state(changes: list[str]) -> str:
    return f"out of date: {'; '.join(changes)}" if changes else "valid"


def _setting(profile: Profile) -> str:
    return describe(profile.setting) if profile.setting else "the default (no setting beat it)"


def _model(profile: Profile) -> str:
    model = profile.model
    return " ".join(part for part in (model.name, model.architecture, model.quantization) if part)


def _ratio(ratio: Estimate | None, rounds: bool = False) -> str:
    if ratio is None:
        return "-"
    return f"{times(*ratio)}, {counted(ratio.count, 'round')}" if rounds else times(*ratio)
