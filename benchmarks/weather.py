"""What the benchmarks of a busy machine share: neighbours, runs of an engine, and tables.

A weather is what other programs do while an engine runs. Every run is a whole program, started as
a user starts it; its speed comes from the engine's own timing lines on stderr.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bitnet_tuning.bench.statistics import estimate as estimated
from bitnet_tuning.console import code_of, say, times
from bitnet_tuning.engine.find import GOMP, LLVM, Engine
from bitnet_tuning.engine.probe import parse_timings
from bitnet_tuning.errors import TuningError
from bitnet_tuning.launch.background import Captured, capture
from bitnet_tuning.launch.failure import failure
from bitnet_tuning.machine.load import growth, read_cpu_times
from bitnet_tuning.machine.root import Root
from bitnet_tuning.plan.profile import Estimate
from bitnet_tuning.prepare import find_engine
from bitnet_tuning.store.state import State
from bitnet_tuning.verify.checks import OWN_COUNT

REPOSITORY = Path(__file__).resolve().parent.parent
NEIGHBOUR = Path(__file__).resolve().with_name("neighbour.py")
PROMPT = "How many threads"
SECONDS = 180.0
"""Seconds after which a run counts as hung."""
SETTLE_SECONDS = 2.5
"""Seconds for which a weather lasts before the first run in it, so that also one of four programs
on two CPUs has computed for a second, as programs that go on have (machine/neighbours.py)."""
READY_SECONDS = 30.0
"""Seconds within which a neighbour must run."""
QUIET = 0.1
"""CPUs that other programs may use on a machine that counts as idle."""

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

SETTINGS = ("OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "GGML_", "LLAMA_", "BITNET_")
"""Beginnings of the names of variables that no run inherits."""

ANY_LOAD = {"BITNET_IGNORE_LOAD": "1"}
"""Variables with which the launcher plans for a machine that is all its own."""

UNBOUND: Mapping[str, str] = {}
BOUND = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"}
PASSIVE = {LLVM: {"KMP_BLOCKTIME": "0"}, GOMP: {"OMP_WAIT_POLICY": "passive"}}
"""Variables that let waiting threads sleep at once, by OpenMP runtime."""


def explained(main: Callable[[], int]) -> int:
    """Run a benchmark, print what it lacks if that ends it, such as an engine or an extra, and
    return the exit code."""
    try:
        return main()
    except TuningError as error:
        return code_of(error, say)


class Weather(NamedTuple):
    """What other programs do during a run."""

    name: str
    kind: str = ""
    """One of the kinds of neighbour.py; empty on an idle machine."""
    programs: int = 0
    nice: int = 0
    session: bool = False
    """True if niceness counts only within the session of each program, as with autogroups."""


IDLE = Weather("idle")
KINDS = ("spin", "nice", "session", "burst", "memory", "blink", "compile")
"""Kinds of weathers, in the order of the tables."""


def parse_weather(name: str) -> Weather:
    """Return the weather with this name: ``idle``, or a kind of program and how many run, such as
    ``spin-2``; the number may be left out. Raise ValueError for any other name.

    ``nice-2`` are programs that spin at nice 19, as in the session of the engine. ``session-2``
    are the same in sessions of their own: where the kernel has autogroups, their niceness then
    costs them nothing, as for a program that was started from another terminal.
    """
    if name == IDLE.name:
        return IDLE
    kind, _, number = name.partition("-")
    programs = int(number or "1")
    if kind not in KINDS or programs < 1:
        raise ValueError(f"unknown weather {name}")
    if kind in ("nice", "session"):
        return Weather(name, "spin", programs, 19, kind == "session")
    return Weather(name, kind, programs)


def has_autogroups() -> bool:
    """Return whether sessions share the CPUs before programs do (sched(7))."""
    return Root().integer("proc/sys/kernel/sched_autogroup_enabled") == 1


@contextmanager
def neighbours(weather: Weather, settle: float = SETTLE_SECONDS) -> Iterator[list[int]]:
    """Start the weather's programs, wait until they have run for ``settle`` seconds, and yield
    their process ids; kill them with their process groups after the block, whatever ends it. Raise
    RuntimeError if one does not run or ended before the block did."""
    flags = [weather.kind, "--nice", str(weather.nice)]
    flags += ["--session"] if weather.session else []
    command = [sys.executable, "-IS", str(NEIGHBOUR), *flags]
    programs: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(weather.programs):
            with _uninterrupted():  # no program runs that is not in the list
                programs.append(
                    subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        start_new_session=True,
                    )
                )
        started = [int(_printed(program, READY_SECONDS) or 0) for program in programs]
        if not all(started):
            raise RuntimeError(f"a program of the weather {weather.name} does not run")
        if programs:
            time.sleep(settle)
        yield started
        if any(_printed(program, 0) is not None for program in programs):
            raise RuntimeError(f"a program of the weather {weather.name} ended too early")
    finally:
        with _uninterrupted():
            for program in programs:
                _kill(program)


def _printed(program: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """Return what the program prints within the time; empty at its end, None if it only runs."""
    assert program.stdout is not None
    ready, _, _ = select.select([program.stdout], [], [], seconds)
    return os.read(program.stdout.fileno(), 100) if ready else None


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let signals that stop this program wait for the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill(program: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    # The first process only left its child behind. The pipe ends with the last of the group.
    while _printed(program, READY_SECONDS):
        pass
    program.wait()
    for stream in (program.stdin, program.stdout):
        assert stream is not None
        stream.close()


def other_cpus(seconds: float = 1.0) -> float | None:
    """Return the CPUs that are busy while this program only waits; None if unknown."""
    before = read_cpu_times(Root())
    time.sleep(seconds)
    grown = [growth(*pair) for pair in zip(before, read_cpu_times(Root()), strict=True)]
    return sum(each or 0.0 for each in grown) / seconds if None not in grown else None


class Sample(NamedTuple):
    """One run of an engine."""

    weather: str
    round: int
    setting: str
    speed: float | None
    """Generated tokens/s by the engine's clock; None if the run failed."""
    seconds: float
    """Wall time of the whole program."""
    threads: int | None = None
    """Generation threads, by the engine's log."""
    prompt_speed: float | None = None
    problem: str | None = None
    parts: tuple[float, ...] = ()
    """Speeds of the single runs, where ``speed`` is the sum of two runs at once."""
    crowded: float | None = None
    """Share of the looks in which two runs at once computed on the same CPU."""


