"""Starting engines: what they receive, which signals reach them, how they end."""

from __future__ import annotations

import errno
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.errors import ShortageError, UnsupportedError
from bitnet_tuning.launch.background import capture
from bitnet_tuning.launch.run import run
from bitnet_tuning.launch.start import Launch, Lifeline
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.processes import SECONDS, alive, marked, state, still_running, until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")

Popen = subprocess.Popen
Start = Callable[..., "Popen[bytes]"]

HEAD = f"""
import fcntl, os, signal, subprocess, sys
sys.path.insert(0, {str(REPOSITORY)!r})
from bitnet_tuning.launch import background, run as launch, start as ties
from bitnet_tuning.launch.start import Launch
"""
WITHOUT_KERNEL = "del fcntl.F_SETSIG"
"""Makes the lifeline work as on systems other than Linux, where a process watches it."""


@pytest.fixture(autouse=True)
def mark(tmp_path: Path) -> Iterator[str]:
    """A mark on every program of the test; those that a failure leaves behind are killed."""
    with marked(str(tmp_path)):
        yield str(tmp_path)


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "checkout")


@pytest.fixture
def popen() -> Iterator[Start]:
    """Start a command in a session of its own, and kill it after the test."""
    with ExitStack() as stack:

        def begin(
            command: list[str], stdin: int = subprocess.DEVNULL, **names: str
        ) -> Popen[bytes]:
            pipe = subprocess.PIPE
            process = Popen(
                command,
                env={**os.environ, **names},
                stdin=stdin,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield begin


@pytest.fixture
def start(popen: Start) -> Start:
    """Start run_inference.py as a user does."""

    def begin(
        engine: FakeEngine, *flags: str, stdin: int = subprocess.DEVNULL, **behaviour: object
    ) -> Popen[bytes]:
        return popen([*command(engine), *flags], stdin, **engine.environment(**behaviour))

    return begin


@pytest.fixture
def script(popen: Start) -> Start:
    """Start a Python script that calls the package."""
    return lambda code, **names: popen([sys.executable, "-c", HEAD + code], **names)


def command(engine: FakeEngine) -> list[str]:
    program = str(REPOSITORY / "run_inference.py")
    return [sys.executable, program, "-m", demo.I2_S, "--engine", str(engine.cli)]


def read_until(process: Popen[bytes], text: bytes) -> bytes:
    """Read the standard output of a process until ``text`` has come."""
    assert process.stdout is not None
    shown = b""
    while text not in shown:
        assert select.select([process.stdout], [], [], SECONDS)[0], "no output came"
        data = os.read(process.stdout.fileno(), 1 << 16)
        assert data, "the output ended"
        shown += data
    return shown


def finish(process: Popen[bytes], text: bytes | None = None) -> tuple[str, str]:
    """Return what a process prints until it ends; ``text`` is the rest of its input."""
    output, log = process.communicate(text, SECONDS)
    return output.decode(), log.decode()


def noted(note: Path) -> int:
    """Wait until a program has written its process id to a file, and return it."""
    until(lambda: note.exists() and note.read_text().endswith("\n"))
    return int(note.read_text())


def engine_pid(engine: FakeEngine) -> int:
    return int(engine.prompts()[-1]["pid"])


@pytest.fixture
def sleeper(engine: FakeEngine, start: Start) -> Popen[bytes]:
    """A launcher whose engine has printed its text and then sleeps."""
    process = start(engine, "-p", "hello", sleep=10 * SECONDS)
    read_until(process, b"hello and more text\n")
    return process


@pytest.fixture
def wrapped(tmp_path: Path) -> tuple[str, Path]:
    """A script that runs a sleeping program, and the file in which that notes its process id."""
    note, wrapper = tmp_path / "noted", tmp_path / "llama-cli"
    behind = f"echo out; echo $$ > {note}; exec sleep 600"
    wrapper.write_text(f"#!/bin/sh\nsh -c {shlex.quote(behind)}\ntrue\n")
    wrapper.chmod(0o755)
    return str(wrapper), note


# What the engine receives


def test_the_engine_gets_arguments_variables_affinity_and_no_input(engine: FakeEngine) -> None:
    before = os.sched_getaffinity(0), os.nice(0)
    cpu = min(before[0])
    argv = (str(engine.cli), "-m", "x", "-p", 'it\'s "quoted"\n--')
    outcome = run(Launch(argv, {"OMP_NUM_THREADS": "3"}, cpus=frozenset((cpu,))))
    (started,) = engine.prompts()
    assert outcome.code == 0
    assert started["argv"][1:] == list(argv[1:])
    assert started["env"]["OMP_NUM_THREADS"] == "3"
    assert started["cpus"] == [cpu]
    assert started["stdin"] == "/dev/null"
    assert (os.sched_getaffinity(0), os.nice(0)) == before, "the launcher keeps its own"


@linux
def test_the_engine_inherits_no_handles(engine: FakeEngine) -> None:
    def inheritable(handle: int) -> bool:
        try:
            return os.get_inheritable(handle)
        except OSError:
            return False

    run(Launch((str(engine.cli), "-m", "x", "-p", "a"), {}))
    (started,) = engine.prompts()
    handed_down = {int(name) for name in os.listdir("/proc/self/fd") if inheritable(int(name))}
    own = set(started["fds"]) - {0, 1, 2} - handed_down
    assert len(own) <= 2, "only its lifeline and the handle with which it lists these"


@linux
@pytest.mark.parametrize(
    ("number", "kept"), [(signal.SIGPIPE, False), (signal.SIGINT, False), (signal.SIGHUP, True)]
)
def test_of_ignored_signals_only_some_are_ignored_by_the_engine(
    capfd: pytest.CaptureFixture[str], number: signal.Signals, kept: bool
) -> None:
    """Python ignores SIGPIPE and a script's background job SIGINT, but nohup means SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        run(Launch(("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"), {}))
    finally:
        signal.signal(number, before)
    masks = dict(line.split(":") for line in capfd.readouterr().out.splitlines())
    assert bool(int(masks["SigIgn"], 16) & 1 << (number - 1)) is kept
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert int(masks["SigBlk"], 16) == sum(1 << (each - 1) for each in blocked)


def test_the_exit_code_is_right_even_if_sigchld_is_ignored(script: Start) -> None:
    process = script("""
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
sys.exit(launch.run(Launch(("sh", "-c", "exit 7"), {})).code)
""")
    finish(process)
    assert process.returncode == 7


@pytest.mark.parametrize("path", ["", "{folder}"])
def test_the_start_does_not_depend_on_the_search_path(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The program that leads the engine's process group is found by its whole path."""
    wrapper = tmp_path / "true"
    wrapper.write_text(f"#!/bin/sh\necho > {tmp_path}/called\n")
    wrapper.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path.format(folder=tmp_path))
    argv = (sys.executable, str(engine.cli), "-m", "x", "-p", "a")
    assert run(Launch(argv, {})).code == 0
    assert not (tmp_path / "called").exists()


