"""Two benchmarks side by side, such as before and after an update; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import Rounds
from bitnet_tuning.bench.results import EngineFacts, Results
from bitnet_tuning.bench.summary import TIMES, noise_floor, times
from bitnet_tuning.plan.profile import PP, TG, Estimate, Objective


class Difference(NamedTuple):
    """Something that is not the same in both, other than speeds."""

    what: str
    a: str
    b: str


class Pair(NamedTuple):
    """One setting, measured in both."""

    name: str
    """In the first document; the second may call it differently."""
    other: str
    phase: str
    ratio: Estimate
    """Speed in the second over that in the first. ``count`` is the runs of the shorter."""
    verdict: str
    """Of the second against the first."""


class Comparison(NamedTuple):
    """B against A."""

    differences: tuple[Difference, ...]
    floors: Mapping[str, float | None]
    """By phase the larger of both noise floors; None where one has none."""
    pairs: tuple[Pair, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]


def compare(a: Results, b: Results) -> Comparison:
    """Settings count as the same when their values are, whatever their names."""
    floors = {phase: _floor((a, b), phase) for phase in (PP, TG)}
    same = tuple(_same(a, b))
    return Comparison(
        differences=tuple(each for each in _differences(a, b) if each.a != each.b),
        floors=floors,
        pairs=tuple(pair for names in same for pair in _pairs(a, b, names, floors)),
        only_a=_without(a, {name for name, _ in same}),
        only_b=_without(b, {name for _, name in same}),
    )


def _floor(both: tuple[Results, Results], phase: str) -> float | None:
    """A phase that was measured too seldom has the floor of what was to be fast."""
    found = []
    for results in both:
        floor = Rounds(Objective(phase), results.rounds).floor()
        found.append(floor or noise_floor(results))
    known = [floor for floor in found if floor is not None]
    return max(known) if len(known) == len(found) else None


def _same(a: Results, b: Results) -> Iterator[tuple[str, str]]:
    """Names of the settings of equal values. Two names for the same values in one document
    go with the same name in the other where they can."""
    names = {setting: name for name, setting in reversed(tuple(b.settings.items()))}
    for name, setting in a.settings.items():
        if b.settings.get(name) == setting:
            yield name, name
        elif setting in names:
            yield name, names[setting]


def _without(results: Results, seen: set[str]) -> tuple[str, ...]:
    return tuple(name for name in results.settings if name not in seen)


def _pairs(
    a: Results, b: Results, names: tuple[str, str], floors: Mapping[str, float | None]
) -> Iterator[Pair]:
    before, after = a.measured.speeds(names[0]), b.measured.speeds(names[1])
    for phase in (PP, TG):
        if before[phase] and after[phase]:
            ratio = statistics.unpaired(after[phase], before[phase])
            yield Pair(*names, phase, ratio, statistics.verdict(ratio, floors[phase]))


def _differences(a: Results, b: Results) -> Iterator[Difference]:
    yield Difference("machine", _machine(a), _machine(b))
    yield Difference("CPUs that may be used", _cpus(a), _cpus(b))
    yield Difference("governor", str(a.host.governor), str(b.host.governor))
    yield Difference("engine", _engine(a), _engine(b))
    yield Difference("engine's files", *_changed_files(a.engine, b.engine))
    yield Difference("engine's commit", str(a.engine.git_commit), str(b.engine.git_commit))
    yield Difference("model", _model(a), _model(b))
    yield Difference("program", _program(a), _program(b))
    yield Difference("tokens measured", _sizes(a), _sizes(b))
    yield Difference("warnings", _warnings(a), _warnings(b))


def _machine(results: Results) -> str:
    host = results.host
    return f"{host.brand or host.vendor or 'unknown'}, {host.physical_cores} cores"


def _cpus(results: Results) -> str:
    host = results.host
    quota = "" if host.cpu_quota is None else f", {host.cpu_quota:g} by quota"
    return f"{len(host.allowed_cpus)} of {len(host.logical_cpus)}{quota}"


def _engine(results: Results) -> str:
    engine = results.engine
    return f"{engine.path}, version {engine.version}, OpenMP: {engine.openmp or 'unknown'}"


def _changed_files(a: EngineFacts, b: EngineFacts) -> tuple[str, str]:
    """Sizes of what is another file in the second; equal texts where all are the same."""
    one, two = ({file.path: file for file in engine.files} for engine in (a, b))
    changed = sorted(path for path in one.keys() | two if one.get(path) != two.get(path))
    texts = [
        ", ".join(
            f"{path}: {files[path].size} bytes of {files[path].modified // 10**9}"
            for path in changed
            if path in files
        )
        for files in (one, two)
    ]
    return texts[0] or "none", texts[1] or "none"


def _model(results: Results) -> str:
    model = results.model
    return f"{model.path}, {model.quantization}, {model.size} bytes"


def _program(results: Results) -> str:
    program = results.program
    return f"{program.name} {program.version}, commit {program.git_commit or 'unknown'}"


def _sizes(results: Results) -> str:
    sizes = results.options.sizes
    if sizes is None:
        return "none"
    return f"{sizes.n_prompt} of prompt, {sizes.n_gen} generated, {sizes.repetitions} samples"


def _warnings(results: Results) -> str:
    return "; ".join(results.warnings) or "none"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """``ratio`` is B over A, with its interval."""
    return {
        "differences": [each._asdict() for each in comparison.differences],
        "floors": dict(comparison.floors),
        "settings": [
            {**pair._asdict(), "ratio": pair.ratio._asdict()} for pair in comparison.pairs
        ],
        "only_a": list(comparison.only_a),
        "only_b": list(comparison.only_b),
    }


def as_text(comparison: Comparison, names: tuple[str, str] = ("A", "B")) -> str:
    """For a terminal: what differs, the ratios of ``names``, what cannot be compared."""
    a, b = names
    lines: list[str] = []
    for each in comparison.differences:
        lines += [f"{each.what} differs:", f"  A  {each.a}", f"  B  {each.b}"]
    lines += [f"Speed of B ({b}) over A ({a}):"]
    lines += _pair_lines(comparison.pairs) or ["  no setting was measured in both"]
    lines += [
        f"  noise floor of {phase}: {_floor_words(comparison.floors[phase])}"
        for phase in _phases(comparison)
    ]
    for name, only in ((a, comparison.only_a), (b, comparison.only_b)):
        lines += [f"only in {name}: {', '.join(only)}"] if only else []
    return "\n".join(lines)


def _floor_words(floor: float | None) -> str:
    if floor is None:
        return "unknown, so that nothing counts as a difference"
    return f"{TIMES}{floor:.2f}"


def _phases(comparison: Comparison) -> list[str]:
    seen = {pair.phase for pair in comparison.pairs}
    return [phase for phase in comparison.floors if phase in seen]


def _pair_lines(pairs: tuple[Pair, ...]) -> list[str]:
    width = max((len(_label(pair)) for pair in pairs), default=0)
    return [
        f"  {_label(pair):{width}}  {pair.phase}  {times(pair.ratio)}  {pair.verdict}"
        for pair in pairs
    ]


def _label(pair: Pair) -> str:
    return pair.name if pair.name == pair.other else f"{pair.name} = {pair.other}"
