"""Starting engines: what they receive, which signals reach them, how they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_tuning import demo
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.launch import background
from bitnet_tuning.launch import run as launch
from bitnet_tuning.launch import start as start_module
from bitnet_tuning.launch.program import Launch
from tests.engines import FakeEngine
from tests.processes import alive, until

REPO = Path(__file__).resolve().parent.parent
SECONDS = 20.0

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")


@pytest.fixture
def engine(tmp_path: Path) -> FakeEngine:
    return FakeEngine(tmp_path / "checkout")


def start(
    engine: FakeEngine, *flags: str, stdin: int = subprocess.DEVNULL, **behaviour: object
) -> subprocess.Popen[bytes]:
    """run_inference.py as a user starts it, in a session of its own."""
    command = [sys.executable, str(REPO / "run_inference.py"), "-m", demo.I2_S]
    return subprocess.Popen(
        [*command, "--engine", str(engine.cli), *flags],
        env={**os.environ, **engine.environment(**behaviour)},
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.fixture
def sleeper(engine: FakeEngine) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher whose engine has printed its text and goes on for long."""
    process = start(engine, "-p", "hello", sleep=60)
    assert process.stdout is not None
    assert process.stdout.readline() == b"hello and more text\n"
    yield process
    process.kill()
    process.communicate()


def inheritable(handle: int) -> bool:
    try:
        return os.get_inheritable(handle)
    except OSError:
        return False


def engine_run(engine: FakeEngine) -> dict[str, object]:
    return engine.prompts()[-1]


def test_the_engine_gets_arguments_variables_affinity_and_no_input(engine: FakeEngine) -> None:
    cpu = min(os.sched_getaffinity(0))
    argv = (str(engine.cli), "-m", "x", "-p", 'it\'s "quoted"\n--')
    outcome = launch.run(Launch(argv, {"OMP_NUM_THREADS": "3"}, cpus=frozenset((cpu,))))
    (run,) = engine.prompts()
    assert outcome.code == 0
    assert run["argv"][1:] == list(argv[1:])
    assert run["env"]["OMP_NUM_THREADS"] == "3"
    assert run["cpus"] == [cpu]
    assert run["stdin"] == "/dev/null"


def test_the_engine_inherits_no_handles(engine: FakeEngine) -> None:
    launch.run(Launch((str(engine.cli), "-m", "x", "-p", "a"), {}))
    (run,) = engine.prompts()
    handed_down = {int(name) for name in os.listdir("/proc/self/fd") if inheritable(int(name))}
    own = set(run["fds"]) - {0, 1, 2} - handed_down
    assert len(own) <= 2, "but for its lifeline and the handle with which it lists these"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_no_signal_stays_blocked_or_ignored(capfd: pytest.CaptureFixture[str]) -> None:
    """Python ignores SIGPIPE; an engine that inherited that would not end with its reader."""
    launch.run(Launch(("grep", "-E", "Sig(Blk|Ign)", "/proc/self/status"), {}))
    masks = dict(line.split(":") for line in capfd.readouterr().out.splitlines())
    ignored, blocked = int(masks["SigIgn"], 16), int(masks["SigBlk"], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)
    assert blocked == 0


def test_where_the_end_of_children_is_ignored_the_code_is_the_engines() -> None:
    code = f"""
import signal, sys
sys.path.insert(0, {str(REPO)!r})
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
from bitnet_tuning.launch import run as launch
sys.exit(launch.run(launch.Launch(("sh", "-c", "exit 7"), {{}})).code)
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=SECONDS, check=False)
    assert done.returncode == 7


@pytest.mark.parametrize("path", ["", "{folder}", "{folder}:/bin:/usr/bin"])
def test_the_start_does_not_depend_on_the_search_path(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """What leads the engine's process group is found by its whole path."""
    wrapper = tmp_path / "true"
    wrapper.write_text(f"#!/bin/sh\necho > {tmp_path}/called\nsleep 60\n")
    wrapper.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", path.format(folder=tmp_path))
    argv = (sys.executable, str(engine.cli), "-m", "x", "-p", "a")
    assert launch.run(Launch(argv, {})).code == 0
    assert not (tmp_path / "called").exists()