def refuse(*_: object, **__: object) -> None:
    raise PermissionError


def test_the_engine_has_its_own_group_even_if_no_program_can_lead_it(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_spawn", refuse)
    monkeypatch.setenv("FAKE_KILL", str(int(signal.SIGABRT)))
    outcome = run(Launch((str(engine.cli), "-m", "x", "-p", "a"), {}))
    assert outcome.code == 128 + signal.SIGABRT
    assert engine.prompts()[-1]["pgid"] != os.getpgrp()


def test_closed_standard_streams_do_no_harm(engine: FakeEngine) -> None:
    for closed in ("<&-", ">&-", "<&- >&- 2>&-"):
        line = f"{shlex.join(command(engine))} -p a {closed}"
        assert subprocess.run(["sh", "-c", line], timeout=SECONDS, check=False).returncode == 0
        assert engine.prompts()[-1]["stdin"] == "/dev/null"
    assert len(engine.prompts()) == 3


# How a run ends


def test_the_exit_code_is_the_engines(engine: FakeEngine, start: Start) -> None:
    process = start(engine, "-p", "a", exit=77)
    finish(process)
    assert process.returncode == 77


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "memory"), (signal.SIGABRT, "AVX2")]
)
def test_death_by_a_signal_is_explained(
    engine: FakeEngine, start: Start, number: signal.Signals, words: str
) -> None:
    finish(start(engine, "-p", "a"))  # an engine that dies when it is probed is refused
    process = start(engine, "-p", "a", kill=int(number))
    _, log = finish(process)
    assert process.returncode == 128 + number
    (line,) = [text for text in log.splitlines() if "killed by" in text]
    assert number.name in line
    assert words in line


