"""Evaluate a benchmark: the figures of each setting and the sentences about them. The terminal, the
report, the comparison of two benchmarks and the CSV file only lay them out."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import DEFAULT, FILES, FIXED, PERFORMANCE, UPSTREAM, Judged
from bitnet_tuning.bench.limits import disturbances, limiting
from bitnet_tuning.bench.results import ModelFacts, Results
from bitnet_tuning.console import LEAST_COUNT, counted, duration, size_text, times, word
from bitnet_tuning.engine.builds import FASTER, OPEN, build_name, verdict_words, version_words
from bitnet_tuning.machine.host import Host, HostFacts
from bitnet_tuning.machine.warnings import LOAD, QUOTA, warnings_after
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.openmp import BINDING, THREAD_COUNTS
from bitnet_tuning.plan.profile import PP, REQUEST, TG, Estimate, Objective
from bitnet_tuning.plan.setting import Setting, describe

FAILED = "failed"
WRONG = "wrong output"


class Row(NamedTuple):
    """The figures of one setting, with speeds in tokens/s (see ``Rounds.relative``)."""

    name: str
    words: str
    pp: Estimate | None
    tg: Estimate | None
    """Speeds of the phases; None for another phase than the objective's after a single run, which
    tells nothing beside the default's."""
    requests: Estimate | None
    """Speed in requests/s if the objective is ``request``, else None."""
    cpu: float | None
    """CPU seconds per generated token; None if not known."""
    to_default: Estimate | None
    """Ratio of the objective's speed to the default's, paired by round (see ``Rounds.linked``);
    None for the default itself and if there is none."""
    to_upstream: Estimate | None
    """The same with upstream, from both settings' ratios to the default."""
    rounds: int
    verdict: str
    """Verdict against the default in words, if it is not decided with the time that it would need,
    ``failed: …`` or ``wrong output: …``; empty for the default itself."""
    winner: bool

    @property
    def is_out(self) -> bool:
        """Whether the setting's runs failed or its output is wrong."""
        return self.verdict.startswith((FAILED, WRONG))


