"""``python3 -m bitnet_tuning profile``: what tunings found, and where it is used."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from typing import Any

from bitnet_tuning.cli.arguments import Parser, add_engine, add_model, add_root
from bitnet_tuning.console import GIBIBYTE, aligned, counted, say, times
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

_TUNE = "python3 benchmark_optimized.py makes one"


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
    parser = Parser(prog="bitnet_tuning profile", description="Measured winners, remembered.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, help="list if left out")

    def command(name: str, action: Any, what: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
        added.set_defaults(action=action)
        return added

    listing = command("list", _list, "All profiles, and whether they are used here.")
    _add_facts(listing)
    showing = command("show", _show, "Everything that is known of one.")
    showing.add_argument("id", metavar="ID", help="its id or the start of it, or `current`")
    _add_facts(showing)
    add_engine(showing)
    add_model(showing)
    removal = command("remove", _remove, "Forget one, or all.")
    removal.add_argument("id", metavar="ID", nargs="?", help="its id or the start of it")
    removal.add_argument("--all", action="store_true", help="every one")
    export = command("export", _export, "Write one as JSON, for another machine of this kind.")
    export.add_argument("id", metavar="ID", help="its id or the start of it")
    export.add_argument("-o", "--output", metavar="FILE", help="instead of standard output")
    adoption = command("import", _import, "Use one from another machine of this kind.")
    adoption.add_argument("file", metavar="FILE", help="what export wrote")
    add_engine(adoption)
    add_root(adoption, "take this folder's machine for the host")
    return parser


def _add_facts(parser: argparse.ArgumentParser) -> None:
    add_root(parser, "compare with this folder's machine")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _list(options: argparse.Namespace, state: State) -> int:
    host = read_host(options.root)
    found = [(profile, what_changed(profile, host)) for profile in stored_profiles(state)]
    if options.json:
        print(json.dumps([_facts(*each) for each in found], indent=2))
    elif found:
        print(aligned([HEADER, *(row(*each) for each in found)]))
    else:
        say(f"no profile in {state.folder}; {_TUNE}")
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
        print(details(profile, changes))
    return 0


def _current(options: argparse.Namespace, state: State, host: Host) -> Profile:
    """Return the profile that a run would use. Raise MissingError that says why there is none."""
    engine, choice = find_pair(options.engine, options.model, state)
    profile = load(state, host, engine, choice.model)
    if profile is not None:
        return profile
    stale = find_stale(state, host, engine, choice.model)
    reasons = [f"{each.profile.id} is out of date: {'; '.join(each.changes)}" for each in stale]
    what = f"no profile for {engine.path} with {choice.model.path} here"
    raise MissingError(". ".join([what, *reasons]), _TUNE)


def _named(start: str, state: State) -> Profile:
    """Return the profile whose id begins so. Raise MissingError, or UsageError for several."""
    every = stored_profiles(state)
    found = [profile for profile in every if start and profile.id.startswith(start)]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(profile.id for profile in found or every)
    if found:
        raise UsageError(f"{start!r} is the start of several ids: {ids}", "give more of it")
    raise MissingError(f"no profile {start!r}", f"there are: {ids}" if ids else f"none; {_TUNE}")


def _remove(options: argparse.Namespace, state: State) -> int:
    if options.all == (options.id is not None):
        raise UsageError("either an ID or --all", "`profile list` shows the ids")
    chosen = stored_profiles(state) if options.all else [_named(options.id, state)]
    gone = remove(state, [profile.id for profile in chosen])
    for profile in chosen:
        if profile.id in gone:
            print(f"removed {' '.join(row(profile)[:-1])}")
    if not chosen:
        say("there is no profile to remove")
    return 0


def _export(options: argparse.Namespace, state: State) -> int:
    text = json.dumps(to_document(_named(options.id, state)), indent=2)
    if options.output is None:
        print(text)
        return 0
    write_atomically(os.path.abspath(options.output), f"{text}\n".encode())
    say(f"written to {options.output}")
    return 0


def _import(options: argparse.Namespace, state: State) -> int:
    profile = read_profile(options.file)
    engine = find_engine(options.engine, state)
    bound = bound_to(profile, read_host(options.root), engine_key(engine))
    if store(state, bound) is None:
        raise TuningError("the profile could not be kept", state.warning or "")
    print(f"imported {' '.join(row(bound)[:-1])}")
    return 0


HEADER = ("ID", "DATE", "ENGINE", "MODEL", "SETTING", "OVER THE DEFAULT", "STATE")


def row(profile: Profile, changes: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the fields of ``HEADER``."""
    return (
        profile.id,
        profile.day,
        profile.engine.path,
        _model(profile),
        _setting(profile),
        _ratio(profile.evidence.ratio) if profile.setting else "-",
        f"stale: {'; '.join(changes)}" if changes else "valid",
    )


def details(profile: Profile, changes: Sequence[str]) -> str:
    """Return a line per fact."""
    evidence, objective = profile.evidence, profile.evidence.objective
    speeds = (f"{phase} {speed:.1f} tokens/s" for phase, speed in evidence.speeds.items() if speed)
    facts = {
        "id": profile.id,
        "state": "; ".join(["stale", *changes]) if changes else "valid",
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
        "engine": f"{profile.engine.path} ({profile.engine.version or 'version not known'})",
        "model": f"{_model(profile)}, {profile.model.size / GIBIBYTE:.2f} GiB",
        **{f"host {name}": in_words(value) for name, value in profile.host._asdict().items()},
    }
    return aligned([*facts.items()])


def _setting(profile: Profile) -> str:
    return describe(profile.setting) if profile.setting else "the default stays"


def _model(profile: Profile) -> str:
    model = profile.model
    return " ".join(part for part in (model.name, model.architecture, model.quantization) if part)


def _ratio(ratio: Estimate | None, rounds: bool = False) -> str:
    if ratio is None:
        return "-"
    return f"{times(*ratio)}, {counted(ratio.count, 'round')}" if rounds else times(*ratio)
