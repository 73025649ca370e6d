"""Evaluate a benchmark: the figures of each setting and the sentences about them. The terminal, the
report, the comparison of two benchmarks and the CSV file only lay them out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from bitnet_tuning.bench import statistics
from bitnet_tuning.bench.comparison import DEFAULT, FILES, FIXED, UPSTREAM
from bitnet_tuning.bench.results import Results
from bitnet_tuning.console import counted, times, word
from bitnet_tuning.engine.builds import FASTER, verdict_words
from bitnet_tuning.plan.openmp import THREAD_COUNTS
from bitnet_tuning.plan.profile import PP, TG, Estimate
from bitnet_tuning.plan.setting import Setting, describe

TOO_FEW = "not enough rounds"
UNCONFIRMED = "faster in the search, not confirmed"
"""Verdict on a setting that led the search but not a duel: the best of many is often just lucky."""
FAILED = "failed"
WRONG = "wrong output"


class Row(NamedTuple):
    """The figures of one setting, with speeds in tokens/s."""

    name: str
    words: str
    """Description of the setting."""
    pp: Estimate | None
    tg: Estimate | None
    to_upstream: Estimate | None
    """Ratio of the objective's speed to upstream's, paired by round; None for upstream itself
    and without a common round."""
    to_default: Estimate | None
    """The same with the default."""
    rounds: int
    """Number of rounds that measured it."""
    verdict: str
    """Verdict against the default, ``not enough rounds``, ``failed: …`` or ``wrong output: …``;
    empty for the default itself."""
    winner: bool
    """Whether this is the setting to use."""

    @property
    def is_out(self) -> bool:
        """Whether the setting's runs failed or its output is wrong."""
        return self.verdict.startswith((FAILED, WRONG))


class Curve(NamedTuple):
    """Speed of one phase by number of threads; all else is as in the default."""

    phase: str
    speeds: dict[int, Estimate]
    """Speed in tokens/s by number of threads, ascending."""
    default: int
    """The default's number of threads."""
    limit: float | None
    """Speed in tokens/s that memory bandwidth allows; None for prompts, which it does not limit,
    or if it is not known."""


