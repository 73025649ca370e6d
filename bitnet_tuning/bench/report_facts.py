"""What a report says besides speeds: certainty, limits, method, machine; pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_tuning.bench import stats
from bitnet_tuning.bench.asks import DEFAULT
from bitnet_tuning.bench.document import Part, Results
from bitnet_tuning.bench.markup import definitions, paragraph
from bitnet_tuning.bench.rounds import PP, TG
from bitnet_tuning.bench.summary import TIMES, TO, digits, noise_floor
from bitnet_tuning.cpulist import format_list

GB, GIBIBYTE, MEBIBYTE = 10**9, 1 << 30, 1 << 20


def certainty(results: Results) -> str:
    """How sure the answer is, in a sentence."""
    decision = results.decision
    if decision is None:
        return floor_words(noise_floor(results))
    found = decision.estimate
    floor = floor_words(decision.floor)
    if decision.winner == DEFAULT:
        return floor
    sure = f"{decision.reason} " if decision.reason else ""
    counted = "" if found is None else f"Its interval rests on {found.count} rounds. "
    kept = results.profile
    stored = "Later runs use it by themselves. " if kept is not None and kept.stored else ""
    return f"{sure}{counted}{stored}{floor}"


def floor_words(floor: float | None) -> str:
    if floor is None:
        return "The noise floor is not known, so that nothing counts as a difference."
    return (
        f"Noise floor: the default differs from itself by up to {TIMES}{floor:.2f} in the median "
        "of as many rounds; nothing within that counts as a difference."
    )


def limits(results: Results) -> Iterator[str]:
    """The memory's bandwidth, how much of it is used, and the energy."""
    bandwidth = results.bandwidth.facts
    rate = _number(bandwidth, "median")
    threads = _number(bandwidth, "threads")
    yield definitions(
        (
            ("Memory, read", _with(rate, GB, "GB/s")),
            ("with threads", "" if threads is None else f"{threads:g}"),
        )
    )
    for what, part in (("Generation reads", results.roof), ("Energy:", results.energy)):
        words = (part.facts or {}).get("words")
        yield "" if words is None else paragraph(f"{what} {words}.")
    for part in (results.bandwidth, results.roof, results.energy):
        yield _reason(part)


def _reason(part: Part) -> str:
    return "" if part.reason is None else paragraph(f"Not known: {part.reason}.", "muted")


def _with(value: float | None, unit: float, name: str) -> str:
    return "" if value is None else f"{digits(value / unit)} {name}"


def _number(facts: Mapping[str, Any] | None, *path: str) -> float | None:
    """A number at a path; None where there is none."""
    place: Any = facts
    for name in path:
        place = place.get(name) if isinstance(place, Mapping) else None
    return place if isinstance(place, (int, float)) and not isinstance(place, bool) else None


def method(results: Results) -> Iterator[str]:
    """How the figures came about."""
    sizes, options = results.options.sizes, results.options
    runs = sum(len(each.runs) for each in results.rounds)
    spent = results.rounds[-1].elapsed if results.rounds else 0.0
    yield paragraph(
        "Configurations were run in rounds, each after the other within a round and in "
        "another order from round to round, so that what disturbs the machine meets all of "
        "them. Ratios compare runs of the same round; their intervals are bootstrapped. A "
        "configuration that looked good was measured again, against the default, before it "
        "could win."
    )
    noise = stats.noise(results.rounds, DEFAULT, options.objective)
    yield definitions(
        (
            ("Rounds", len(results.rounds)),
            ("Runs", runs),
            ("Time spent", f"{spent:.0f} s of {options.budget:g} s"),
            ("To be fast", _objective(results)),
            ("One run", "" if sizes is None else _sizes_words(sizes)),
            ("Default against itself", "" if noise is None else _noise_words(noise)),
        )
    )


def _sizes_words(sizes: Any) -> str:
    repeated = "once" if sizes.repetitions == 1 else f"{sizes.repetitions} times"
    return f"{sizes.n_prompt} tokens of prompt, {sizes.n_gen} generated, {repeated}"


def _noise_words(noise: stats.Estimate) -> str:
    return f"{TIMES}{noise.low:.2f} to {TIMES}{noise.high:.2f}, {noise.count} rounds"


def _objective(results: Results) -> str:
    wanted = results.options.objective
    if wanted.name == TG:
        return "token generation"
    if wanted.name == PP:
        return "prompt processing"
    return f"requests of {wanted.n_prompt} tokens with answers of {wanted.n_gen}"


def machine(results: Results) -> Iterator[str]:
    """The host, and its state around the measurement."""
    host, hybrid = results.host, results.host.hybrid
    before, during = results.conditions.before, results.conditions.meanwhile
    kinds = (
        f" ({hybrid.performance_cores} performance, {hybrid.efficiency_cores} efficiency)"
        if hybrid
        else ""
    )
    usable = f"{len(host.allowed_cpus)} of {len(host.logical_cpus)}"
    yield definitions(
        (
            ("Processor", host.brand or host.vendor),
            ("Physical cores", f"{host.physical_cores}{kinds}"),
            ("Logical CPUs that may be used", f"{usable} ({format_list(host.allowed_cpus)})"),
            ("CPU quota", "" if host.cpu_quota is None else f"{host.cpu_quota:g} CPUs"),
            ("NUMA nodes", len(host.numa_nodes)),
            ("Memory", _with(host.memory_total, GIBIBYTE, "GiB")),
            ("Memory available", _with(host.memory_available, GIBIBYTE, "GiB")),
            ("Governor", host.governor),
            ("WSL", host.wsl),
            ("Other load before", _with(_number(before, "other_load_cpus"), 1, "CPUs")),
            ("Other load meanwhile", _with(_number(during, "other_load_cpus"), 1, "CPUs")),
            ("Clock before and after", _both(results, "MHz", "clock", "mean_mhz")),
            ("Temperature before and after", _both(results, "\u00b0C", "temperature", "celsius")),
        )
    )


def _both(results: Results, unit: str, *path: str) -> str:
    seen = [_number(facts, *path) for facts in results.conditions[:2]]
    known = [f"{value:.0f}" for value in seen if value is not None]
    return f"{f' {TO} '.join(known)} {unit}" if known else ""


def subjects(results: Results) -> Iterator[str]:
    """The engine and the model."""
    engine, model = results.engine, results.model
    yield definitions(
        (
            ("Engine", engine.path),
            ("Version", engine.version),
            ("Commit", engine.git_commit),
            ("OpenMP", engine.openmp),
            ("Instruction sets", " ".join(engine.isa)),
            ("Measured with", " ".join(engine.bench) if engine.bench else "the cli's own timings"),
            ("Model", model.path),
            ("Architecture", model.architecture),
            ("Quantization", model.quantization),
            ("Size", _with(model.size, MEBIBYTE, "MiB")),
            ("Read per token", _with(model.bytes_per_token, MEBIBYTE, "MiB")),
        )
    )
