"""The command ``python3 -m bitnet_tuning host``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.__main__ import main
from bitnet_tuning.cli import host as host_cli
from bitnet_tuning.machine import foreign
from tests.machines import GIBIBYTE, Machine, x86_entries


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "root").hybrid(performance=2, efficiency=4).affinity("0-3,4-6")
    machine.node(0, range(8)).node(4).kernel("5.15.90.1-microsoft-standard-WSL2")
    machine.cgroup2("/", {"cpu.max": "350000 100000"}).meminfo(8 * GIBIBYTE, 6 * GIBIBYTE)
    machine.governors(dict.fromkeys(range(8), "powersave"))
    return machine.cpuinfo(x86_entries(8, "fpu avx2 fma avx_vnni"))


def facts(machine: Machine, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["host", "--root", str(machine.path), "--json"]) == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    found: dict[str, Any] = json.loads(seen.out)
    return found


def test_json_has_the_fields_of_the_contract(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = {
        "logical_cpus": list(range(8)),
        "allowed_cpus": list(range(7)),
        "physical_cores": 6,
        "packages": 1,
        "numa_nodes": [{"id": 0, "cpus": list(range(8))}, {"id": 4, "cpus": []}],
        "hybrid": {
            "performance_cores": 2,
            "efficiency_cores": 4,
            "performance_cpus": [0, 1, 2, 3],
            "efficiency_cpus": [4, 5, 6, 7],
        },
        "threads_per_core": 2,
        "cpu_quota": 3.5,
        "usable_cores": 4,
        "governor": "powersave",
        "wsl": 2,
        "memory_total": 8 * GIBIBYTE,
        "memory_available": 6 * GIBIBYTE,
        "isa": ["avx2", "avx_vnni", "fma", "fpu"],
        "vendor": "GenuineIntel",
        "brand": "Some CPU",
        "topology_known": True,
    }
    assert facts(machine, capsys) == expected


def test_json_of_an_empty_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = {
        "logical_cpus": [0],
        "allowed_cpus": [0],
        "physical_cores": 1,
        "packages": 1,
        "numa_nodes": [{"id": 0, "cpus": [0]}],
        "hybrid": None,
        "threads_per_core": 1,
        "cpu_quota": None,
        "usable_cores": 1,
        "governor": None,
        "wsl": None,
        "memory_total": None,
        "memory_available": None,
        "isa": [],
        "vendor": None,
        "brand": None,
        "topology_known": False,
    }
    assert facts(Machine(tmp_path), capsys) == expected


def lines_of(text: str) -> dict[str, str]:
    return {key: value.strip() for key, _, value in (line.partition(" ") for line in text)}


def test_text_shows_lists_and_units(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "--root", str(machine.path)]) == 0
    shown = lines_of(capsys.readouterr().out.splitlines())  # type: ignore[arg-type]
    assert shown["allowed_cpus"] == "0-6 (7)"
    assert shown["numa_nodes"] == "0: 0-7; 4: memory only"
    assert shown["hybrid"] == "2 performance cores (0-3), 4 efficiency cores (4-7)"
    assert shown["memory_total"] == "8.0 GiB"
    assert shown["isa"] == "avx2 avx_vnni fma"
    assert shown["topology_known"] == "yes"


def test_text_of_an_empty_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "--root", str(tmp_path)]) == 0
    shown = lines_of(capsys.readouterr().out.splitlines())  # type: ignore[arg-type]
    assert {shown[key] for key in ("governor", "cpu_quota", "wsl", "memory_total", "isa")} == {"-"}
    assert shown["topology_known"] == "no"


@pytest.mark.parametrize("root", ["missing", "file", ""])
def test_a_root_that_is_not_a_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], root: str
) -> None:
    (tmp_path / "file").touch()
    assert main(["host", "--root", str(tmp_path / root) if root else ""]) == 3
    seen = capsys.readouterr()
    assert seen.out == ""
    assert "no such folder" in seen.err


@pytest.mark.parametrize("arguments", [["--no-such-flag"], ["--root"], ["surplus"]])
def test_wrong_flags_are_usage_errors(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main(["host", *arguments]) == 2
    assert capsys.readouterr().out == ""


def test_only_the_live_machine_is_asked_for_missing_cpu_flags(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    without = read = machine.remove("proc/cpuinfo").host()
    monkeypatch.setattr(foreign, "cpuinfo_flags", lambda: ("neon",))
    monkeypatch.setattr(host_cli, "read_host", lambda root: read)
    assert facts(machine, capsys)["isa"] == []
    assert main(["host", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["isa"] == ["neon"]
    assert without.isa == ()


def test_the_program_runs_in_any_folder_with_a_relative_root(
    machine: Machine, repository: Path, tmp_path: Path
) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "bitnet_tuning", "host", "--root", "root", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout)["physical_cores"] == 6
    assert run.stderr == ""
