"""Choose between several builds of an engine, and store the results of comparisons."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from bitnet_tuning.console import times
from bitnet_tuning.engine.find import Engine, checkout_of
from bitnet_tuning.engine.instruction_sets import lacks_kernels, matching
from bitnet_tuning.engine.known import BUILD, check_isa, check_pair
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.host import Host, fingerprint
from bitnet_tuning.model.types import I2_S, ModelFile
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.codec import Moment, Positive, Text
from bitnet_tuning.store.state import State, change_of, digest, identity

Refused = tuple[tuple[str, str], ...]
"""Paths of builds, and why each cannot be used."""

FASTER, SLOWER, EQUAL, OPEN = "faster", "slower", "equal", "not decided"
"""Verdicts of a comparison as they are stored; ``verdict_words`` turns them into words."""
OUT = "out"
"""Beginning of the verdict on a build that failed in a comparison: ``out: wrong words``."""


def choose_build(
    engines: Iterable[Engine], host: Host, model: ModelFile | None, measured: ComparedBuilds | None
) -> Engine:
    """Return the usable build that was measured fastest, else the one that uses most of the CPU's
    instruction sets, with the reason added to its location's source. ``measured`` is what
    ``load_fastest`` returns; a ``model`` of None means i2_s. Raise UnsupportedError without one."""
    every = tuple(engines)
    runnable, refused = usable(every, host, model)
    if not runnable:
        reasons = "; ".join(f"{path} {what}" for path, what in refused)
        cause = f"none of the builds can be used here: {reasons}"
        raise UnsupportedError(cause, f"{BUILD}, or name another engine with --engine")
    # Leave out builds without kernels for i2_s, unless there are no others.
    quantization = model.quantization if model else I2_S
    able = tuple(each for each in runnable if not lacks_kernels(each, quantization))
    if not any(each.isa for each in able):
        able = runnable
    winner, reason = _best(able, host, measured)
    lack = "is built without AVX2 and NEON, which i2_s needs"
    weak = ((each.path, lack) for each in runnable if each not in able)
    left_out = (f"{build_name(path)} {what}" for path, what in (*refused, *weak))
    chosen = f"{winner.location.source}; chosen of {len(every)} builds: {reason}"
    source = "; ".join((chosen, *left_out))
    return winner._replace(location=winner.location._replace(source=source))


def build_name(path: str) -> str:
    """Return the name to show for a build: ``build-gcc`` for /x/build-gcc/bin/llama-cli."""
    parts = path.replace("\\", "/").split("/")[:-1]
    if parts[-1:] == ["Release"]:
        parts.pop()
    return parts[-2] if parts[-1:] == ["bin"] and len(parts) > 1 else path


def version_words(version: str) -> str:
    """Return a version as the rest of a phrase, "" for ``0 (unknown)``, built without git."""
    said = "" if version == "0 (unknown)" else version.replace(" (build 0, commit unknown)", "")
    said = said.removeprefix("embedded ").replace(" (unknown)", "")
    return said and f", version {said}"


def usable(
    engines: Iterable[Engine], host: Host, model: ModelFile | None
) -> tuple[tuple[Engine, ...], Refused]:
    """Return the builds that can run the model on this CPU, and path and reason of each other."""
    fine, refused = [], []
    for engine in engines:
        try:
            check_isa(engine, host)
            if model is not None:
                check_pair(engine, model)
            fine.append(engine)
        except UnsupportedError as error:
            refused.append((engine.path, error.cause.removeprefix(f"{engine.path} ")))
    return tuple(fine), tuple(refused)


def _best(
    engines: tuple[Engine, ...], host: Host, measured: ComparedBuilds | None
) -> tuple[Engine, str]:
    """Return the best build and why it is chosen, as a phrase."""
    builds = measured.builds if measured else {}
    known = {each.path: builds[each.path] for each in engines if each.path in builds}
    faster = [each for each in engines if each.path in known and known[each.path].verdict == FASTER]
    if measured and faster:
        winner = max(faster, key=lambda each: known[each.path].ratio or ())
        new = [build_name(each.path) for each in engines if each.path not in known]
        unknown = f" (new or changed since then: {', '.join(new)})" if new else ""
        return winner, f"the one that was measured fastest: {measured.claim(winner.path)}{unknown}"
    worse = {path: each for path, each in known.items() if each.verdict.startswith((SLOWER, OUT))}
    left = tuple(each for each in engines if each.path not in worse)
    winner, reason = _widest(left or engines, host)
    if len(left) == 1 and worse:
        reason = "the only one not measured to be slower or to fail"
    if not worse:
        return winner, f"{reason}; none was measured to be faster" if known else reason
    results = (f"{build_name(path)}: {each.verdict} when measured" for path, each in worse.items())
    return winner, f"{reason} ({'; '.join(results)})"


def _widest(engines: tuple[Engine, ...], host: Host) -> tuple[Engine, str]:
    """Return the build that uses most of the CPU's instruction sets, the first of equals."""
    if len(engines) == 1:
        return engines[0], "the only usable one"
    used = [matching(each.isa, host.isa) for each in engines]
    counts = [len(names) for names in used]
    first = counts.index(max(counts))
    if len(set(counts)) == 1:
        return engines[0], "the first one, as all fit this CPU equally well"
    return engines[first], f"the one that fits this CPU best ({', '.join(used[first])})"


