"""``python3 -m bitnet_tuning env``, and the answers that it saves for bitnet-env.sh."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet_tuning.__main__ import main
from bitnet_tuning.cli import env
from bitnet_tuning.plan.openmp import BINDING, THREAD_COUNTS
from tests.conftest import REPOSITORY
from tests.machines import Machine

BOOT = "proc/sys/kernel/random/boot_id"
EARLIER = {**dict.fromkeys(THREAD_COUNTS, "3"), "KMP_BLOCKTIME": "200"}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root").regular(cores=6, threads=2)


def printed(machine: Machine, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["env", "--root", str(machine.path), *flags]) == 0
    seen = capsys.readouterr()
    assert seen.err == ""
    return seen.out


def test_the_script_reads_threads_and_whether_a_quota_limits_them(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert printed(machine, capsys, "--sh") == "6 0\n"
    machine.cgroup2("/", {"cpu.max": "200000 100000"})
    assert printed(machine, capsys, "--sh") == "2 1\n"


@pytest.mark.parametrize("own", [EARLIER, {"OMP_NUM_THREADS": "3"}, {"BITNET_THREADS": "3"}])
def test_the_answer_does_not_depend_on_the_users_variables(
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    own: dict[str, str],
) -> None:
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    assert printed(machine, capsys, "--sh") == "6 0\n"


def test_the_text_says_what_is_exported_and_why(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    text = printed(machine, capsys)
    assert "threads      6: this process may use 6 of 6 physical cores" in text
    assert "exported     OMP_NUM_THREADS=6 MKL_NUM_THREADS=6 OPENBLAS_NUM_THREADS=6" in text
    assert "OMP_PROC_BIND and OMP_PLACES are exported only with" in text


def test_the_text_says_what_a_quota_changes(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.cgroup2("/", {"cpu.max": "200000 100000"})
    text = printed(machine, capsys)
    assert "the CPU quota allows 2 CPUs" in text
    assert "waiting      no KMP_BLOCKTIME" in text


def test_the_text_names_what_the_user_set(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**EARLIER, **BINDING, "BITNET_THREADS": "4", "KMP_LIBRARY": "x"}.items():
        monkeypatch.setenv(name, value)
    text = printed(machine, capsys)
    assert "threads      4: set by BITNET_THREADS" in text
    assert "not changed  set by you: KMP_LIBRARY\n" in text


@pytest.mark.parametrize(
    ("looked", "boot", "saved"),
    [
        (":{0}/sys/fs/cgroup:{0}/sys/fs/cgroup/a:", "a0", True),
        (":{0}/sys/fs/cgroup:{0}/sys/fs/cgroup/a:", "", False),
        (":{0}/sys/fs/cgroup:", "a0", False),
        ("", "a0", False),
    ],
)
def test_an_answer_is_saved_if_the_script_sees_every_change(
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    looked: str,
    boot: str,
    saved: bool,
) -> None:
    machine.write(BOOT, boot).cgroup2("/a", {"a/cpu.max": "max 100000"})
    file = tmp_path / "state" / "env-a0"
    flags = ["--keep", str(file), "--key", "k", "--looked", looked.format(machine.path)]
    assert printed(machine, capsys, "--sh", *flags) == "6 0\n"
    assert file.exists() == saved


def test_a_folder_that_cannot_be_written_is_no_error(
    machine: Machine, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "state").write_text("a file")
    flags = ["--keep", str(tmp_path / "state" / "env-a0"), "--key", "k"]
    assert printed(machine.write(BOOT, "a0"), capsys, "--sh", *flags) == "6 0\n"


def test_the_newest_answers_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "state" / "env-a0"
    for number in range(env.MOST_KEPT + 3):
        env.keep(str(file), "/script", f"key {number}", f"{number} 0")
    lines = file.read_text().splitlines()[3:]
    assert len(lines) == 2 * env.MOST_KEPT
    assert lines[:4] == ["key 18", "18 0", "key 17", "17 0"]
    env.keep(str(file), "/another", "key", "1 0")
    assert file.read_text().splitlines()[3:] == ["key", "1 0"]


def test_answers_of_old_boots_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    env.keep(str(tmp_path / "env-a0"), "/script", "key", "1 0")
    later = os.stat(tmp_path / "env-a0").st_ctime + env.OLDEST_S + 60
    monkeypatch.setattr("time.time", lambda: later)
    env.keep(str(tmp_path / "env-b1"), "/script", "key", "1 0")
    assert [path.name for path in tmp_path.iterdir()] == ["env-b1"]


@pytest.mark.parametrize(("path", "script"), [("relative", "/script"), ("/x/env-a0", "/a\nb")])
def test_an_answer_that_the_script_could_not_read_back_is_not_saved(path: str, script: str) -> None:
    with pytest.raises(ValueError, match="cannot be saved"):
        env.keep(path, script, "key", "1 0")


def test_an_answer_of_a_package_that_has_just_been_changed_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another change within the same tick of the clock could not be told from this one.
    now = max(path.stat().st_mtime for path in (REPOSITORY / "bitnet_tuning").rglob("*.py"))
    monkeypatch.setattr("time.time", lambda: now)
    with pytest.raises(ValueError, match="cannot be saved"):
        env.keep(str(tmp_path / "env-a0"), "/script", "key", "1 0")