def test_a_program_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    plain = tmp_path / "llama-cli"
    plain.write_text("no program")
    with pytest.raises(UnsupportedError, match="chmod"):
        run(Launch((str(plain),), {}))
    plain.write_bytes(b"\x7fELF of nothing")
    plain.chmod(0o755)
    with pytest.raises(UnsupportedError, match="format"):
        run(Launch((str(plain),), {}))


def test_a_program_that_cannot_be_tied_is_not_executed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "posix_spawn", refuse)
    monkeypatch.setattr(Lifeline, "tie", refuse)
    with pytest.raises(UnsupportedError, match="cannot start"):
        run(Launch(("echo", "executed"), {}))
    assert capture(("echo", "executed")).code == 127
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN])
def test_what_this_process_lacks_is_no_fault_of_the_program(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def lack(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for module, name in ((os, "pipe"), (subprocess, "Popen")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lack)
            with pytest.raises(ShortageError, match="cannot start echo: ") as caught:
                capture(("echo", "executed"))
            assert caught.value.remedy
            assert caught.value.exit_code == 4


def test_a_closed_pipe_ends_the_engine_without_a_message(engine: FakeEngine) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{shlex.join(command(engine))} -p a | true"],
        env={**os.environ, **engine.environment(output="x" * 100_000)},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert b"killed by" not in done.stderr


def test_a_kept_log_is_shown_and_the_first_token_timed(
    engine: FakeEngine, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = (str(engine.cli), "-m", "x", "-p", "a prompt")
    outcome = run(Launch(argv, {}, keep_log=True, echo=b"a prompt"))
    shown = capfd.readouterr()
    assert shown.out == "a prompt and more text\n"
    assert shown.err.encode() == outcome.log
    assert b"eval time" in outcome.log
    assert outcome.first_token is not None and outcome.first_token > 0


def test_a_hidden_log_is_kept(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    argv = (str(engine.cli), "-m", "x", "-p", "a")
    outcome = run(Launch(argv, {}, keep_log=True, show_log=False))
    assert b"eval time" in outcome.log
    assert capfd.readouterr().err == ""


RELAYED = """
outcome = launch.run(Launch(("sh", "-c", sys.argv[1]), {}, keep_log=True, echo=b""))
print("the end", flush=True)
sys.exit(outcome.code)
"""


def relayed(engine: str, **streams: Any) -> Popen[bytes]:
    return Popen([sys.executable, "-c", HEAD + RELAYED, engine], **streams)


@linux
def test_a_log_that_cannot_be_written_costs_no_answer() -> None:
    with open("/dev/full", "wb") as full:
        done = relayed("echo log >&2; echo answer", stdout=subprocess.PIPE, stderr=full)
    assert done.communicate(timeout=SECONDS)[0] == b"answer\nthe end\n"
    assert done.returncode == 0


@pytest.mark.parametrize("left", ["sleep 300", "yes", "while sleep 0.05; do echo more; done"])
def test_a_run_ends_with_its_engine_whatever_that_leaves_behind(left: str) -> None:
    done = relayed(f"echo answer; {left} &", stdout=subprocess.PIPE)
    out = done.communicate(timeout=SECONDS)[0]
    assert done.returncode == 0 and b"answer\n" in out and out.endswith(b"the end\n")


def test_what_comes_through_a_script_after_its_end_is_part_of_the_answer() -> None:
    done = relayed("(sleep 0.02; echo late) & echo early", stdout=subprocess.PIPE)
    assert done.communicate(timeout=SECONDS)[0].startswith(b"early\n")


def test_a_non_blocking_standard_output_gets_the_whole_answer() -> None:
    near, far = os.pipe()
    os.set_blocking(far, False)
    done = relayed("head -c 1000000 /dev/zero", stdout=far)
    os.close(far)
    until(lambda: select.select([near], [], [], 0)[0])
    with open(near, "rb") as file:
        assert file.read() == bytes(1_000_000) + b"the end\n"
    assert done.wait(SECONDS) == 0


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_the_launcher_ends_the_engine(
    engine: FakeEngine, sleeper: Popen[bytes], number: signal.Signals
) -> None:
    sleeper.send_signal(number)
    finish(sleeper)
    assert sleeper.returncode == 128 + number
    assert not alive(engine_pid(engine))


@pytest.mark.parametrize("to_group", [False, True])
def test_each_signal_reaches_the_engine_exactly_once(
    engine: FakeEngine, script: Start, to_group: bool
) -> None:
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGTERM)
    caught = ",".join(str(int(number)) for number in numbers)
    argv = (str(engine.cli), "-m", "x", "-p", "hello")
    # An interactive engine may go on after SIGINT; any other is killed soon.
    code = f"sys.exit(launch.run(Launch({argv!r}, {{}}, interactive=True)).code)"
    process = script(code, FAKE_SLEEP=str(10 * SECONDS), FAKE_CATCH=caught)
    read_until(process, b"hello and more text\n")
    seen = engine.prompts()[-1]
    for number in numbers[:-1]:
        (os.killpg if to_group else os.kill)(process.pid, number)
        until(lambda number=number: number.name in engine.events(seen))  # type: ignore[misc]
    # The last one marks the end: Python handles pending signals in the order of their numbers.
    process.send_signal(numbers[-1])
    until(lambda: numbers[-1].name in engine.events(seen))
    assert engine.events(seen) == [number.name for number in numbers]
    os.kill(seen["pid"], signal.SIGKILL)
    finish(process)
    assert process.returncode == 137


def test_an_engine_that_hangs_after_an_interrupt_is_killed(
    engine: FakeEngine, script: Start
) -> None:
    flags = [*command(engine)[2:], "-p", "hello"]
    process = script(
        f"""
from bitnet_tuning.cli.run import main
launch.INTERRUPT_GRACE = 1
sys.exit(main({flags!r}))
""",
        **engine.environment(sleep=10 * SECONDS, catch=int(signal.SIGINT)),
    )
    read_until(process, b"hello and more text\n")
    process.send_signal(signal.SIGINT)
    _, log = finish(process)
    assert process.returncode == 130
    assert "was killed" in log
    assert not alive(engine_pid(engine))


@linux
def test_stop_and_continue_are_passed_on(engine: FakeEngine, sleeper: Popen[bytes]) -> None:
    both = (engine_pid(engine), sleeper.pid)
    sleeper.send_signal(signal.SIGTSTP)
    until(lambda: [state(process) for process in both] == ["T", "T"])
    sleeper.send_signal(signal.SIGCONT)
    until(lambda: "T" not in [state(process) for process in both])
    assert all(alive(process) for process in both)


# Chats


@pytest.mark.parametrize(
    ("generation", "text"),
    [("bitnet", ""), ("bitnet", "one\ntwo\nlast without a newline"), ("mainline", "one\ntwo\n")],
)
def test_a_chat_ends_with_its_input(
    tmp_path: Path, start: Start, generation: str, text: str
) -> None:
    engine = FakeEngine(tmp_path / "checkout", generation)
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    output, _ = finish(process, text.encode())
    assert output.startswith("".join(f"\n> [{line}]" for line in text.splitlines()))
    assert "[]" not in output, "it went on without input"
    assert process.returncode == 0


def test_a_chat_gets_lines_longer_than_a_pipe_holds(engine: FakeEngine, start: Start) -> None:
    line = "x" * 200_000
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    output, _ = finish(process, f"{line}\nshort\n".encode())
    assert f"[{line}]" in output
    assert "[short]" in output


def test_the_end_of_a_chat_reaches_an_engine_behind_a_script(
    engine: FakeEngine, start: Start
) -> None:
    noting = "(open(os.path.join(HERE, 'interrupted'), 'w').close(), os._exit(130))"
    engine.cli.write_text(engine.cli.read_text().replace("os._exit(130)", noting))
    real = engine.cli.rename(engine.bin / "real")
    engine.cli.write_text(f'#!/bin/sh\n{real} "$@"\n')
    engine.cli.chmod(0o755)
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    output, _ = finish(process, b"one\n")
    assert "[one]" in output
    assert process.returncode == 0
    assert (engine.bin / "interrupted").exists()


def test_a_crash_at_the_end_of_a_chat_is_no_success(engine: FakeEngine, start: Start) -> None:
    engine.cli.write_text(engine.cli.read_text().replace("os._exit(130)", "os._exit(7)"))
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    finish(process, b"one\n")
    assert process.returncode == 7


def test_ctrl_d_ends_a_chat_at_a_terminal(engine: FakeEngine, start: Start) -> None:
    near, far = os.openpty()
    try:
        process = start(engine, "-p", "system", "-cnv", stdin=far)
        os.write(near, b"one\n")
        read_until(process, b"[one]")
        os.write(near, b"\x04")
        rest, _ = finish(process)
    finally:
        os.close(near)
        os.close(far)
    assert process.returncode == 0
    assert "[]" not in rest


def test_an_interrupted_chat_ends_with_130(engine: FakeEngine, start: Start) -> None:
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    read_until(process, b"> ")
    process.send_signal(signal.SIGINT)
    process.wait(SECONDS)
    assert process.returncode == 130


# Nothing outlives its launcher


@linux
def test_no_engine_outlives_a_killed_launcher(engine: FakeEngine, sleeper: Popen[bytes]) -> None:
    assert alive(engine_pid(engine))
    sleeper.kill()
    until(lambda: not alive(engine_pid(engine)))


@linux
@pytest.mark.parametrize("system", ["", WITHOUT_KERNEL], ids=["kernel", "watcher"])
@pytest.mark.parametrize(
    "way", ["launch.run(Launch(({0!r},), {{}}))", "background.capture(({0!r},))"]
)
def test_a_program_behind_a_script_does_not_outlive_a_killed_launcher(
    script: Start, wrapped: tuple[str, Path], way: str, system: str
) -> None:
    wrapper, note = wrapped
    process = script(f"{system}\n{way.format(wrapper)}")
    behind = noted(note)
    assert alive(behind)
    process.kill()
    until(lambda: not alive(behind))


WITHOUT_SPAWN = "def refuse(*_, **__): raise PermissionError\nos.posix_spawn = refuse\n"
WAYS = {
    "run": "launch.run(start)",
    "run without spawn": f"{WITHOUT_SPAWN}launch.run(start)",
    "run at a terminal": (
        "os.isatty = lambda handle: True; launch.run(start._replace(stdin='inherit'))"
    ),
    "capture": "background.capture(start.argv, seconds=600)",
    "serve": "with background.serve(start) as service: service.ended(600)",
}
BEFORE, AFTER = "before it is tied", "right after its start"
# "run" ties the group before there is a program in it.
MOMENTS = [
    (way, moment, system)
    for way in WAYS
    for moment in (BEFORE, AFTER)
    for system in ("", WITHOUT_KERNEL)
    if (way, moment, system) != ("run", BEFORE, "")
]
KILLED = """
launcher, spawn, tie = os.getpid(), os.posix_spawnp, ties.Lifeline.tie

def die(engine):
    with open({note!r}, "w") as file:
        file.write(f"{{engine}}\\n")
    os.kill(launcher, signal.SIGKILL)

def spawned(*args, **named):
    die(spawn(*args, **named))

class Popen(subprocess.Popen):
    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        die(self.pid)

def tied(self, engine):
    die(os.getpid())
    while os.getppid() == launcher:
        pass
    tie(self, engine)

if {before}:
    ties.Lifeline.tie = tied
else:
    os.posix_spawnp, subprocess.Popen = spawned, Popen
{system}
start = Launch(("sleep", "600"), {{}})
{way}
"""


@linux
@pytest.mark.parametrize(("way", "moment", "system"), MOMENTS)
def test_no_program_outlives_a_launcher_that_is_killed_while_it_starts_it(
    tmp_path: Path, script: Start, way: str, moment: str, system: str
) -> None:
    """The launcher dies between the fork and its first action on the new program."""
    note = tmp_path / "noted"
    code = KILLED.format(note=str(note), before=moment == BEFORE, system=system, way=WAYS[way])
    process = script(code)
    finish(process)
    assert process.returncode == -signal.SIGKILL
    until(lambda: not alive(noted(note)))


@linux
@pytest.mark.parametrize("system", ["", WITHOUT_KERNEL], ids=["kernel", "watcher"])
def test_nothing_is_left_after_a_run(script: Start, mark: str, system: str) -> None:
    process = script(f"""
{system}
code = launch.run(Launch(("sh", "-c", "exit 7"), {{}})).code
try:
    os.waitpid(-1, os.WNOHANG)
except ChildProcessError:
    sys.exit(code)
""")
    finish(process)
    assert process.returncode == 7, "no child is left to wait for"
    until(lambda: not still_running(mark))


# Captured programs


def test_a_program_that_hangs_or_is_missing_is_captured(engine: FakeEngine) -> None:
    late = capture((str(engine.cli), "--help"), {"FAKE_HANG": "help"}, 0.5)
    assert late.code is None
    missing = capture(("/nowhere/llama-cli",))
    assert missing.code == 127
    assert "nowhere" in missing.stderr


def test_a_captured_program_gets_variables_affinity_and_niceness(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_PLACES", "cores")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    before = os.sched_getaffinity(0), os.nice(0)
    capture(
        (str(engine.cli), "-m", "x", "-p", "a"),
        {"OMP_NUM_THREADS": "3"},
        unset=frozenset(("OMP_PLACES", "NEVER_SET")),
        cpus=frozenset((min(before[0]),)),
        nice=-1,
    )
    (started,) = engine.prompts()
    variables = started["env"]
    assert (variables["OMP_NUM_THREADS"], variables["OMP_PROC_BIND"]) == ("3", "true")
    assert "OMP_PLACES" not in variables
    assert started["cpus"] == [min(before[0])]
    assert started["nice"] in {before[1], before[1] - 1}, "a higher priority needs a privilege"
    assert started["stdin"] == "/dev/null"
    assert (os.sched_getaffinity(0), os.nice(0)) == before


@linux
def test_a_program_past_its_time_limit_is_killed_with_all_behind_it(
    wrapped: tuple[str, Path],
) -> None:
    wrapper, note = wrapped
    for seconds in (0.5, 5.0, SECONDS):  # a busy machine may need more time to start it
        done = capture((wrapper,), seconds=seconds)
        if note.exists() and note.read_text().endswith("\n"):
            break
    assert (done.code, done.stdout) == (None, "out\n")
    until(lambda: not alive(noted(note)))


@linux
def test_an_exception_kills_a_captured_program(wrapped: tuple[str, Path]) -> None:
    wrapper, note = wrapped
    captured = []

    def interrupt(process: int) -> None:
        noted(note)
        captured.append(process)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture((wrapper,), seconds=SECONDS, watch=interrupt)
    assert state(captured[0]) == "", "it was not waited for"
    until(lambda: not alive(noted(note)))