def test_without_the_program_that_leads_the_group_the_engine_has_its_own(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(start_module, "_TRUE", "/nowhere/true")
    outcome = launch.run(Launch(("sh", "-c", "ps -o pgid= -p $$; kill -6 $$"), {}))
    assert outcome.code == 128 + signal.SIGABRT
    assert int(capfd.readouterr().out) != os.getpgrp()


@pytest.mark.parametrize("code", [0, 1, 3, 77])
def test_the_exit_code_is_the_engines(engine: FakeEngine, code: int) -> None:
    process = start(engine, "-p", "a", exit=code)
    process.communicate(timeout=SECONDS)
    assert process.returncode == code


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGILL, "CPU"),
        (signal.SIGKILL, "memory"),
        (signal.SIGABRT, "AVX2"),
        (signal.SIGSEGV, "selftest"),
    ],
)
def test_death_by_a_signal_is_explained(
    engine: FakeEngine, number: signal.Signals, words: str
) -> None:
    start(engine, "-p", "a").communicate(timeout=SECONDS)  # what dies when asked is refused
    process = start(engine, "-p", "a", kill=int(number))
    _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 128 + number
    (line,) = [text for text in log.decode().splitlines() if "killed by" in text]
    assert number.name in line
    assert words in line


def test_a_program_that_cannot_be_executed_is_an_error(tmp_path: Path) -> None:
    plain = tmp_path / "llama-cli"
    plain.write_text("no program")
    with pytest.raises(UnsupportedError, match="chmod"):
        launch.run(Launch((str(plain),), {}))
    plain.write_bytes(b"\x7fELF of nothing")
    plain.chmod(0o755)
    with pytest.raises(UnsupportedError, match="format"):
        launch.run(Launch((str(plain),), {}))


def test_a_program_that_cannot_be_tied_is_not_executed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(start_module, "_TRUE", "/nowhere/true")
    monkeypatch.setattr(start_module.Lifeline, "tie", fail)
    with pytest.raises(UnsupportedError, match="cannot start"):
        launch.run(Launch(("echo", "executed"), {}))
    assert background.capture(("echo", "executed")).code == 127
    assert capfd.readouterr().out == ""


def test_interrupt_of_the_launcher_reaches_the_engine_once(
    engine: FakeEngine, sleeper: subprocess.Popen[bytes]
) -> None:
    sleeper.send_signal(signal.SIGINT)
    sleeper.communicate(timeout=SECONDS)
    assert sleeper.returncode == 130
    assert not alive(int(str(engine_run(engine)["pid"])))


