"""Find out what an engine can do, by running it and reading its files, and how many of its threads
this machine runs at once. known.py stores both."""

from __future__ import annotations

import mmap
import os
import re
import sys
import time
from collections.abc import Callable, Iterable
from glob import escape, glob
from shlex import quote

from bitnet_tuning import demo
from bitnet_tuning.console import at_terminal, say
from bitnet_tuning.engine import find
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.launch.background import Captured, capture
from bitnet_tuning.launch.failure import ADD_LIBRARIES, BUILD_HERE, NO_THREAD, loader_error
from bitnet_tuning.machine.detect import read_flags
from bitnet_tuning.machine.host import Crowding
from bitnet_tuning.machine.load import growth, own_cpu_seconds, read_cpu_times
from bitnet_tuning.machine.root import Root
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.store.state import moment

_SIGILL = (132, 0xC000001D, 0xC000001D - (1 << 32))
"""Exit codes after an illegal instruction: 128 + SIGILL, and Windows'
STATUS_ILLEGAL_INSTRUCTION (MS-ERREF 2.3.1), unsigned and signed."""

_PATIENCE_S = 1.0
"""Seconds after which a terminal shows that the engine is being asked."""

_SYSTEM_INFO = "system_info:"
_FEATURE = r"\b([A-Z][A-Z0-9_]*) = (\d+)"

_PACKAGES = {"libgomp": "libgomp1", "libomp": "libomp5"}
"""Debian's packages of the libraries that an engine needs and no build brings."""

_DEFINITION = r"\s{0,19}((?:--?[A-Za-z]\S*\s*(?:[A-Z<{\[(.]\S*\s*)?)+)"
"""Flags at the beginning of a line of a help text, each with at most one placeholder: -t, --threads
in ``-t, --threads N  number of threads``. From column 20 on, a dash is part of a description."""


def probe(location: Location) -> tuple[Engine, bool]:
    """Return what is known of the engine after it was asked for its help, its version and one
    token, and whether that is complete enough to be remembered. Raise nothing for an engine that
    fails: what it did not tell is empty or None, and an engine that cannot start has a fault."""
    completion = None if location.embedded else find.beside(location.cli, "llama-completion")
    chat = (sys.executable, location.cli) if location.embedded else (location.cli,)
    once = (completion,) if completion else chat
    notice = [time.monotonic() + _PATIENCE_S]

    def watch(_process: int) -> None:
        """Say once, after some time, what a user at a terminal waits for."""
        if notice and time.monotonic() > notice[0]:
            notice.clear()
            say("asking the engine what it can do" if at_terminal() else None)

    help_text = capture((*once, "--help"), watch=watch)
    chat_help = help_text if once == chat else capture((*chat, "--help"), watch=watch)
    fault = _fault(once[-1], help_text)
    version = capture((*chat, "--version"))
    if location.embedded:
        library = find.embedded_library()
        paths = sorted(glob(f"{escape(library)}/*")) if library else []
        modules = [path for path in paths if path.endswith((".so", ".pyd"))]
        files: tuple[str, ...] = (os.path.abspath(location.cli), *modules)
    else:
        files = own_files(location.cli, trace_libraries)
    # Its own libraries, which tell, may be those that are missing.
    i2_s = None if fault else knows_name(files, "i2_s")
    names = ((name, knows_name(files, name)) for name in find.ARCHITECTURES)
    # Only a run prints the ``system_info`` line and shows whether the CPU has every instruction.
    model = demo.I2_S if i2_s else demo.TQ2_0
    token = (*once, "-m", model, "-p", "a", "-n", "1", "-t", "1", "-c", "64", "-ngl", "0")
    for _ in range(2):
        tried = capture(token, watch=watch)
        log = tried.stderr + tried.stdout
        # llama-completion of late 2026 now and then exits before its log is written
        # (https://github.com/ggml-org/llama.cpp/issues/22142). A script around an engine may never
        # show it, and is not to be asked at every start: one more try decides.
        if tried.code != 0 or _SYSTEM_INFO in log:
            break
    engine = Engine(
        location=location,
        version=parse_version(version.stdout + version.stderr),
        flags=frozenset(parse_flags(help_text.stdout + help_text.stderr)),
        chat_flags=frozenset(parse_flags(chat_help.stdout + chat_help.stderr)),
        openmp=openmp_runtime(files),
        isa=frozenset(parse_system_info(log)),
        i2_s=i2_s,
        architectures={} if fault else {name: known for name, known in names if known is not None},
        files=files,
        completion=completion,
        cpu=frozenset(read_flags()),
        ran=False if tried.code in _SIGILL else True if tried.code == 0 else None,
        fault=fault,
    )
    # An engine that dies of an illegal instruction has no answers, but it will die again.
    answered = help_text.code is not None and (bool(engine.flags) or engine.ran is False)
    complete = answered and not fault and not NO_THREAD.search(log)
    return engine, complete


