"""Setting the governor for a run: it is back after every way in which a run can end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitnet_tuning import demo
from bitnet_tuning.governor_record import Ledger
from bitnet_tuning.machine.clock import Policy, read_policies
from bitnet_tuning.machine.root import Root
from tests.engines import FakeEngine
from tests.machines import CPU, Machine
from tests.processes import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX processes")

REPO = Path(__file__).resolve().parents[1]
SECONDS = 30.0
MIXED = {0: "powersave", 1: "schedutil", 2: "powersave", 3: "performance", 4: "ondemand"}
ALL_SET = dict.fromkeys(MIXED, "performance")
BOOT = "proc/sys/kernel/random/boot_id"

DRIVER = """\
import os, signal, sys
sys.path.insert(0, {repo!r})
{before}
from bitnet_tuning.cli.run_optimized import main
sys.exit(main(sys.argv[2:], root=sys.argv[1]))
"""


class Computer:
    """A fake machine with mixed governors, and an engine to run on it."""

    def __init__(self, path: Path, fake: FakeEngine, home: Path) -> None:
        self.machine = Machine(path).regular(5).governors(MIXED)
        self.machine.write(BOOT, "11111111-aaaa")
        self.fake = fake
        self.home = home
        self.started: list[subprocess.Popen[str]] = []

    def governors(self) -> dict[int, str]:
        files = {
            cpu: self.machine.path / f"{CPU}/cpu{cpu}/cpufreq/scaling_governor" for cpu in MIXED
        }
        return {cpu: file.read_text().removesuffix("\n") for cpu, file in files.items()}

    def start(
        self, *flags: str, before: str = "", flag: str = "--set-governor", **variables: str
    ) -> subprocess.Popen[str]:
        code = DRIVER.format(repo=str(REPO), before=before)
        named = ("--engine", str(self.fake.cli), "-m", demo.I2_S, "-p", "hello", "-t", "1")
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.machine.path), *named, flag, *flags],
            env={**os.environ, "BITNET_TUNING_HOME": str(self.home), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def sleeper(self, *flags: str, **how: str) -> subprocess.Popen[str]:
        """A run whose engine has printed its text and goes on for long."""
        process = self.start(*flags, FAKE_SLEEP="60", **how)
        assert process.stdout is not None
        assert process.stdout.readline() == "hello and more text\n"
        return process

    def run(self, *flags: str, **how: str) -> tuple[int, list[str]]:
        """The exit code, and what the launcher said of the governor."""
        return self.end(self.start(*flags, **how))

    def end(self, process: subprocess.Popen[str]) -> tuple[int, list[str]]:
        _, log = process.communicate(timeout=SECONDS)
        assert "this is a fault of" not in log
        said = [line for line in log.splitlines() if line.startswith("bitnet-tuning: ")]
        said = [line.removeprefix("bitnet-tuning: ") for line in said]
        return process.returncode, [line for line in said if "governor" in line]

    def engine_of(self, process: subprocess.Popen[str]) -> int:
        (found,) = [run for run in self.fake.prompts() if run["ppid"] == process.pid]
        return int(found["pid"])

    def guardian_of(self, process: subprocess.Popen[str]) -> int:
        children = [child.pid for child in psutil.Process(process.pid).children()]
        (found,) = set(children) - {self.engine_of(process)}
        return found

    @property
    def record_file(self) -> Path:
        return Path(Ledger(str(self.machine.path), str(self.home)).record)

    def record(self) -> dict[str, Any] | None:
        """What is kept of this machine while a run has set the governor."""
        try:
            record: dict[str, Any] = json.loads(self.record_file.read_text())
        except FileNotFoundError:
            return None
        return record


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[FakeEngine, Path]:
    """An engine with its records: to learn what it can takes longer than a run."""
    folder = tmp_path_factory.mktemp("shared")
    return FakeEngine(folder / "checkout"), folder / "home"


@pytest.fixture
def computer(tmp_path: Path, shared: tuple[FakeEngine, Path]) -> Iterator[Computer]:
    made = Computer(tmp_path / "root", *shared)
    yield made
    for process in made.started:
        process.kill()
        process.communicate()


def set_by(computer: Computer) -> dict[str, str]:
    """What the policies that were set had before."""
    record = computer.record()
    assert record is not None
    governors: dict[str, str] = record["governors"]
    return governors


def ended(process: int) -> bool:
    """Also where nobody asked for its exit code yet."""
    return not psutil.pid_exists(process) or psutil.Process(process).status() == "zombie"


# How a run can end


def test_it_is_set_while_the_engine_runs_and_said(computer: Computer) -> None:
    process = computer.sleeper()
    assert computer.governors() == ALL_SET
    process.send_signal(signal.SIGTERM)
    code, said = computer.end(process)
    assert code == 128 + signal.SIGTERM
    assert computer.governors() == MIXED
    assert said == [
        "governor performance on CPUs 0-4 until the run ends, "
        "then ondemand and powersave and schedutil again"
    ]


@pytest.mark.parametrize(
    ("behaviour", "code"), [({}, 0), ({"FAKE_EXIT": "7"}, 7), ({"FAKE_KILL": "9"}, 137)]
)
@pytest.mark.parametrize("flags", [(), ("--performance-mode", "--stats"), ("--quiet",)])
def test_back_after_the_engines_end(
    computer: Computer, behaviour: dict[str, str], code: int, flags: tuple[str, ...]
) -> None:
    assert computer.run(*flags, **behaviour)[0] == code
    assert computer.governors() == MIXED
    assert computer.record() is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
@pytest.mark.parametrize("to_all", [False, True])
def test_back_when_a_signal_has_ended_the_run(
    computer: Computer, number: signal.Signals, to_all: bool
) -> None:
    """Also one that a terminal would send to every process of its group."""
    process = computer.sleeper()
    (os.killpg if to_all else os.kill)(process.pid, number)
    assert computer.end(process)[0] == (130 if number == signal.SIGINT else 128 + number)
    assert computer.governors() == MIXED


def test_back_when_the_engine_was_killed(computer: Computer) -> None:
    process = computer.sleeper()
    os.kill(computer.engine_of(process), signal.SIGKILL)
    assert computer.end(process)[0] == 137
    assert computer.governors() == MIXED


def test_back_soon_after_the_launcher_was_killed(computer: Computer) -> None:
    process = computer.sleeper()
    process.kill()
    computer.end(process)  # nothing keeps its pipes open
    until(lambda: computer.governors() == MIXED)
    until(lambda: computer.record() is None)


def test_no_signal_but_one_ends_the_guardian(computer: Computer) -> None:
    process = computer.sleeper()
    guardian = computer.guardian_of(process)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        os.kill(guardian, number)
    process.kill()
    until(lambda: computer.governors() == MIXED)


def test_back_when_the_guardian_was_killed(computer: Computer) -> None:
    process = computer.sleeper()
    os.kill(computer.guardian_of(process), signal.SIGKILL)
    assert computer.governors() == ALL_SET
    process.send_signal(signal.SIGINT)
    assert computer.end(process)[0] == 130
    assert computer.governors() == MIXED
    assert computer.record() is None


def test_back_when_the_engine_cannot_be_started(computer: Computer) -> None:
    broken = (
        "from bitnet_tuning.launch import posix\nposix.os.posix_spawnp = lambda *_, **__: 1 // 0"
    )
    missing = broken.replace("1 // 0", "os.stat('/nowhere')")
    process = computer.start(before=missing)
    assert computer.end(process)[0] == 4
    assert computer.governors() == MIXED
    process = computer.start(before=broken)
    _, log = process.communicate(timeout=SECONDS)
    assert process.returncode == 1 and "ZeroDivisionError" in log
    assert computer.governors() == MIXED


def test_back_when_the_launcher_is_interrupted_on_its_own(computer: Computer) -> None:
    """Ctrl-C where no engine runs that it could be passed on to."""
    wait = "from bitnet_tuning.launch import run as launch\nlaunch.run = lambda _: os.kill(os.getpid(), 2)"
    assert computer.run(before=wait)[0] == 130
    assert computer.governors() == MIXED


# Several runs at once


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_last_of_two_runs_puts_it_back(
    computer: Computer, first: int, number: signal.Signals
) -> None:
    both = [computer.sleeper(), computer.sleeper()]
    guardian = computer.guardian_of(both[first])
    both[first].send_signal(number)
    computer.end(both[first])
    until(lambda: ended(guardian))
    assert computer.governors() == ALL_SET
    both[1 - first].send_signal(number)
    computer.end(both[1 - first])
    until(lambda: computer.governors() == MIXED)


def test_runs_on_different_cpus_share_what_was_before(computer: Computer) -> None:
    computer.machine.affinity("0-1")
    first = computer.sleeper()
    assert computer.governors() == {**MIXED, 0: "performance", 1: "performance"}
    computer.machine.affinity("1-4")
    second = computer.sleeper()
    assert computer.governors() == ALL_SET
    for process in (first, second):
        process.send_signal(signal.SIGTERM)
        computer.end(process)
    assert computer.governors() == MIXED


def test_many_runs_that_come_and_go(computer: Computer) -> None:
    """Some start while others put everything back; one in three is killed."""
    computer.run()  # the engine is known from now on
    for _ in range(3):
        running = [computer.start(FAKE_SLEEP=f"0.{index}") for index in range(5)]
        for process in running[::3]:
            time.sleep(0.15)
            process.kill()
        for process in running:
            computer.end(process)
    until(lambda: computer.record() is None)
    assert computer.governors() == MIXED


# What is left behind


@pytest.fixture
def left_behind(computer: Computer) -> Computer:
    """Launcher and guardian were killed."""
    process = computer.sleeper()
    guardian = computer.guardian_of(process)
    os.kill(guardian, signal.SIGKILL)
    process.kill()
    computer.end(process)
    assert computer.governors() == ALL_SET
    assert computer.record() is not None
    return computer


def test_the_next_run_goes_by_what_a_killed_one_left(left_behind: Computer) -> None:
    _, said = left_behind.run()
    assert "an earlier run was killed" in said[0]
    assert left_behind.governors() == MIXED
    assert left_behind.record() is None


def test_the_doctor_tells_what_a_killed_run_left(left_behind: Computer) -> None:
    def advice() -> str:
        command = [sys.executable, "-m", "bitnet_tuning", "doctor", "--json", "--root"]
        done = subprocess.run(
            [*command, str(left_behind.machine.path)],
            env={**os.environ, "BITNET_TUNING_HOME": str(left_behind.home)},
            cwd=REPO,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        findings = {it["name"]: it for it in json.loads(done.stdout)["findings"]}
        return f"{findings['governor']['text']}; {findings['governor']['advice']}"

    assert "it was ondemand, powersave, schedutil; the next run with --set-governor" in advice()
    assert left_behind.record() is not None
    process = left_behind.sleeper()
    assert "killed" not in advice(), "it is in use"
    process.send_signal(signal.SIGTERM)
    left_behind.end(process)
    assert "killed" not in advice()


def test_after_another_start_of_the_kernel_a_record_says_nothing(left_behind: Computer) -> None:
    left_behind.machine.write(BOOT, "22222222-bbbb")
    assert left_behind.run()[1] == ["governor performance already on CPUs 0-4: nothing to set"]
    assert left_behind.governors() == ALL_SET


def test_what_was_set_by_hand_since_is_what_was_before(left_behind: Computer) -> None:
    left_behind.machine.governors({0: "conservative"})
    left_behind.run()
    assert left_behind.governors() == {**MIXED, 0: "conservative"}


def test_a_damaged_record_is_set_aside(left_behind: Computer) -> None:
    left_behind.record_file.write_text("{")
    code, said = left_behind.run()
    assert (code, len(said)) == (0, 2)
    assert "damaged" in said[1]
    left_behind.machine.governors(MIXED)
    assert left_behind.run()[0] == 0
    assert left_behind.governors() == MIXED


def test_a_record_names_no_other_file(left_behind: Computer, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "scaling_governor").write_text("performance\n")
    record = left_behind.record()
    assert record is not None
    record["governors"][os.path.relpath(victim, left_behind.machine.path)] = "powersave"
    record["governors"][f"{CPU}/cpu0/cpufreq"] = "many words"
    left_behind.record_file.write_text(json.dumps(record))
    left_behind.run()
    assert (victim / "scaling_governor").read_text() == "performance\n"
    assert left_behind.governors() == {**MIXED, 0: "performance"}


def test_somebody_elses_later_change_is_respected(computer: Computer) -> None:
    process = computer.sleeper()
    computer.machine.governors({1: "conservative"})
    process.send_signal(signal.SIGTERM)
    computer.end(process)
    assert computer.governors() == {**MIXED, 1: "conservative"}


def test_back_when_the_state_folder_was_removed_meanwhile(
    computer: Computer, tmp_path: Path
) -> None:
    computer.home = tmp_path / "home"
    process = computer.sleeper()
    computer.home.rename(tmp_path / "moved")
    process.send_signal(signal.SIGTERM)
    computer.end(process)
    assert computer.governors() == MIXED


# What is not permitted is a line, and the run goes on


def refused(computer: Computer, **how: str) -> str:
    before = {path: path.read_bytes() for path in computer.machine.path.rglob("scaling_governor")}
    code, said = computer.run(**how)
    assert code == 0
    (line,) = said
    assert {path: path.read_bytes() for path in before} == before
    return line


def test_under_wsl_windows_sets_the_clock(computer: Computer) -> None:
    computer.machine.kernel("5.15.90.1-microsoft-standard-WSL2")
    line = refused(computer)
    assert "left as it is" in line and "Windows" in line and "powercfg" in line


def test_where_none_is_visible(computer: Computer) -> None:
    for path in computer.machine.path.rglob("scaling_governor"):
        path.unlink()
    assert "virtual machine" in refused(computer)


def test_where_the_kernel_does_not_offer_it(computer: Computer) -> None:
    names = "cpufreq/scaling_available_governors"
    computer.machine.per_cpu(names, dict.fromkeys(MIXED, "powersave schedutil"))
    computer.machine.governors({3: "powersave"})
    assert "offers powersave, schedutil" in refused(computer)


def test_where_only_some_cpus_can_have_it(computer: Computer) -> None:
    computer.machine.per_cpu("cpufreq/scaling_available_governors", {0: "powersave userspace"})
    process = computer.sleeper()
    assert computer.governors() == {**ALL_SET, 0: "powersave"}
    process.send_signal(signal.SIGTERM)
    _, said = computer.end(process)
    assert said[0].startswith("the governor of CPUs 0 is left as it is")
    assert computer.governors() == MIXED


def test_without_the_permission_the_command_is_told(computer: Computer) -> None:
    for path in computer.machine.path.rglob("scaling_governor"):
        path.chmod(0o444)
    pretend = "os.access = lambda path, mode: mode != os.W_OK" if os.geteuid() == 0 else ""
    computer.machine.governors({3: "powersave"})
    line = refused(computer, before=pretend)
    assert "root" in line and "sudo tee" in line


def test_where_it_cannot_be_kept_what_was_before(computer: Computer, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    computer.home = tmp_path / "file" / "home"
    assert "left as it is" in refused(computer)


def test_where_a_record_cannot_be_written(computer: Computer) -> None:
    full = (
        "from bitnet_tuning.store import state\nwrite = state.write_atomically\n"
        "def no_space(path, data):\n    if 'governor' in path: raise OSError(28, 'No space left')\n"
        "    write(path, data)\n"
        "state.write_atomically = no_space"
    )
    assert "No space left" in refused(computer, before=full)
    assert computer.run()[0] == 0


def test_where_everything_is_set_already(computer: Computer) -> None:
    computer.machine.governors(ALL_SET)
    assert refused(computer) == "governor performance already on CPUs 0-4: nothing to set"


def test_where_the_kernel_does_not_take_it(computer: Computer) -> None:
    deaf = "from bitnet_tuning import governor\ngovernor._write = lambda *_: False"
    code, said = computer.run(before=deaf)
    assert (code, computer.governors()) == (0, MIXED)
    assert "CPUs 0-2,4 stays" in said[-1]


def test_what_cannot_be_put_back_is_told_and_kept(computer: Computer) -> None:
    stuck = (
        "from bitnet_tuning import governor\nwrite = governor._write\n"
        "governor._write = lambda r, f, g: g != 'schedutil' and write(r, f, g)"
    )
    code, said = computer.run(before=stuck)
    assert code == 0
    assert computer.governors() == {**MIXED, 1: "performance"}
    assert said[-1].startswith("the governor could not be put back: echo schedutil > ")
    assert set_by(computer) == {f"{CPU}/cpu1/cpufreq": "schedutil"}
    computer.run()
    assert computer.governors() == MIXED


def test_quiet_hides_what_was_done_not_what_was_refused(computer: Computer) -> None:
    assert computer.run("--quiet")[1] == []
    computer.machine.kernel("5.15.90.1-microsoft-standard-WSL2")
    assert len(computer.run("--quiet")[1]) == 1


@pytest.mark.parametrize("flag", ["--performance-mode", "--seed=1"])
def test_unasked_it_is_told_how_and_nothing_is_done(computer: Computer, flag: str) -> None:
    line = refused(computer, flag=flag)
    assert line.startswith("governor powersave,")
    assert "`echo performance | sudo tee /sys/" in line and "--set-governor" in line


def test_a_dry_run_sets_nothing(computer: Computer) -> None:
    assert (
        computer.run("--dry-run", before="import bitnet_tuning.governor as it; it.held = None")[0]
        == 0
    )
    assert computer.governors() == MIXED


# Policies


def test_cpus_that_share_a_policy_by_links(computer: Computer) -> None:
    """As on a kernel of today."""
    machine = computer.machine
    for cpu in (0, 1):
        machine.remove(f"{CPU}/cpu{cpu}/cpufreq/scaling_governor")
        folder = machine.path / f"{CPU}/cpu{cpu}/cpufreq"
        folder.rmdir()
        folder.symlink_to("../cpufreq/policy0")
    machine.write(f"{CPU}/cpufreq/policy0/scaling_governor", "schedutil")
    machine.write(f"{CPU}/cpufreq/policy0/scaling_available_governors", "performance schedutil")
    offered = frozenset(("performance", "schedutil"))
    assert read_policies(Root(str(machine.path)), frozenset((0, 1, 2))) == (
        Policy(f"{CPU}/cpufreq/policy0", frozenset((0, 1)), "schedutil", offered),
        Policy(f"{CPU}/cpu2/cpufreq", frozenset((2,)), "powersave", frozenset()),
    )
    process = computer.sleeper()
    assert computer.governors() == ALL_SET
    assert f"{CPU}/cpufreq/policy0" in set_by(computer)
    process.kill()
    until(lambda: computer.governors() == {**MIXED, 0: "schedutil"})


def test_a_link_that_leads_elsewhere_keeps_its_own_name(computer: Computer, tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "scaling_governor").write_text("powersave\n")
    computer.machine.remove(f"{CPU}/cpu0/cpufreq/scaling_governor")
    (computer.machine.path / f"{CPU}/cpu0/cpufreq").rmdir()
    (computer.machine.path / f"{CPU}/cpu0/cpufreq").symlink_to(tmp_path / "away")
    (policy,) = read_policies(Root(str(computer.machine.path)), frozenset((0,)))
    assert policy.folder == f"{CPU}/cpu0/cpufreq"