class Summary:
    """The evaluation of one benchmark."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.measured = results.measured
        self.winner = DEFAULT if results.decision is None else results.decision.winner

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Winner, default, upstream, then the others by their ratio to the default."""
        decision, places = self.results.decision, {DEFAULT: 1, UPSTREAM: 2}
        rows = [
            Row(
                name=name,
                words=describe(setting),
                pp=self._phase(PP, name),
                tg=self._phase(TG, name),
                requests=self.speeds.get(REQUEST, {}).get(name),
                cpu=self.measured.cpu(name),
                to_default=self.over_default[name],
                to_upstream=self.over_upstream(name),
                rounds=self.measured.count(name),
                verdict=self._verdict(name),
                winner=decision is not None and decision.winner == name,
            )
            for name, setting in self.results.settings.items()
        ]

        def rank(row: Row) -> tuple[int, float]:
            place = 0 if row.winner else places.get(row.name, 3)
            return place, -(row.to_default.median if row.to_default else 0.0)

        return tuple(sorted((row for row in rows if row.rounds or row.is_out), key=rank))

    def _phase(self, phase: str, name: str) -> Estimate | None:
        found = self.speeds[phase].get(name)
        aside = name != DEFAULT and phase not in self.results.options.objective.phases
        return None if found and aside and found.count == 1 else found

    @cached_property
    def speeds(self) -> dict[str, dict[str, Estimate]]:
        """Speeds by goal and setting, which agree with the ratios to the default."""
        goal = self.results.options.objective.name
        ratios = {goal: self.over_default}
        return {each: self.measured.relative(each, ratios.get(each)) for each in {PP, TG, goal}}

    @cached_property
    def over_default(self) -> dict[str, Estimate | None]:
        """The ratio of each setting's speed for the objective to the default's, for the winner that
        of the decision; None for the default itself and without rounds that link the two."""
        decision, names = self.results.decision, self.results.settings
        found = {name: self.measured.linked(name) for name in names if name != DEFAULT}
        if decision is not None and decision.winner != DEFAULT:
            found[decision.winner] = decision.estimate
        return {**found, DEFAULT: None}

    def over_upstream(self, name: str) -> Estimate | None:
        """Return the ratio of a setting's speed to upstream's; None if no rounds link the two."""
        same = Estimate(1, 1, 1, len(self.measured))
        ours = same if name == DEFAULT else self.over_default[name]
        theirs = self.over_default.get(UPSTREAM) if name != UPSTREAM else None
        return statistics.quotient(ours, theirs) if ours and theirs else None

    def _verdict(self, name: str) -> str:
        decision, problem = self.results.decision, self.problem(name)
        if problem is not None or name == DEFAULT:
            return problem or ""
        if decision is not None and name == decision.winner:
            return verdict_words(decision.verdict, self.measured.resolution)
        if self.measured.doubts(name):
            return "doubted: more than settings can gain, and no duel confirmed it"
        return self._judged(self.measured.shown(name))

    def _judged(self, judged: Judged) -> str:
        if rounds := self.measured.lacks(judged):
            seconds = rounds * self.measured.cost((DEFAULT, judged.name))
            return f"{OPEN}, would need about {duration(seconds)} more"
        return verdict_words(judged.verdict, self.measured.resolution)

    def problem(self, name: str) -> str | None:
        """Return why a setting is out: wrong output or failed runs. Return None if it is in."""
        wrong, failures = self.measured.wrong(name), self.measured.failures(name)
        if wrong is not None:
            return f"{WRONG}: {wrong}"
        is_out = self.measured.problem(name) or (failures and not self.measured.count(name))
        return f"{FAILED}: {failures[-1]}" if is_out else None

    def _limits(self) -> Iterator[str]:
        """Yield what limits the speed, from settings that differ in threads only."""
        settings, seconds, costs = self.results.settings, dict[int, float](), dict[int, float]()
        rows = sorted(self.rows, key=lambda row: row.name != DEFAULT)
        for row in rows if DEFAULT in settings else ():
            setting, default = settings[row.name], settings[DEFAULT]
            alike = _but_threads(setting) == _but_threads(default) and not row.is_out
            fewer = setting.threads <= settings[self.winner].threads
            if alike and fewer and row.name not in FIXED[1:]:
                if row.tg:
                    seconds.setdefault(setting.threads, 1 / row.tg.median)
                if row.cpu:
                    costs.setdefault(setting.threads, row.cpu)
        roof, kept = self.results.roof, self.results.profile
        for said in limiting(roof, seconds, costs, self.results.conditions.meanwhile):
            # What kept the decision from being saved is said there.
            if kept is None or said.partition(": ")[2] not in kept.reason:
                yield said

    @property
    def answer(self) -> str:
        """One short sentence: the setting to use, and its gain."""
        decision = self.results.decision
        if decision is None:
            return "Not finished: there is no decision yet."
        if decision.winner == DEFAULT:
            return "Keep the default."
        gain = f": {times(*decision.estimate)} over the default" if decision.estimate else ""
        return f"Fastest: {decision.winner}{gain}."

    def details(self) -> Iterator[str]:
        """Yield the setting to use and why, and how it compares with bitnet.cpp's own launcher."""
        if self.winner in self.results.settings:
            reason = self.results.decision.reason if self.results.decision else ""
            yield f"{describe(self.results.settings[self.winner])}. {reason}".strip()
        said = "not compared"
        if ratio := self.over_upstream(self.winner):
            verdict = statistics.verdict(ratio, self.measured.resolution)
            said = f"{times(*ratio)}, {self._judged(Judged(UPSTREAM, ratio, verdict))}"
        yield f"Against bitnet.cpp's own 2 threads: {said}."

    def remarks(self) -> Iterator[str]:
        """Yield what limits the speed, failures, what later runs use, a better file, and notes."""
        # A reason may end in a command to paste, so no full stop follows.
        yield from self._limits() if self.results.decision else ()
        energy = self.results.energy
        said = (energy.facts or {}).get("words", energy.reason)
        yield from [f"Energy: {said}"] if said else []
        yield from (f"{row.name}: {row.verdict}." for row in self.rows if row.is_out)
        if self.results.profile is not None:
            yield self.results.profile.reason
        other = self.results.beside
        for row in self.rows:
            if other and row.name in FILES and row.to_default and row.verdict == FASTER:
                how = ", leave out -m" if other.unnamed else f": -m {word(other.path)}"
                gain = f"is {times(*row.to_default)} as fast as the default"
                yield f"The {row.name} {gain}, but its words may differ; to run it{how}"
        yield from (f"Note: {note}" for note in self.results.notes)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What may skew the results, without the disturbances that ``remarks`` name as limits."""
        before, after, meanwhile = self.results.conditions
        if before is None or after is None or not self.results.decision:
            return self.results.warnings
        named = [*disturbances(meanwhile)]
        later = (each for each in warnings_after(before, after) if each.kind in (LOAD, QUOTA))
        known = {each.text for each in later} if named else set()
        return tuple(each for each in self.results.warnings if each not in known)

    def sentences(self) -> Iterator[str]:
        """Yield the sentences that a terminal shows below the table."""
        yield from (self.answer, *self.details())
        yield from (f"Warning: {warning}" for warning in self.warnings)
        yield from self.remarks()

    @property
    def headings(self) -> tuple[str, str]:
        """What was measured where, and by which engine, when and how."""
        results, sizes, engine = self.results, self.results.options.sizes, self.results.engine
        build = f"engine {build_name(engine.path)}{version_words(engine.version)}"
        how = [build, _program(results)]
        how += [f"{sizes.n_prompt} + {sizes.n_gen} tokens per run"] if sizes else []
        return heading(results.model, results.host), ", ".join((*how, results.created))

    @property
    def legend(self) -> str:
        """Explanation of the table: its columns, and names that do not explain themselves."""
        parts = {part for row in self.rows for part in row.name.split(" + ")}
        named = "; ".join(f"{name}: {what}" for name, what in _ROWS.items() if name in parts)
        what = "pp: reading the prompt, tg: writing the answer; below, 95 % intervals. -: too few"
        how = "runs. All take turns with the default: a speed is the default's times the ratio."
        return f"{named and f'{named}.'}\n{what} {how}".lstrip()


def heading(model: ModelFile | ModelFacts, host: Host | HostFacts) -> str:
    name = model.name or os.path.basename(model.path)
    machine = host.brand or host.vendor or "this machine"
    return f"{name} ({model.quantization}) on {machine}"


def _program(results: Results) -> str:
    engine = results.engine
    return "llama-server" if engine.server else "llama-bench" if engine.bench else "llama-cli"


_METHODS = {
    "llama-server": "llama-server, loaded once per setting, by turns",
    "llama-bench": "llama-bench processes",
    "llama-cli": "llama-cli's own timings",
}


def facts(results: Results) -> dict[str, str]:
    """Return in words what was measured, where and by which program."""
    host, engine, model, program = results.host, results.engine, results.model, results.program
    other = results.beside
    quota = "" if host.cpu_quota is None else f", {host.cpu_quota:g} by quota"
    sizes, lengths = results.options.sizes, "none"
    if sizes is not None:
        samples = counted(sizes.repetitions, "sample")
        lengths = f"a prompt of {sizes.n_prompt} tokens, {sizes.n_gen} tokens generated, {samples}"
    return {
        "machine": f"{host.brand or host.vendor or 'unknown'}, "
        f"{counted(host.physical_cores, 'core')}",
        "usable CPUs": f"{len(host.allowed_cpus)} of {len(host.logical_cpus)}{quota}",
        "governor": host.governor or "unknown",
        "engine": f"{engine.path}{version_words(engine.version)}, "
        f"OpenMP: {engine.openmp or 'unknown'}, built for {' '.join(engine.isa) or 'unknown CPUs'}",
        "engine's commit": engine.git_commit or "unknown",
        "measured by": _METHODS[_program(results)],
        "model": f"{model.name or 'unnamed'}, {model.quantization}, {size_text(model.size)}",
        "model's path": model.path,
        "other file": "none"
        if other is None
        else f"{other.path}, {other.embedding} embedding, {size_text(other.size)}, "
        f"{size_text(other.bytes_per_token) if other.bytes_per_token else 'an unknown part'} "
        "read for each token",
        "program": f"{program.name} {program.version}, commit {program.git_commit or 'unknown'}",
        "tokens measured": lengths,
    }


def _but_threads(setting: Setting) -> Setting:
    # A count of its own may come without the binding, which depends on the count.
    env = tuple(pair for pair in setting.env if pair[0] not in (*THREAD_COUNTS, *BINDING))
    return setting._replace(threads=1, threads_batch=1, env=env)


def speed(found: Estimate) -> str:
    """Return a speed as ``24.7 (23.9–25.2)``, or ``24.7 (3 runs)`` if an interval needs more."""
    few = counted(found.count, "run") if found.count < LEAST_COUNT else ""
    return f"{digits(found.median)} ({few or f'{digits(found.low)}–{digits(found.high)}'})"


def digits(number: float) -> str:
    """Return a number with three significant digits: 1235, 103, 24.7, 1.31."""
    decimals = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}"


_ROWS = {
    DEFAULT: "a run without measured settings",
    UPSTREAM: "bitnet.cpp's own 2 threads",
    PERFORMANCE: "--performance-mode",
    "no mmap": "the model copied into memory",
    "huge pages": "copied into huge pages of memory",
}
"""Explanations of names of rows and of their parts."""


def headings(objective: Objective) -> tuple[str, ...]:
    requests = ("requests\n/minute", "pp, tg\ntokens/s")
    speeds = requests if objective.name == REQUEST else ("pp\ntokens/s", "tg\ntokens/s")
    return (*speeds, "CPU s\n/token", "over\ndefault", "over\nupstream")


def figures(row: Row) -> tuple[str, ...]:
    """Return a row's figures for ``headings``, intervals below medians, to fit 80 characters."""
    shown = [stacked(speed(found)) if found else "-" for found in (row.pp, row.tg)]
    if row.requests:
        minute = speed(statistics.scaled(row.requests, 60))
        shown = [stacked(minute), "\n".join(each.split("\n")[0] for each in shown)]
    ratios = (stacked(times(*each)) if each else "-" for each in (row.to_default, row.to_upstream))
    return (*shown, "-" if row.cpu is None else f"{row.cpu:.3g}", *ratios)