def _fault(program: str, done: Captured) -> tuple[str, str] | None:
    """Return why the system does not start a program and what to do about it; None if it does."""
    said, start = loader_error(done), f"cannot start {program}: "
    if said is None:
        return None
    if said.startswith(start):
        return said, done.stderr.partition("\n")[2].strip()
    cause = start + said.removeprefix(f"{program}: ")
    missing = re.findall(r"(\S+) => not found", trace_libraries(program))
    for name in missing:
        if package := _PACKAGES.get(name.partition(".so")[0]):
            return cause, f"install it; on Debian and Ubuntu: apt-get install {package}"
    build = os.path.dirname(os.path.dirname(program))
    # Only a build folder is searched: anything else could be the whole file system.
    is_build = os.path.basename(build).startswith("build")
    walk = os.walk(build) if missing and is_build else ()
    folders = [each for each, _, files in walk if not set(files).isdisjoint(missing)]
    if folders and not any(":" in each for each in folders):
        return cause, f"{BUILD_HERE}, or: export LD_LIBRARY_PATH={quote(':'.join(folders))}"
    return cause, f"{BUILD_HERE}, or {ADD_LIBRARIES}" if missing else BUILD_HERE


def trace_libraries(program: str) -> str:
    """Return the libraries that the dynamic loader would map, as ``ldd`` prints them."""
    # As ldd does (ld.so(8)). A statically linked program ignores it and runs: --version ends it.
    return capture((program, "--version"), {"LD_TRACE_LOADED_OBJECTS": "1"}).stdout


def flags_of(program: tuple[str, ...]) -> frozenset[str]:
    """Return the flags that a program lists in its help."""
    said = capture((*program, "--help"))
    return frozenset(parse_flags(said.stdout + said.stderr))


def parse_flags(help_text: str) -> set[str]:
    """Return every flag that a help text in llama.cpp's style defines, not those it mentions."""
    flags: set[str] = set()
    for line in help_text.splitlines():
        found = re.match(_DEFINITION, line)
        words = found[1].split() if found else ()
        flags.update(word.rstrip(",").partition("=")[0] for word in words if word[0] == "-")
    return flags


def parse_version(text: str) -> str:
    """Return the text after ``version:``, "" if no line begins with it."""
    found = re.search(r"(?m)^version: (.*)$", text)
    return found[1].strip() if found else ""


def parse_system_info(log: str) -> set[str]:
    """Return the names in the last ``system_info`` line, such as AVX2, whose value is not 0."""
    lines = [line for line in log.splitlines() if _SYSTEM_INFO in line]
    pairs = re.findall(_FEATURE, lines[-1]) if lines else []
    return {name for name, value in pairs if value != "0"}


class Speed(NamedTuple):
    """The tokens and the time of one phase of a run, by the engine's own clock."""

    tokens: int
    milliseconds: float

    @property
    def rate(self) -> float | None:
        """Speed in tokens/s; None for a phase that took no time."""
        return self.tokens / self.milliseconds * 1000 if self.milliseconds > 0 else None