class Subject(NamedTuple):
    """An engine with its model, and how the launcher as installed starts them."""

    name: str
    engine: Engine
    ours: tuple[str, ...]
    """argv of run_inference.py, for a whole run."""
    planned: tuple[str, ...]
    """argv of the engine in the launcher's plan."""
    state: str
    """Folder for the launcher's state, which holds no profile."""

    def direct(self, threads: int) -> tuple[str, ...]:
        """Return the planned argv of the engine with another number of threads."""
        command = list(self.planned)
        for flag in ("-t", "-tb"):
            if flag in command:
                command[command.index(flag) + 1] = str(threads)
        return tuple(command)

    def variables(self) -> Mapping[str, str]:
        """Return the variables with which the launcher is started."""
        return {"BITNET_TUNING_HOME": self.state}


def launcher(folder: str, model: str | None) -> tuple[str, ...]:
    """Return the beginning of the argv of run_inference.py with this engine and model."""
    script = str(REPOSITORY / "run_inference.py")
    return (sys.executable, script, "--engine", folder, *(("-m", model) if model else ()))


def prepare(folder: str, model: str | None, tokens: int, state: str) -> Subject:
    """Return the subject for an engine's folder. The launcher's dry run probes the engine, as the
    first run would. Raise SystemExit with the launcher's message if it finds no engine or model."""
    start = (*launcher(folder, model), "-p", PROMPT, "-n", str(tokens), "-temp", "0")
    engine = find_engine(folder, State(state))
    more = ("--", "--ignore-eos") if "--ignore-eos" in engine.flags else ()
    variables = {"BITNET_TUNING_HOME": state, **ANY_LOAD}
    done = started((*start, "--dry-run", "--json", *more), variables)
    if done.code:
        raise SystemExit(done.stderr.strip())
    planned = tuple(json.loads(done.stdout)["command"])
    checkout = engine.checkout or os.path.dirname(engine.path)
    return Subject(os.path.basename(checkout), engine, (*start, *more), planned, state)


def started(
    argv: Sequence[str],
    variables: Mapping[str, str] = UNBOUND,
    cpus: frozenset[int] | None = None,
) -> Captured:
    """Run a program with none of the user's own settings and return its output."""
    return capture(tuple(argv), variables, SECONDS, unset=settings_of_the_user(), cpus=cpus)


def settings_of_the_user() -> frozenset[str]:
    """Return the names of the variables that no run may inherit."""
    # Python must be able to cache compiled modules, as it does on a user's machine.
    more = {"PYTHONDONTWRITEBYTECODE"}
    return frozenset(name for name in os.environ if name.startswith(SETTINGS)) | more


def sample(
    weather: str,
    number: int,
    setting: str,
    argv: Sequence[str],
    *,
    variables: Mapping[str, str] = UNBOUND,
    cpus: frozenset[int] | None = None,
) -> Sample:
    """Run an engine, directly or through a launcher, and return what it says about its speed."""
    began = time.monotonic()
    done = started(argv, variables, cpus)
    return read_sample(weather, number, setting, done, time.monotonic() - began)


def read_sample(weather: str, number: int, setting: str, done: Captured, seconds: float) -> Sample:
    """Return the sample of a run that has ended."""
    found, problem = parse_timings(done.stderr), failure(done, SECONDS)
    said = OWN_COUNT.search(done.stderr)
    speed = found.generation and found.generation.rate
    if problem is None and not speed:
        problem = "no timing in the log"
    return Sample(
        weather,
        number,
        setting,
        None if problem else speed,
        seconds,
        int(said[1]) if said else None,
        None if problem or found.prompt is None else found.prompt.rate,
        problem,
    )