def cells(summary: Summary) -> list[tuple[str, ...]]:
    """Return the table of a terminal, headings first."""
    table = [("setting", *headings(summary.results.options.objective), "verdict")]
    for row in summary.rows:
        verdict = row.verdict.partition(":")[0].replace(", would need about ", "\nneeds ") or "-"
        table.append((f"{row.name} *" if row.winner else row.name, *figures(row), verdict))
    return table


def stacked(text: str) -> str:
    """Return a figure with its interval on a line of its own."""
    return text.replace(" (", "\n").rstrip(")")


COLUMNS = (
    *("round", "stage", "position", "setting", "words"),
    *("phase", "sample", "tokens_per_second", "process_seconds", "problem"),
    "cpu_seconds_per_token",
)
"""Columns of the CSV file. ``position`` of a run in its round and ``sample`` count from 1."""


def to_csv(results: Results) -> str:
    """Return CSV with a line for each sample, and one without a speed for each failed run."""
    rows: list[Sequence[object]] = [COLUMNS]
    for each in results.rounds:
        for position, run in enumerate(each.runs, 1):
            words = describe(results.settings[run.setting])
            start = (each.number, each.stage, position, run.setting, words)
            if run.problem is not None:
                rows.append((*start, None, None, None, run.seconds, run.problem, None))
            for phase, speeds in run.samples.items():
                end = (run.seconds, None, run.cpu if phase == TG else None)
                rows += [(*start, phase, *found, *end) for found in enumerate(speeds, 1)]
    return csv_text(rows)


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    content = io.StringIO()
    csv.writer(content, lineterminator="\n").writerows(rows)
    return content.getvalue()