def rate_text(speed: Speed | None) -> str:
    """Return a speed as ``21.3 tokens/s (128 tokens)``."""
    if speed is None or speed.rate is None:
        return "not measured"
    return f"{speed.rate:.1f} tokens/s ({speed.tokens} tokens)"


class Timings(NamedTuple):
    """The two phases of a run; None for a phase that the log does not have."""

    prompt: Speed | None
    generation: Speed | None


_LINE = r"{} time\s*=\s*([\d.]+) ms\s*/\s*(\d+) (?:tokens|runs)"
_PHASES = (_LINE.format(r"prompt eval"), _LINE.format(r"(?<!prompt )eval"))


def parse_timings(log: str) -> Timings:
    """Return the figures of llama.cpp's timing lines, in the spelling of any generation."""
    found = (re.search(pattern, log) for pattern in _PHASES)
    return Timings(*(each and Speed(int(each[2]), float(each[1])) for each in found))


BATCH, BATCH_S = 32, 0.01
"""Most tokens of the prompt that are computed at a time, and seconds that they should take. With
single tokens of so small a model, a fast CPU would mostly wait for threads. In 10 ms it computes
about 0.2 ms between two waits, as in generating with a model of 2B parameters."""

SLOWER = 3.0
"""Factor by which the planned threads must be slower than one in all three rounds of a trial. With
two busy programs on two CPUs, two threads were up to 2.2 times slower (docs/measurements.md)."""

NOT_SLOWER = 0.8
"""Share of one thread's speed that more threads must reach to be used."""

BUSY = 0.25
"""CPUs that other programs may use on average during a trial that counts. Stolen time counts, too.
A program that shares a CPU with the engine uses about half of it."""

_FIRST_S, _SHORTEST_S = 30.0, 1.0
"""Time limits in seconds: of the first run, with one thread, and the shortest of later ones. These
may take ``SLOWER`` times as long as the first one took, with loading."""


def find_limit(planned: int, run: Callable[[int, int, float], Captured]) -> Crowding:
    """Compare the planned threads with one thread, in up to three rounds. If they are much slower
    in all of them, find how many are not by halving. ``run`` runs the demo model with numbers of
    threads and of tokens at a time, for some seconds."""
    started, before = time.monotonic(), _others()
    limit, tokens, batch, ratios, most = _FIRST_S, 0, BATCH, list[float](), 0.0

    def rate(threads: int) -> float:
        """Return tokens/s, of a run that took too long the most that they can be; 0 if unknown."""
        nonlocal limit, tokens
        begun = time.monotonic()
        done = run(threads, batch, limit)
        prompt = parse_timings(done.stderr + done.stdout).prompt
        if not tokens and prompt:
            tokens, limit = prompt.tokens, max(_SHORTEST_S, SLOWER * (time.monotonic() - begun))
        return tokens / limit if done.code is None else (prompt and prompt.rate) or 0.0

    def outcome(threads: int, slowdown: float) -> Crowding:
        others = (growth(before, _others()) or 0.0) / (time.monotonic() - started)
        is_known = others <= BUSY or slowdown <= 1
        return Crowding(moment(), planned, threads if is_known else None, slowdown)

    first = rate(1)
    batch, tokens, limit = max(1, min(BATCH, int(first * BATCH_S))), 0, _FIRST_S
    for order in ((1, planned), (planned, 1), (1, planned)):
        speeds = {threads: first and rate(threads) for threads in order}
        if not all(speeds.values()):
            return Crowding(moment(), planned, None)
        ratio = speeds[1] / speeds[planned]
        result = outcome(planned, ratio)
        if ratio < SLOWER or result.threads is None:
            return result
        if not ratios:
            say(f"finding out how many of {planned} threads this virtual machine runs at once")
        ratios.append(ratio)
        most = max(most, speeds[1])
    count = planned // 2
    while count > 1 and not any(rate(count) >= NOT_SLOWER * most for _ in range(2)):
        count //= 2
    return outcome(count, min(ratios))