class Summary:
    """The evaluation of one benchmark."""

    def __init__(self, results: Results) -> None:
        self.results = results
        self.measured = results.measured
        self.winner = DEFAULT if results.decision is None else results.decision.winner
        """The setting to use."""

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """Winner, default, upstream, then the others by their ratio to the default."""
        shown = (row for row in self._rows() if row.rounds or row.verdict != TOO_FEW)
        return tuple(sorted(shown, key=_rank))

    def _rows(self) -> Iterator[Row]:
        decision = self.results.decision
        for name, setting in self.results.settings.items():
            speeds = self.measured.speeds(name)
            yield Row(
                name=name,
                words=describe(setting),
                pp=statistics.estimate(speeds[PP]) if speeds[PP] else None,
                tg=statistics.estimate(speeds[TG]) if speeds[TG] else None,
                to_upstream=self.against(name, UPSTREAM),
                to_default=self.against(name, DEFAULT),
                rounds=self.measured.count(name),
                verdict=self._verdict(name),
                winner=decision is not None and decision.winner == name,
            )

    def against(self, name: str, reference: str) -> Estimate | None:
        """Return the ratio of two settings' speeds, paired by round. For the winner against the
        default it is the decision's. Return None for a setting against itself."""
        decision = self.results.decision
        if name == reference:
            return None
        if decision is not None and (name, reference) == (decision.winner, DEFAULT):
            return decision.estimate
        return self.measured.shown(name, reference).ratio

    def _verdict(self, name: str) -> str:
        decision, problem = self.results.decision, self.problem(name)
        if problem is not None or name == DEFAULT:
            return problem or ""
        if decision is not None and name == decision.winner:
            return self._words(decision.verdict)
        judged = self.measured.shown(name)
        if judged.ratio is None or judged.ratio.count < statistics.VERDICT_ROUNDS:
            return TOO_FEW
        searched = name not in FIXED and not self.measured.in_duel(name)
        if searched and judged.verdict == FASTER:
            return UNCONFIRMED
        return self._words(judged.verdict)

    def _words(self, verdict: str) -> str:
        return verdict_words(verdict, self.measured.resolution)

    def problem(self, name: str) -> str | None:
        """Return why a setting is out: wrong output or failed runs. Return None if it is in."""
        wrong, failures = self.measured.wrong(name), self.measured.failures(name)
        if wrong is not None:
            return f"{WRONG}: {wrong}"
        is_out = self.measured.problem(name) or (failures and not self.measured.count(name))
        return f"{FAILED}: {failures[-1]}" if is_out else None

    @property
    def curves(self) -> tuple[Curve, ...]:
        """Curves of generation and prompt processing, if they have two points or more."""
        if DEFAULT not in self.results.settings:
            return ()
        found = map(self._curve, (TG, PP))
        return tuple(each for each in found if len(each.speeds) > 1)

    def _curve(self, phase: str) -> Curve:
        """Return the curve of a phase. Settings with equal threads in this phase are one point."""
        default = self.results.settings[DEFAULT]
        seen, limit = (self.results.roof.facts or {}).get("limit_tokens_per_second"), None
        if phase == TG and isinstance(seen, (int, float)) and seen > 0 and seen is not True:
            limit = seen
        found: dict[int, list[float]] = {}
        for name, setting in self.results.settings.items():
            if _but_threads(setting) == _but_threads(default) and self.problem(name) is None:
                speeds = self.measured.speeds(name)[phase]
                found.setdefault(_threads(setting, phase), []).extend(speeds)
        points = {count: statistics.estimate(each) for count, each in sorted(found.items()) if each}
        return Curve(phase, points, _threads(default, phase), limit)

    @property
    def answer(self) -> str:
        """One or two sentences: the setting to use, and its gain."""
        decision = self.results.decision
        if decision is None:
            return "Not finished: there is no decision yet."
        words = describe(self.results.settings[decision.winner])
        if decision.winner == DEFAULT:
            return f"Keep the default ({words}). {decision.reason}"
        ratio = decision.estimate
        gain = f": {times(*ratio)} the default's speed" if ratio else ""
        return f"Use {decision.winner} ({words}){gain}."

    @property
    def over_upstream(self) -> str:
        """The gain over what bitnet.cpp's own launcher does."""
        ratio = self.against(self.winner, UPSTREAM)
        what = "the default" if self.winner == DEFAULT else self.winner
        upstream = "the upstream default (2 threads, no environment variables)"
        if ratio is None:
            return f"No comparison with {upstream} was possible."
        if ratio.count < statistics.VERDICT_ROUNDS:
            rounds = counted(ratio.count, "round")
            return f"{rounds} cannot tell how {what} compares with {upstream}."
        return f"Compared with {upstream}, {what} is {times(*ratio)} as fast."

    @property
    def better_file(self) -> str | None:
        """The recommendation of the other file of the model, if that is faster."""
        other = self.results.beside
        for row in self.rows:
            if other and row.name in FILES and row.to_default and row.verdict == FASTER:
                how = f"to run it: -m {word(other.path)}"
                how = "to run it, leave out -m" if other.unnamed else how
                gain = f"is {times(*row.to_default)} as fast as the default"
                return f"The {row.name} {gain}, but its words may differ; {how}"
        return None

    def remarks(self) -> Iterator[str]:
        """Yield what limits the speed, failures, what later runs use, a better file, and notes."""
        for what, part in (("Memory", self.results.roof), ("Energy", self.results.energy)):
            said = (part.facts or {}).get("words", part.reason)
            # A reason may end in a command to paste, so no full stop follows.
            yield from [f"{what}: {said}"] if said else []
        yield from (f"{row.name}: {row.verdict}." for row in self.rows if row.is_out)
        if self.results.profile is not None:
            yield self.results.profile.reason
        yield from filter(None, [self.better_file])
        yield from (f"Note: {note}" for note in self.results.notes)

    def sentences(self) -> Iterator[str]:
        """Yield the sentences that a terminal shows below the table."""
        yield from (self.answer, self.over_upstream)
        yield from (f"Warning: {warning}" for warning in self.results.warnings)
        yield from self.remarks()


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
        "machine": f"{host.brand or host.vendor or 'unknown'}, {host.physical_cores} cores",
        "usable CPUs": f"{len(host.allowed_cpus)} of {len(host.logical_cpus)}{quota}",
        "governor": str(host.governor),
        "engine": f"{engine.path}, version {engine.version}, OpenMP: {engine.openmp or 'unknown'}, "
        f"built for {' '.join(engine.isa) or 'unknown CPUs'}",
        "engine's commit": str(engine.git_commit),
        "model": f"{model.path}, {model.quantization}, {model.size} bytes",
        "other file": "none"
        if other is None
        else f"{other.path}, {other.embedding} embedding, "
        f"{other.size} bytes, {other.bytes_per_token or 'an unknown number'} read for each token",
        "program": f"{program.name} {program.version}, commit {program.git_commit or 'unknown'}",
        "tokens measured": lengths,
    }


