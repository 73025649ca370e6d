"""``python3 -m bitnet_tuning profile``: list, show, remove, export and import saved tunings."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import suppress

from bitnet_tuning.cli.arguments import Parser, add_commands, add_engine, add_root, run_command
from bitnet_tuning.console import aligned, command, counted, say, size_text, text_width, times
from bitnet_tuning.engine.builds import verdict_words
from bitnet_tuning.engine.find import locate_all
from bitnet_tuning.errors import MissingError, TuningError, UsageError
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.plan import profile as profiles
from bitnet_tuning.plan.profile import Estimate, ModelKey, Profile
from bitnet_tuning.plan.setting import describe
from bitnet_tuning.prepare import engine_folders, find_engine, find_model
from bitnet_tuning.store.state import State

_TUNE = f"to measure one: {command('bench')}"


def run(arguments: list[str]) -> int:
    return run_command(make_parser(), arguments, "list")


def make_parser() -> Parser:
    about = "Manage profiles: settings measured to be fastest, which runs use automatically."
    parser = Parser("profile", "[COMMAND] [options]", "", "show ID", description=about)
    command = add_commands(parser, "list")
    its_id = "id of the profile, or the beginning of the id"
    root = "compare with the machine whose sys and proc are in this folder (default: /)"
    listing = command("list", _list, "List all profiles, and whether they hold on this machine.")
    listing.add_argument("--json", action="store_true", help="print JSON")
    add_root(listing, root)
    showing = command("show", _show, "Print everything that is saved in one profile.")
    showing.add_argument("id", metavar="ID", help=its_id)
    add_root(showing, root)
    removal = command("remove", _remove, "Delete profiles.")
    removal.add_argument("ids", metavar="ID", nargs="+", help=its_id)
    export = command("export", _export, "Print a profile as JSON, for other machines of this kind.")
    export.add_argument("id", metavar="ID", help=its_id)
    adoption = command("import", _import, "Save a profile from another machine of this kind.")
    adoption.add_argument("file", metavar="FILE", help="file that `export` wrote")
    add_engine(adoption)
    add_root(adoption, "import for the machine whose sys and proc are in this folder (default: /)")
    return parser


def _list(options: argparse.Namespace, state: State) -> int:
    host, every = read_host(options.root), profiles.stored_profiles(state)
    found = [(profile, _changes(profile, host, state)) for profile in every]
    if options.json:
        facts = [
            {"id": each.id, "valid": not changes, "changed": changes, **profiles.to_document(each)}
            for each, changes in found
        ]
        print(json.dumps(facts, indent=2))
    elif found:
        blocks = []
        for profile, changes in found:
            rows = [(f"  {name}", text) for name, text in _summary(profile, changes).items()]
            start = f"{profile.id}  measured on {profile.day}"
            blocks.append(f"{start}\n{aligned(rows, text_width())}")
        print("\n\n".join(blocks))
    else:
        say(f"there is no profile in {state.folder}; {_TUNE}")
    return 0


def _show(options: argparse.Namespace, state: State) -> int:
    profile = _named(options.id, state)
    changes = _changes(profile, read_host(options.root), state)
    evidence, objective = profile.evidence, profile.evidence.objective
    host = {
        f"host {name}": profiles.in_words(fact) for name, fact in profile.host._asdict().items()
    }
    speeds = (f"{phase} {speed:.1f} tokens/s" for phase, speed in evidence.speeds.items() if speed)
    facts = {
        "id": profile.id,
        "created": profile.created,
        **_summary(profile, changes),
        "over the default": _ratio(evidence.ratio),
        "over upstream": _ratio(evidence.against_upstream),
        "verdict": verdict_words(evidence.verdict),
        "objective": f"{objective.name}, prompt of {objective.n_prompt} tokens, "
        f"answer of {objective.n_gen}",
        "speeds": ", ".join(speeds) or "-",
        "samples": evidence.results or "-",
        "budget": "-" if evidence.budget is None else f"{evidence.budget:g} s",
        "engine version": profile.engine.version or "unknown",
        "model size": size_text(profile.model.size),
        **host,
    }
    print(aligned([*facts.items()]))
    return 0


def _changes(profile: Profile, host: Host, state: State) -> list[str]:
    """Return what changed since the tuning, also in the model that runs without -m."""
    changes = profiles.what_changed(profile, host)
    with suppress(TuningError):
        engine = locate_all(profile.engine.path, os.environ, engine_folders())[0]
        model = find_model(None, engine, state).model
        if ModelKey.of(model)._replace(size=profile.model.size) == profile.model:
            changes += profiles.model_changes(profile, model)
    return changes


def _named(start: str, state: State) -> Profile:
    """Return the profile whose id begins with ``start``. Raise TuningError unless it is one."""
    every = profiles.stored_profiles(state)
    found = [profile for profile in every if start and profile.id.startswith(start)]
    if len(found) == 1:
        return found[0]
    ids = ", ".join(profile.id for profile in found or every)
    if found:
        raise UsageError(f"several ids begin with '{start}': {ids}", "give more of the id")
    remedy = f"the ids are: {ids}" if ids else f"there is no profile at all; {_TUNE}"
    raise MissingError(f"there is no profile '{start}'", remedy)


def _remove(options: argparse.Namespace, state: State) -> int:
    for profile in [_named(each, state) for each in options.ids]:
        profiles.remove(state, profile)
        print(f"removed {_in_a_line(profile)}")
    return 0


def _export(options: argparse.Namespace, state: State) -> int:
    print(json.dumps(profiles.to_document(_named(options.id, state)), indent=2))
    return 0


def _import(options: argparse.Namespace, state: State) -> int:
    profile = profiles.read_profile(options.file)
    engine = find_engine(options.engine, state)
    bound = profiles.bound_to(profile, read_host(options.root), profiles.engine_key(engine))
    if profiles.store(state, bound) is None:
        raise TuningError("the profile could not be saved", state.warning or "")
    print(f"imported {_in_a_line(bound)}")
    return 0


def _in_a_line(profile: Profile) -> str:
    return f"{profile.id}, measured on {profile.day}: {_setting(profile)}"


def _summary(profile: Profile, changes: list[str]) -> dict[str, str]:
    model = profile.model
    named = (model.name, model.architecture, model.quantization)
    return {
        "state": f"out of date: {'; '.join(changes)}" if changes else "valid",
        "setting": _setting(profile),
        "over the default": _ratio(profile.evidence.ratio) if profile.setting else "-",
        "engine": profile.engine.path,
        "model": " ".join(part for part in named if part),
    }


def _setting(profile: Profile) -> str:
    return describe(profile.setting) if profile.setting else "the default (no setting beat it)"


def _ratio(ratio: Estimate | None) -> str:
    return f"{times(*ratio)}, {counted(ratio.count, 'round')}" if ratio else "-"