def _others() -> float | None:
    """Return the seconds in which other programs used a CPU or the hypervisor withheld one."""
    busy, stolen = read_cpu_times(Root())
    return None if busy is None or stolen is None else busy + stolen - own_cpu_seconds()


_OWN_LIBRARY = r"(?i)(lib)?(ggml|llama|mtmd|bitnet|xllamacpp)[^/\\]*\.(so|dylib|dll)"
_EXECUTABLE_MAGIC = (
    b"\x7fELF",
    b"MZ",  # Windows
    b"\xcf\xfa\xed\xfe",  # macOS: mach-o/loader.h, little-endian
    b"\xfe\xed\xfa\xcf",
    b"\xca\xfe\xba\xbe",  # macOS, several architectures: mach-o/fat.h
)

# Each runtime by its library, and GNU's and LLVM's also by a variable that they read, for static
# linking. LLVM's comes last: ggml sets KMP_BLOCKTIME in every build with OpenMP (ggml-cpu.c,
# ggml_cpu_init), so its name is in builds with the other runtimes, too.
_RUNTIMES = (
    (find.GOMP, (b"libgomp.so", b"libgomp-1.dll", b"libgomp.1.dylib", b"GOMP_SPINCOUNT")),
    (find.MSVC, (b"vcomp140",)),
    (find.LLVM, (b"libomp.so", b"libiomp5", b"libomp140", b"libomp.dylib", b"KMP_BLOCKTIME")),
)


def is_executable_image(path: str) -> bool:
    """Return whether the file is a compiled program or library, and not a script."""
    try:
        with open(path, "rb") as file:
            return file.read(4).startswith(_EXECUTABLE_MAGIC)
    except OSError:
        return False


def own_files(program: str, trace: Callable[[str], str]) -> tuple[str, ...]:
    """Return the real paths of the program and of the libraries that were built with it: those
    that it links, by what ``trace`` returns as ``ldd`` would print it, and those beside it, since
    ggml's backends are loaded at run time."""
    beside = os.path.dirname(os.path.realpath(program))
    found, linked = [os.path.realpath(program)], list[str]()
    if sys.platform.startswith("linux") and is_executable_image(program):
        # Lines are ``name => /path (0x…)`` or ``/path (0x…)``.
        linked = re.findall(r"(?:^\s*|=> )(/\S.*?) \(0x", trace(program), re.MULTILINE)
    found += [path for path in linked if re.search(_OWN_LIBRARY, os.path.basename(path))]
    files = sorted(glob(f"{escape(beside)}/*"))
    found += [path for path in files if re.match(_OWN_LIBRARY, os.path.basename(path))]
    return tuple(dict.fromkeys(os.path.realpath(path) for path in found))


def openmp_runtime(files: Iterable[str]) -> str | None:
    """Return GOMP, LLVM, MSVC or NONE; None if no file is compiled code of ggml."""
    images = _ggml_images(files)
    for runtime, names in _RUNTIMES:
        if any(contains(path, names) for path in images):
            return runtime
    return find.NONE if images else None


def _ggml_images(files: Iterable[str]) -> list[str]:
    """Return the compiled files, or none if ggml is not in them: the llama-cli that was named
    may be a script or a program that starts another one."""
    images = [path for path in files if is_executable_image(path)]
    return images if any(contains(path, (b"ggml_",)) for path in images) else []


def knows_name(files: Iterable[str], name: str) -> bool | None:
    """Return whether a file holds ``name``, of a tensor type or an architecture, as a whole C
    string; None if no file is compiled code of ggml."""
    images = _ggml_images(files)
    mark = name.encode() + b"\0"
    return any(contains(path, (mark,)) for path in images) if images else None


def contains(path: str, marks: Iterable[bytes]) -> bool:
    """Return whether the file holds any of the ``marks``; False if it cannot be read."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(data.find(mark) >= 0 for mark in marks)
    except (OSError, ValueError):
        return False