def paired(samples: Iterable[Sample], above: str, below: str, field: str = "speed") -> list[float]:
    """Return the ratios of two settings within each round that ran both without a failure."""
    runs: dict[tuple[int, str], float] = {
        (each.round, each.setting): getattr(each, field) for each in samples if each.speed
    }
    rounds = sorted({number for number, _ in runs})
    both = [number for number in rounds if (number, above) in runs and (number, below) in runs]
    return [runs[number, above] / runs[number, below] for number in both]


def medians(samples: Iterable[Sample], field: str = "speed") -> dict[str, float]:
    """Return the median of each setting's good runs."""
    values: dict[str, list[float]] = {}
    for each in samples:
        if each.speed:
            values.setdefault(each.setting, []).append(getattr(each, field))
    return {name: median(found) for name, found in values.items()}


def estimate(ratios: Sequence[float]) -> Estimate | None:
    """Return the ratio with its 95 % interval; None without ratios."""
    return estimated(ratios) if ratios else None


def words(found: Estimate | None) -> str:
    """Return a ratio for a table; of few rounds with the lowest and the highest."""
    if found is None:
        return "–"
    return times(*found[:3]) if found.count > 1 else times(*found)


def thread_counts(samples: Iterable[Sample], setting: str) -> str:
    """Return the thread counts of a setting's runs with how often each came, such as ``1×4, 2×1``;
    a count alone if it never changed."""
    counts = Counter(each.threads for each in samples if each.setting == setting and each.threads)
    if len(counts) == 1:
        return str(next(iter(counts)))
    return ", ".join(f"{count}×{often}" for count, often in sorted(counts.items())) or "–"


def failures(samples: Iterable[Sample]) -> list[str]:
    """Return a line for each kind of failure, with how often it came."""
    found = Counter(
        f"{each.weather}, {each.setting}: {each.problem}" for each in samples if each.problem
    )
    return [f"failed {often} times: {text}" for text, often in found.items()]


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are also aligned as plain text."""
    cells = [headings, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [[f"{cell:{at}}" for cell, at in zip(row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * at for at in widths])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


class Report:
    """What was measured, kept in a JSON file from the first sample on."""

    def __init__(self, path: str | None, **facts: object) -> None:
        self.path = path
        self.engines: list[dict[str, Any]] = []
        self._facts = facts

    def add(self, subject: Subject) -> Callable[[Iterable[Sample]], None]:
        """Add an engine, and return a function that adds samples of it and saves the file."""
        kept: list[dict[str, Any]] = []
        model = subject.planned[subject.planned.index("-m") + 1]
        self.engines.append(
            {
                "name": subject.name,
                "engine": subject.engine.path,
                "openmp": subject.engine.openmp,
                "model": os.path.basename(model),
                "samples": kept,
            }
        )

        def keep(samples: Iterable[Sample]) -> None:
            kept.extend(each._asdict() for each in samples)
            self.save()

        return keep

    def content(self) -> dict[str, Any]:
        """Return all that the file holds."""
        return {**self._facts, "engines": self.engines}

    def save(self) -> None:
        """Write the file anew, in one step, so that a stop at any time leaves it whole."""
        if self.path is None:
            return
        content = self.content()
        target = Path(self.path).absolute()
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as file:
            json.dump(content, file, indent=1)
        os.replace(file.name, target)


def load_samples(engine: Mapping[str, Any]) -> list[Sample]:
    """Return the samples of one engine of a report's file."""
    return [Sample(**{**each, "parts": tuple(each.get("parts", ()))}) for each in engine["samples"]]


def usable_cpus() -> int:
    """Return the number of CPUs that this program may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> dict[str, object]:
    """Return what a report says about the machine."""
    lines = (Root().read("proc/cpuinfo") or "").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpus": usable_cpus(),
        "processor": next(iter(names), None),
        "autogroups": has_autogroups(),
        "busy": other_cpus(),
    }


def warn_if_busy(facts: Mapping[str, object]) -> None:
    busy = facts["busy"]
    if isinstance(busy, float) and busy > QUIET:
        print(f"warning: {busy:.2f} CPUs are busy with other programs", file=sys.stderr)


def engine_folders(named: Sequence[str] | None) -> list[str]:
    """Return the folders of the engines: those named, else those in BITNET_TEST_ENGINES. Raise
    SystemExit if there are none."""
    found = list(named or os.environ.get("BITNET_TEST_ENGINES", "").split(os.pathsep))
    found = [each for each in found if each]
    if not found:
        raise SystemExit("name an engine with --engine FOLDER, or set BITNET_TEST_ENGINES")
    return found


def stop_on_signals() -> None:
    """Let SIGTERM and SIGHUP end this program like Ctrl-C, so that it cleans up."""
    for number in STOPPING:
        signal.signal(number, signal.default_int_handler)
