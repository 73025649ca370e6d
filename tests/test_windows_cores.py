"""Asking Windows for the number of cores that WSL hides."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from bitnet_tuning import demo, prepare
from bitnet_tuning.cli import env as env_command
from bitnet_tuning.cli import host as host_command
from bitnet_tuning.doctor import gather as gather_module
from bitnet_tuning.machine import wsl
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.wsl import with_windows_cores
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.plan.threads import choose_threads
from tests.engines import FakeEngine
from tests.machines import Machine, x86_entries

pytestmark = pytest.mark.skipif(os.name == "nt", reason="the fake PowerShell is a script")

BRAND = "12th Gen Intel(R) Core(TM) i5-1235U"
"""A processor with 2 performance cores of two threads and 8 efficiency cores."""


class PowerShell:
    """A ``powershell.exe`` on PATH that prints an answer and counts how often it is started."""

    def __init__(self, folder: Path, answer: str = "10\r\n", then: str = "") -> None:
        folder.mkdir()
        self.starts = folder / "starts"
        self.program = folder / "powershell.exe"
        log = f'echo "$@" >> {shlex.quote(str(self.starts))}'
        self.program.write_text(f"#!/bin/sh\n{log}\nprintf %s {shlex.quote(answer)}\n{then}\n")
        self.program.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return self.starts.read_text().splitlines() if self.starts.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine in WSL that shows 10 hybrid cores as 6 cores of two threads."""
    made = Machine(tmp_path / "root").regular(6, threads=2)
    return made.cpuinfo(x86_entries(12, "avx2 fma f16c hypervisor", brand=BRAND)).kernel(
        "5.15.90.1-microsoft-standard-WSL2"
    )


@pytest.fixture
def boots(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the boots so far, on a machine without PowerShell."""
    ids = ["first"]
    folders = os.environ["PATH"].split(os.pathsep)
    folders = [each for each in folders if not (Path(each) / "powershell.exe").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join(folders))
    monkeypatch.setattr(wsl, "read_boot_id", lambda _: ids[-1])
    monkeypatch.setattr(wsl, "POWERSHELL", "/nowhere/powershell.exe")
    return ids


def installed(monkeypatch: pytest.MonkeyPatch, shell: PowerShell) -> PowerShell:
    monkeypatch.setenv("PATH", f"{shell.program.parent}{os.pathsep}{os.environ['PATH']}")
    return shell


def ask(host: Host) -> int | None:
    return with_windows_cores(host, "/", ask=True).windows_cores


def test_windows_is_asked_once(
    machine: Machine, boots: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = installed(monkeypatch, PowerShell(tmp_path / "bin"))
    host = machine.host()
    assert with_windows_cores(host, "/").windows_cores is None
    assert shell.asked == []
    assert (ask(host), ask(host)) == (10, 10)
    boots.append("second")
    assert ask(host) == 10
    assert with_windows_cores(host, "/").windows_cores == 10
    assert len(shell.asked) == 1
    assert "Win32_Processor" in shell.asked[0]
    # A state folder may be shared with a machine that has another processor.
    assert ask(host._replace(brand="Intel(R) Core(TM) Ultra 7 155U")) == 10
    assert len(shell.asked) == 2


def test_the_answer_is_the_largest_number_of_threads(machine: Machine) -> None:
    host = machine.host()._replace(windows_cores=10)
    plan = choose_threads(Request(), host, {})
    assert plan.setting == Setting(10, 10)
    assert re.search(r"Windows told that there are 10 cores \(Win32_Processor\)", str(plan.reasons))
    assert "benchmark_optimized.py" in plan.reasons["threads"]
    # It is no lower bound: .wslconfig, a quota or a mask may leave fewer CPUs.
    assert host._replace(windows_cores=24).usable_cores == 12
    assert host._replace(allowed=frozenset(range(4))).usable_cores == 4
    assert host._replace(quota=3.0).usable_cores == 3


@pytest.mark.parametrize(
    ("answer", "then"),
    [("", ""), ("10", "exit 1"), ("0", ""), ("-3", ""), ("Access denied", ""), ("9" * 30, "")],
)
def test_a_failure_is_remembered_for_the_boot(
    machine: Machine,
    boots: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    answer: str,
    then: str,
) -> None:
    shell = installed(monkeypatch, PowerShell(tmp_path / "bin", answer, then))
    host = machine.host()
    assert (ask(host), ask(host)) == (None, None)
    assert len(shell.asked) == 1
    boots.append("second")
    assert ask(host) is None
    assert len(shell.asked) == 2


@pytest.mark.usefixtures("boots")
def test_a_powershell_that_hangs_is_ended(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = installed(monkeypatch, PowerShell(tmp_path / "bin", then="exec sleep 600"))
    monkeypatch.setattr(wsl, "PATIENCE_S", 0.2)
    assert ask(machine.host()) is None
    assert ask(machine.host()) is None
    assert len(shell.asked) <= 1


@pytest.mark.usefixtures("boots")
def test_without_powershell_nothing_is_said(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert ask(machine.host()) is None
    # Interop is off: the kernel cannot execute a program of Windows.
    shell = installed(monkeypatch, PowerShell(tmp_path / "bin"))
    shell.program.write_bytes(b"MZ\x90\0")
    assert ask(machine.host()._replace(brand="Intel(R) Core(TM) Ultra 5 125H")) is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("boots")
def test_powershell_is_found_without_path(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = PowerShell(tmp_path / "bin")
    monkeypatch.setattr(wsl, "POWERSHELL", str(shell.program))
    assert ask(machine.host()) == 10


@pytest.mark.usefixtures("boots")
def test_windows_is_not_asked_if_the_answer_cannot_be_kept(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = installed(monkeypatch, PowerShell(tmp_path / "bin"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("BITNET_TUNING_HOME", str(tmp_path / "file"))
    assert ask(machine.host()) is None
    assert shell.asked == []


@pytest.mark.usefixtures("boots")
def test_windows_is_asked_only_where_wsl_hides_the_cores(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = installed(monkeypatch, PowerShell(tmp_path / "bin"))
    host = machine.host()
    assert ask(host._replace(wsl=None)) is None
    assert ask(host._replace(cores_hidden=False)) is None
    assert with_windows_cores(host, str(machine.path), ask=True).windows_cores is None
    assert shell.asked == []


@pytest.mark.usefixtures("boots")
def test_runs_and_the_doctor_ask_and_other_commands_use_the_answer(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shell = installed(monkeypatch, PowerShell(tmp_path / "bin"))
    for module in (prepare, gather_module, env_command, host_command):
        monkeypatch.setattr(module, "read_host", lambda _="/": machine.host())
    engine = FakeEngine(tmp_path / "checkout")
    request = Request(prompt="hello", engine=str(engine.cli), model=demo.I2_S)
    prepare.prepare(request, str(machine.path))
    assert host_command.run(["--json"]) == 0
    assert '"usable_cores": 12' in capsys.readouterr().out
    assert shell.asked == []
    _, plan = prepare.prepare(request)
    assert plan.setting.threads == 10
    assert "Windows told" in plan.reasons["threads"]
    assert host_command.run(["--json"]) == 0
    assert '"usable_cores": 10' in capsys.readouterr().out
    assert env_command.run(["--sh"]) == 0
    assert capsys.readouterr().out == "10 0\n"
    assert gather_module.gather(selftest=False).host.windows_cores == 10
    prepare.prepare(request)
    assert len(shell.asked) == 1