@pytest.mark.parametrize("to_group", [False, True])
def test_each_signal_reaches_the_engine_exactly_once(engine: FakeEngine, to_group: bool) -> None:
    numbers = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
    caught = ",".join(str(int(number)) for number in numbers)
    process = start(engine, "-p", "hello", sleep=60, catch=caught)
    assert process.stdout is not None
    process.stdout.readline()
    for count, number in enumerate(numbers, 1):
        (os.killpg if to_group else os.kill)(process.pid, number)
        until(lambda count=count: len(engine.events(engine_run(engine))) >= count)  # type: ignore[misc]
    time.sleep(0.1)  # a second delivery would come now
    assert engine.events(engine_run(engine)) == [number.name for number in numbers]
    os.kill(int(str(engine_run(engine)["pid"])), signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_termination_is_passed_on(
    engine: FakeEngine, sleeper: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    sleeper.send_signal(number)
    sleeper.communicate(timeout=SECONDS)
    assert sleeper.returncode == 128 + number
    assert not alive(int(str(engine_run(engine)["pid"])))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="parent-death signal")
def test_no_engine_outlives_a_killed_launcher(
    engine: FakeEngine, sleeper: subprocess.Popen[bytes]
) -> None:
    child = int(str(engine_run(engine)["pid"]))
    assert alive(child)
    sleeper.kill()
    until(lambda: not alive(child))


def test_no_real_engine_outlives_a_killed_launcher_behind_a_script(tmp_path: Path) -> None:
    """llama-cli may be a script around the real one."""
    note = tmp_path / "engine"
    wrapper = tmp_path / "llama-cli"
    wrapper.write_text(f"#!/bin/sh\nsh -c 'echo $$ > {note}; sleep 60'\ntrue\n")
    wrapper.chmod(0o755)
    code = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from bitnet_tuning.launch import run as launch
launch.run(launch.Launch(({str(wrapper)!r},), {{}}))
"""
    launcher = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: note.exists() and note.read_text().strip() != "")
    process = int(note.read_text())
    assert alive(process)
    launcher.kill()
    launcher.wait()
    until(lambda: not alive(process))


STARTS = {
    "run": "launch.run(start)",
    "run without /bin/true": "ties._TRUE = '/nowhere/true'; launch.run(start)",
    "run at a terminal": (
        "os.isatty = lambda handle: True; launch.run(start._replace(stdin='inherit'))"
    ),
    "capture": "background.capture(start.argv, seconds=60)",
    "serve": "with background.serve(start) as service: service.ended(60)",
}
KILLED = """
import os, signal, subprocess, sys
sys.path.insert(0, {repo!r})
from bitnet_tuning.launch import background, run as launch, start as ties
from bitnet_tuning.launch.program import Launch

spawn, tie = os.posix_spawnp, ties.Lifeline.tie
launcher = os.getpid()

def die(engine):
    with open({note!r}, "w") as file:
        file.write(str(engine))
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

if {moment!r} == "before it is tied":
    ties.Lifeline.tie = tied
else:
    os.posix_spawnp, subprocess.Popen = spawned, Popen
if not {by_kernel!r}:
    ties.Lifeline._arm = lambda self: False
start = Launch((sys.executable, "-c", "import time; time.sleep(60)"), {{}})
{way}
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
@pytest.mark.parametrize("by_kernel", [True, False])
@pytest.mark.parametrize("moment", ["before it is tied", "right after the start"])
@pytest.mark.parametrize("way", STARTS)
def test_nothing_outlives_a_launcher_that_is_killed_while_it_starts_it(
    tmp_path: Path, way: str, moment: str, by_kernel: bool
) -> None:
    """The moments between the fork and the first thing that the launcher does with the child."""
    if (way, by_kernel, moment) == ("run", True, "before it is tied"):
        pytest.skip("the group is tied before there is an engine in it")
    note = tmp_path / "engine"
    known = {"repo": str(REPO), "note": str(note), "moment": moment, "by_kernel": by_kernel}
    code = KILLED.format(way=STARTS[way], **known)
    launcher = subprocess.run([sys.executable, "-c", code], timeout=SECONDS, check=False)
    assert launcher.returncode == -signal.SIGKILL
    until(lambda: not alive(int(note.read_text())))


def test_the_watcher_kills_where_the_kernel_does_not(tmp_path: Path) -> None:
    """The fall-back for other systems: the launcher dies, its watcher kills the engine."""
    note = tmp_path / "engine"
    code = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from bitnet_tuning.launch import background, run as launch, start as ties
ties.Lifeline._arm = lambda self: False
engine = "import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
launch.run(launch.Launch((sys.executable, "-c", engine), {{}}))
"""
    launcher = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: note.exists() and note.read_text() != "")
    process = int(note.read_text())
    assert alive(process)
    launcher.kill()
    launcher.wait()
    until(lambda: not alive(process))


def test_a_watcher_ends_with_its_engine(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start_module.Lifeline, "_arm", lambda self: False)
    assert launch.run(Launch((str(engine.cli), "-m", "x", "-p", "a"), {})).code == 0
    with pytest.raises(ChildProcessError):  # nobody is left to wait for
        os.waitpid(-1, os.WNOHANG)


def test_the_launcher_keeps_its_own_affinity_and_niceness(engine: FakeEngine) -> None:
    before = os.sched_getaffinity(0), os.nice(0)
    launch.run(
        Launch((str(engine.cli), "-m", "x", "-p", "a"), {}, cpus=frozenset((min(before[0]),)))
    )
    assert (os.sched_getaffinity(0), os.nice(0)) == before


def test_stop_and_continue_are_passed_on(
    engine: FakeEngine, sleeper: subprocess.Popen[bytes]
) -> None:
    def state(process: int) -> str:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]

    child = int(str(engine_run(engine)["pid"]))
    sleeper.send_signal(signal.SIGTSTP)
    until(lambda: state(child) == "T" and state(sleeper.pid) == "T")
    sleeper.send_signal(signal.SIGCONT)
    until(lambda: state(child) == "S" and state(sleeper.pid) == "S")


def test_a_closed_pipe_ends_the_engine_without_a_word(engine: FakeEngine) -> None:
    script = (
        f"{sys.executable} {REPO / 'run_inference.py'} -m {demo.I2_S} --engine {engine.cli} -p a"
    )
    done = subprocess.run(
        ["sh", "-c", f"{script} | true"],
        env={**os.environ, **engine.environment(output="x" * 100_000)},
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    assert b"killed by" not in done.stderr


@pytest.mark.parametrize("lines", [[], ["one"], ["one", "two", "three"]])
@pytest.mark.parametrize("generation", ["bitnet", "mainline"])
def test_a_chat_ends_with_its_input(tmp_path: Path, generation: str, lines: list[str]) -> None:
    engine = FakeEngine(tmp_path / "checkout", generation)
    model = demo.I2_S
    process = start(engine, "-p", "system", "-cnv", "-m", model, stdin=subprocess.PIPE)
    output, _ = process.communicate("".join(f"{line}\n" for line in lines).encode(), SECONDS)
    answers = "".join(f"\n> [{line}]" for line in lines)
    assert output.decode().startswith(answers)
    assert "[]" not in output.decode(), "it went on without input"
    assert process.returncode == 0


def test_a_chat_gets_its_last_line_without_a_newline(engine: FakeEngine) -> None:
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    output, _ = process.communicate(b"only", SECONDS)
    assert b"[only]" in output
    assert process.returncode == 0


def test_a_chat_gets_lines_longer_than_a_pipe_holds(engine: FakeEngine) -> None:
    line = b"x" * 200_000
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    output, _ = process.communicate(line + b"\nshort\n", SECONDS)
    assert b"[" + line + b"]" in output
    assert b"[short]" in output


def test_the_end_of_a_chat_reaches_an_engine_behind_a_script(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    noted = "(open(os.path.join(HERE, 'interrupted'), 'w').close(), os._exit(130))"
    engine.cli.write_text(engine.cli.read_text().replace("os._exit(130)", noted))
    real = engine.cli.rename(engine.bin / "real")
    engine.cli.write_text(f'#!/bin/sh\n{real} "$@"\n')
    engine.cli.chmod(0o755)
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    output, _ = process.communicate(b"one\n", SECONDS)
    assert b"[one]" in output
    assert process.returncode == 0
    assert (engine.bin / "interrupted").exists()


def test_a_crash_at_the_end_of_a_chat_is_no_success(tmp_path: Path) -> None:
    engine = FakeEngine(tmp_path / "checkout")
    text = engine.cli.read_text().replace("os._exit(130)", "os._exit(7)")
    engine.cli.write_text(text)
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    process.communicate(b"one\n", SECONDS)
    assert process.returncode == 7


def test_a_chat_at_a_terminal_ends_at_its_end(engine: FakeEngine) -> None:
    """Ctrl-D on an empty line; the terminal's own line editing serves."""
    near, far = os.openpty()
    process = start(engine, "-p", "system", "-cnv", stdin=far)
    os.close(far)
    os.write(near, b"one\n")
    assert process.stdout is not None
    shown = b""
    while b"[one]" not in shown:
        shown += os.read(process.stdout.fileno(), 100)
    os.write(near, b"\x04")
    rest, _ = process.communicate(timeout=SECONDS)
    os.close(near)
    assert process.returncode == 0
    assert b"[]" not in rest


def test_an_interrupted_chat_ends_with_130(engine: FakeEngine) -> None:
    process = start(engine, "-p", "system", "-cnv", stdin=subprocess.PIPE)
    until(lambda: bool(engine.prompts()))
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    process.wait(SECONDS)
    assert process.returncode == 130
    process.communicate()


def test_a_kept_log_is_shown_and_its_first_token_timed(
    engine: FakeEngine, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_SLEEP", "0.1")
    argv = (str(engine.cli), "-m", "x", "-p", "a prompt")
    outcome = launch.run(Launch(argv, {}, keep_log=True, echo=b"a prompt"))
    shown = capfd.readouterr()
    assert shown.out == "a prompt and more text\n"
    assert shown.err.encode() == outcome.log
    assert b"eval time" in outcome.log
    assert outcome.first_token is not None and 0 < outcome.first_token < SECONDS


def test_a_hidden_log_is_kept(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    argv = (str(engine.cli), "-m", "x", "-p", "a")
    outcome = launch.run(Launch(argv, {}, keep_log=True, show_log=False))
    assert b"eval time" in outcome.log
    assert capfd.readouterr().err == ""


def test_capture_survives_what_hangs_and_what_is_missing(engine: FakeEngine) -> None:
    late = background.capture((str(engine.cli), "--help"), {"FAKE_HANG": "help"}, 0.5)
    assert late.code is None
    missing = background.capture(("/nowhere/llama-cli",))
    assert missing.code == 127
    assert "nowhere" in missing.stderr


def test_a_captured_program_gets_variables_affinity_and_niceness(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_PLACES", "cores")
    monkeypatch.setenv("OMP_PROC_BIND", "true")
    before = os.sched_getaffinity(0), os.nice(0)
    background.capture(
        (str(engine.cli), "-m", "x", "-p", "a"),
        {"OMP_NUM_THREADS": "3"},
        unset=frozenset(("OMP_PLACES", "NEVER_SET")),
        cpus=frozenset((min(before[0]),)),
        nice=-1,
    )
    (run,) = engine.prompts()
    assert (run["env"]["OMP_NUM_THREADS"], run["env"]["OMP_PROC_BIND"]) == ("3", "true")
    assert "OMP_PLACES" not in run["env"]
    assert run["cpus"] == [min(before[0])]
    assert run["nice"] in {before[1], before[1] - 1}, "tried, where it takes a privilege"
    assert run["stdin"] == "/dev/null"
    assert (os.sched_getaffinity(0), os.nice(0)) == before


@pytest.fixture
def wrapped(tmp_path: Path) -> tuple[Path, Path]:
    """A script with a program behind it that sleeps, and where that notes its id."""
    note, script = tmp_path / "noted", tmp_path / "script"
    script.write_text(f"#!/bin/sh\nsh -c 'echo $$ > {note}; echo out; sleep 60'\ntrue\n")
    script.chmod(0o755)
    return script, note


def test_what_takes_too_long_is_killed_with_all_behind_it(wrapped: tuple[Path, Path]) -> None:
    script, note = wrapped
    started = time.monotonic()
    done = background.capture((str(script),), seconds=1)
    assert (done.code, done.stdout) == (None, "out\n")
    assert time.monotonic() - started < 3
    until(lambda: not alive(int(note.read_text())))


def test_an_exception_ends_what_is_captured(wrapped: tuple[Path, Path]) -> None:
    script, note = wrapped

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            background.capture((str(script),), seconds=30)
    finally:
        signal.signal(signal.SIGALRM, before)
    until(lambda: not alive(int(note.read_text())))
    with pytest.raises(ChildProcessError):  # nobody is left to wait for
        os.waitpid(-1, os.WNOHANG)


@pytest.mark.parametrize("by_kernel", [True, False])
def test_what_is_captured_does_not_outlive_a_killed_caller(
    wrapped: tuple[Path, Path], by_kernel: bool
) -> None:
    script, note = wrapped
    code = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
from bitnet_tuning.launch import background, run as launch, start as ties
if not {by_kernel}:
    ties.Lifeline._arm = lambda self: False
background.capture(({str(script)!r},), seconds=60)
"""
    caller = subprocess.Popen([sys.executable, "-c", code])
    until(lambda: note.exists() and note.read_text().strip() != "")
    process = int(note.read_text())
    assert alive(process)
    caller.kill()
    caller.wait()
    until(lambda: not alive(process))


def test_an_engine_that_hangs_at_an_interrupt_is_killed(engine: FakeEngine) -> None:
    process = start(engine, "-p", "hello", sleep=60, catch=int(signal.SIGINT))
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert b"did not end" in log
    assert not alive(int(str(engine_run(engine)["pid"])))


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_are_no_trouble(engine: FakeEngine, closed: str) -> None:
    script = f"{sys.executable} {REPO / 'run_inference.py'} -m {demo.I2_S} --engine {engine.cli}"
    done = subprocess.run(["sh", "-c", f"{script} -p a {closed}"], timeout=SECONDS, check=False)
    assert done.returncode == 0
    (run,) = engine.prompts()
    assert run["stdin"] == "/dev/null"