def _rank(row: Row) -> tuple[int, float]:
    places = {DEFAULT: 1, UPSTREAM: 2}
    place = 0 if row.winner else places.get(row.name, 3)
    return place, -(row.to_default.median if row.to_default else 0.0)


def _threads(setting: Setting, phase: str) -> int:
    return setting.threads if phase == TG else setting.threads_batch


def _but_threads(setting: Setting) -> Setting:
    env = tuple(pair for pair in setting.env if pair[0] not in THREAD_COUNTS)
    return setting._replace(threads=1, threads_batch=1, env=env)


def speed(found: Estimate) -> str:
    """Return a speed as ``24.7 (23.9–25.2)``, or ``24.7 (one run)``."""
    interval = f"{digits(found.low)}–{digits(found.high)}" if found.count > 1 else "one run"
    return f"{digits(found.median)} ({interval})"


def digits(number: float) -> str:
    """Return a number with three significant digits: 1235, 103, 24.7, 1.31."""
    decimals = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
    return f"{number:.{decimals}f}"


HEADINGS = ("setting", "pp\ntokens/s", "tg\ntokens/s", "over\nupstream", "over\ndefault", "verdict")


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's cells for ``HEADINGS``. Intervals stand below their medians, so that the
    table fits into 80 characters."""
    return (
        f"{row.name} *" if row.winner else row.name,
        *(stacked(speed(found) if found else "-") for found in (row.pp, row.tg)),
        *(stacked(times(*found) if found else "-") for found in (row.to_upstream, row.to_default)),
        row.verdict.partition(":")[0] or "-",
    )


def stacked(text: str) -> str:
    """Return a figure with its interval on a line of its own."""
    return text.replace(" (", "\n").rstrip(")")


COLUMNS = (
    *("round", "stage", "position", "setting", "words"),
    *("phase", "sample", "tokens_per_second", "process_seconds", "problem"),
)
"""Columns of the CSV file. ``position`` of a run in its round and ``sample`` count from 1."""


def to_csv(results: Results) -> str:
    """Return CSV with a line for each sample, and one without a speed for each failed run."""
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in results.rounds:
        for position, run in enumerate(each.runs, 1):
            words = describe(results.settings[run.setting])
            start = (each.number, each.stage, position, run.setting, words)
            if run.problem is not None:
                writer.writerow((*start, None, None, None, run.seconds, run.problem))
            for phase, speeds in run.samples.items():
                for number, found in enumerate(speeds, 1):
                    writer.writerow((*start, phase, number, found, run.seconds, None))
    return content.getvalue()