KIND = "builds"


class BuildResult(NamedTuple):
    """The result of a comparison for one build, as it is stored."""

    verdict: Text
    ratio: tuple[Positive, Positive, Positive] | None
    """Median ratio to the reference build and its interval; None for the reference build itself
    and for a build that was not measured."""
    files: tuple[tuple[Text, int, int], ...] = ()
    """Path, size in bytes and time of change of each of the build's files."""


class ComparedBuilds(NamedTuple):
    """The result of a comparison of builds, as it is stored."""

    created: Moment
    objective: Text
    reference: Text
    """Path of the build that all others were compared with."""
    builds: dict[Text, BuildResult]
    """Results by the path of the program."""

    def claim(self, path: str) -> str:
        """Return what a faster build gained, as a phrase for the plan's reasons."""
        ratio = self.builds[path].ratio or (1.0, 1.0, 1.0)
        what = {"pp": ", for prompts", "request": ", for whole requests"}.get(self.objective, "")
        over, when = build_name(self.reference), f"measured on {self.created[:10]}"
        return f"{times(*ratio)} over {over}{what}, {when}"


def store_fastest(
    state: State, host: Host, engines: Sequence[Engine], model: ModelFile, found: ComparedBuilds
) -> str | None:
    """Store the results for these builds as they are now. Return the file, None on failure."""
    builds = {
        engine.path: found.builds[engine.path]._replace(files=tuple(map(identity, engine.files)))
        for engine in engines
        if engine.path in found.builds
    }
    key = _key(host, engines[0], model)
    saved = state.store(KIND, key, found._replace(builds=builds))
    return state.path(KIND, digest(key)) if saved else None


def load_fastest(
    state: State, host: Host, engines: Sequence[Engine], model: ModelFile
) -> ComparedBuilds | None:
    """Return the stored results of the builds that have not changed since then; None if the
    reference build has changed, since all ratios are against it."""
    found = state.load(KIND, _key(host, engines[0], model), ComparedBuilds)
    if found is None:
        return None
    same = {each.path: found.builds[each.path] for each in engines if _is_same(found, each)}
    return found._replace(builds=same) if found.reference in same else None


def _key(host: Host, engine: Engine, model: ModelFile) -> str:
    parts = (checkout_of(engine.path), model.architecture, model.quantization, model.size)
    return json.dumps([*parts, fingerprint(host)._asdict()], sort_keys=True)


def _is_same(found: ComparedBuilds, engine: Engine) -> bool:
    files = found.builds[engine.path].files if engine.path in found.builds else ()
    is_same = [path for path, *_ in files] == list(engine.files)
    return bool(files) and is_same and not any(change_of(*file) for file in files)


def verdict_words(stored: str, resolution: float = 0.02) -> str:
    """Return the words in which a stored verdict is shown."""
    # Until 0.2, "no difference shown" stood for both equal and not decided.
    words = {EQUAL: f"equal within {100 * resolution:g} %", "no difference shown": OPEN}
    return words.get(stored, stored)
