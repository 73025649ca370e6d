"""bitnet-env.sh in every shell: what Python computes, from Python once, and no other trace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path

import pytest

from bitnet_tuning.engine.find import LLVM
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.openmp import (
    BINDING,
    MARK,
    THREAD_COUNTS,
    choose_variables,
    exported,
    shell_exports,
)
from bitnet_tuning.plan.threads import choose_threads
from tests.conftest import REPOSITORY
from tests.machines import Machine

SCRIPT = REPOSITORY / "bitnet-env.sh"
BOOT = "proc/sys/kernel/random/boot_id"
BOUND = {"BITNET_ENV_BIND": "1"}
NOTHING = "bitnet-env.sh: exported nothing: no Python 3.10 or later answers\n"
OURS = re.compile(r"((OMP|KMP|GOMP|MKL|OPENBLAS)_\w+|BITNET_ENV_COUNT)=.*")

COMMANDS = {
    "bash": ["bash", "--norc", "--noprofile"],
    "zsh": ["zsh", "-f"],
    "dash": ["dash"],
    "busybox": ["busybox", "sh"],
}


class Shell:
    """One kind of shell, started without the user's own files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.command = COMMANDS[name]

    def run(
        self,
        code: str,
        root: Path | str = "",
        *,
        variables: Mapping[str, str] | None = None,
        flags: Iterable[str] = (),
        folder: Path = REPOSITORY,
        arguments: Iterable[str] = (),
        lines: Iterable[str] = (),
        prepare: Callable[[], None] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """``code`` as a program of its own, with ``lines`` as its input."""
        return subprocess.run(
            [*self.command, *flags, "-c", code, "a program", *arguments],
            env={**os.environ, "BITNET_ENV_ROOT": str(root), **(variables or {})},
            cwd=folder,
            input="".join(f"{line}\n" for line in lines),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            preexec_fn=prepare,
        )

    def sourced(
        self,
        root: Path | str = "",
        variables: Mapping[str, str] | None = None,
        code: str = ". ./bitnet-env.sh",
    ) -> dict[str, str]:
        """The variables of OpenMP and BLAS that children see afterwards."""
        done = self.run(f"{code}; env", root, variables=variables)
        assert (done.returncode, done.stderr) == (0, "")
        return variables_in(done.stdout)


def variables_in(text: str) -> dict[str, str]:
    found = (line.partition("=") for line in text.splitlines() if OURS.fullmatch(line))
    return {name: value for name, _, value in found}


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason="not installed"))
        for name in COMMANDS
    ]
)
def shell(request: pytest.FixtureRequest) -> Shell:
    return Shell(request.param)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Six cores with two threads each."""
    machine = Machine(tmp_path / "root").regular(cores=6, threads=2).affinity("0-11")
    return machine.write(BOOT, "a0a0")


class Asked:
    """The python3 on PATH, which notes that it is started."""

    def __init__(self, folder: Path, program: str = sys.executable) -> None:
        folder.mkdir()
        self.log = folder / "log"
        self.log.touch()
        (folder / "python3").write_text(
            f"#!/bin/sh\necho \"$*\" >>'{self.log}'\nexec '{program}' \"$@\"\n"
        )
        (folder / "python3").chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is asked in every test: this Python."""
    asked = Asked(tmp_path / "programs")
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}")
    return asked


def everything(threads: int, *, spinning: bool = True, bound: bool = False) -> dict[str, str]:
    """All that the script exports where the user set nothing."""
    counts = dict.fromkeys(THREAD_COUNTS, str(threads))
    binding = BINDING if bound else {}
    mark = {} if bound or spinning else {MARK: str(threads)}
    return {**counts, **binding, **({"KMP_BLOCKTIME": "200"} if spinning else {}), **mark}


# One Python, and none while nothing changes


def test_what_is_kept_starts_no_program(shell: Shell, machine: Machine, asked: Asked) -> None:
    assert shell.sourced(machine.path) == everything(6)
    assert len(asked.calls) == 1
    assert asked.calls[0].startswith("-m bitnet_tuning env --sh ")
    code = "PATH=/nowhere; . ./bitnet-env.sh; PATH=/usr/bin:/bin"
    assert shell.sourced(machine.path, code=code) == everything(6)
    assert len(asked.calls) == 1


def test_every_shell_takes_what_one_was_told(machine: Machine, asked: Asked) -> None:
    for name in filter(shutil.which, COMMANDS):
        assert Shell(name).sourced(machine.path) == everything(6)
    assert len(asked.calls) == 1


def test_two_contexts_do_not_displace_each_other(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    for _ in range(2):
        assert shell.sourced(machine.affinity("0-11").path) == everything(6)
        assert shell.sourced(machine.affinity("0-2").path) == everything(3)
    assert len(asked.calls) == 2


def test_another_group_with_the_same_limits_is_no_change(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    """Every terminal is a group of its own under systemd."""
    files = {f"{group}/cgroup.procs": "" for group in ("one", "two")}
    machine.cgroup2("/one", {**files, "cpu.max": "300000 100000"})
    assert shell.sourced(machine.path) == everything(3, spinning=False)
    machine.write("proc/self/cgroup", "0::/two")
    assert shell.sourced(machine.path) == everything(3, spinning=False)
    assert len(asked.calls) == 1
    machine.write("proc/self/cgroup", "0::/not shown")
    assert shell.sourced(machine.path) == everything(3, spinning=False)
    assert len(asked.calls) == 2


# A stale answer is never used


def test_a_changed_mask(shell: Shell, machine: Machine) -> None:
    assert shell.sourced(machine.path) == everything(6)
    assert shell.sourced(machine.affinity("0-1").path) == everything(2)


def test_a_cpu_switched_off(shell: Shell, machine: Machine) -> None:
    assert shell.sourced(machine.path) == everything(6)
    assert shell.sourced(machine.offline(5, 11).path) == everything(5)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_changed_mask_of_this_process(shell: Shell) -> None:
    one = {min(os.sched_getaffinity(0))}
    code = ". ./bitnet-env.sh; echo $OMP_NUM_THREADS"
    before = shell.run(code).stdout
    bound = shell.run(code, prepare=lambda: os.sched_setaffinity(0, one)).stdout
    assert (before, bound) == (
        f"{choose_threads(Request(), read_host(), {}).setting.threads}\n",
        "1\n",
    )
    assert shell.run(code).stdout == before


@pytest.mark.parametrize("level", ["", "a/", "a/b/"])
def test_a_changed_quota(shell: Shell, machine: Machine, level: str) -> None:
    machine.cgroup2("/a/b", {f"{one}cpu.max": "max 100000" for one in ("", "a/", "a/b/")})
    assert shell.sourced(machine.path) == everything(6)
    machine.write(f"sys/fs/cgroup/{level}cpu.max", "200000 100000")
    assert shell.sourced(machine.path) == everything(2, spinning=False)


@pytest.mark.parametrize("level", ["", "a/", "a/b/"])
@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_a_changed_quota_of_version_1(
    shell: Shell, machine: Machine, level: str, controllers: str
) -> None:
    files = {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100_000}
    levels = ("", "a/", "a/b/")
    machine.cgroup1(
        controllers, "/a/b", {f"{one}{name}": files[name] for one in levels for name in files}
    )
    assert shell.sourced(machine.path) == everything(6)
    machine.write(f"sys/fs/cgroup/{controllers}/{level}cpu.cfs_quota_us", 200_000)
    assert shell.sourced(machine.path) == everything(2, spinning=False)
    machine.write(f"sys/fs/cgroup/{controllers}/{level}cpu.cfs_period_us", 50_000)
    assert shell.sourced(machine.path) == everything(4, spinning=False)


def test_a_quota_of_a_container(shell: Shell, machine: Machine) -> None:
    """Its own group is the root of the mount."""
    machine.cgroup2("/docker/12", {"cpu.max": "400000 100000"}, origin="/docker/12")
    assert shell.sourced(machine.path) == everything(4, spinning=False)
    machine.write("sys/fs/cgroup/cpu.max", "200000 100000")
    assert shell.sourced(machine.path) == everything(2, spinning=False)


def test_a_quota_where_only_python_looks_is_never_kept(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    machine.cgroup2("/", {"cpu.max": "400000 100000"}, mount="/mnt/a b")
    for quota in (4, 2):
        machine.write("mnt/a b/cpu.max", f"{quota}00000 100000")
        assert shell.sourced(machine.path) == everything(quota, spinning=False)
    assert len(asked.calls) == 2


def test_another_boot(shell: Shell, machine: Machine, asked: Asked) -> None:
    assert shell.sourced(machine.path) == everything(6)
    siblings = dict.fromkeys((4, 5, 10, 11), "4-5,10-11")
    machine.per_cpu("topology/thread_siblings_list", siblings)
    assert shell.sourced(machine.path) == everything(6)
    assert len(asked.calls) == 1, "nothing that changes without a boot"
    machine.write(BOOT, "b1b1")
    assert shell.sourced(machine.path) == everything(5)
    assert len(asked.calls) == 2


def test_without_a_boot_id_nothing_is_kept(
    shell: Shell, machine: Machine, asked: Asked, own_state: Path
) -> None:
    machine.remove(BOOT)
    for cpus, threads in (("0-11", 6), ("0-1", 2)):
        assert shell.sourced(machine.affinity(cpus).path) == everything(threads)
    assert len(asked.calls) == 2
    assert not own_state.exists()


def test_without_a_home_nothing_is_kept(
    shell: Shell, machine: Machine, asked: Asked, tmp_path: Path
) -> None:
    code = f"unset HOME BITNET_TUNING_HOME; cd '{tmp_path}'; . '{SCRIPT}'"
    assert shell.sourced(machine.path, code=code) == everything(6)
    assert shell.sourced(machine.path, code=code) == everything(6)
    assert len(asked.calls) == 2
    assert not (tmp_path / ".cache").exists()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the package and the script, as old as they are."""
    place = tmp_path / "a folder; with 'all' $sorts \\ü"
    ignored = shutil.ignore_patterns("__pycache__", "*.gguf")
    shutil.copytree(REPOSITORY / "bitnet_tuning", place / "bitnet_tuning", ignore=ignored)
    shutil.copy2(SCRIPT, place)
    return place


@pytest.mark.parametrize("seconds", [-1_000_000, 0])
def test_a_changed_package(
    shell: Shell, machine: Machine, checkout: Path, asked: Asked, seconds: int
) -> None:
    """Changed now, or replaced by an older release, whose files are all older."""
    (module,) = checkout.rglob("threads.py")

    def source() -> dict[str, str]:
        done = shell.run(". ./bitnet-env.sh; env", machine.path, folder=checkout)
        assert done.stderr == ""
        return variables_in(done.stdout)

    assert source() == source() == everything(6)
    assert len(asked.calls) == 1
    text = module.read_text()
    module.write_text(text.replace("MOST_THREADS = 12", "MOST_THREADS = 3"))
    if seconds:
        for path in checkout.rglob("*.py"):
            time = path.stat().st_mtime + seconds
            os.utime(path, (time, time))
    assert module.read_text() != text
    assert source() == everything(3)


def test_a_package_that_has_just_been_changed_is_not_kept(
    shell: Shell, machine: Machine, checkout: Path, asked: Asked
) -> None:
    """The next change might look as old."""
    (module,) = checkout.rglob("threads.py")
    module.touch()
    for _ in range(2):
        shell.run(". ./bitnet-env.sh", machine.path, folder=checkout)
    assert len(asked.calls) == 2


def test_another_checkout_is_asked_itself(
    shell: Shell, machine: Machine, checkout: Path, asked: Asked
) -> None:
    assert shell.sourced(machine.path) == everything(6)
    done = shell.run(". ./bitnet-env.sh; env", machine.path, folder=checkout)
    assert variables_in(done.stdout) == everything(6)
    assert len(asked.calls) == 2


# What is kept is not trusted


@pytest.mark.parametrize(
    "answer",
    ["", "x 0", "4", "0 0", "007 0", "4 2", "4 0 0", "1234 0", "$(touch hit) 0", "4;touch hit 0"],
)
def test_a_damaged_answer(
    shell: Shell, machine: Machine, own_state: Path, tmp_path: Path, answer: str
) -> None:
    assert shell.sourced(machine.path) == everything(6)
    (file,) = own_state.iterdir()
    time = file.stat().st_mtime_ns
    file.write_text(file.read_text().replace("\n6 0\n", f"\n{answer}\n"))
    os.utime(file, ns=(time, time))
    assert shell.sourced(machine.path) == everything(6)
    assert not list(REPOSITORY.glob("hit"))


@pytest.mark.parametrize("size", [0, 10, -1, -2, -3, -4, -6])
def test_a_torn_file(shell: Shell, machine: Machine, own_state: Path, size: int) -> None:
    assert shell.sourced(machine.path) == everything(6)
    (file,) = own_state.iterdir()
    time = file.stat().st_mtime_ns
    file.write_text(file.read_text()[:size])
    os.utime(file, ns=(time, time))
    assert shell.sourced(machine.path) == everything(6)


def test_a_folder_that_cannot_be_written(
    shell: Shell, machine: Machine, own_state: Path, asked: Asked
) -> None:
    own_state.write_text("a file")
    assert shell.sourced(machine.path) == shell.sourced(machine.path) == everything(6)
    assert len(asked.calls) == 2


# Where no Python answers


@pytest.mark.parametrize("program", [None, "false", "true"])
def test_without_a_python(
    shell: Shell, machine: Machine, tmp_path: Path, program: str | None
) -> None:
    """None on PATH, one that fails as an old one does, one that says nothing."""
    path = tmp_path / "others"
    if program:
        Asked(path, f"/bin/{program}")
    for verbose, said in (("", ""), ("1", NOTHING)):
        own = {"BITNET_ENV_VERBOSE": verbose}
        code = f"PATH='{path}'; . ./bitnet-env.sh; echo $?; PATH=/usr/bin:/bin; env"
        done = shell.run(f"set -eu; {code}", machine.path, variables=own)
        assert (done.stdout[:2], done.stderr) == ("0\n", said)
        assert variables_in(done.stdout) == {}


@pytest.mark.skipif(not shutil.which("bash"), reason="not installed")
def test_a_python_that_is_a_script_which_sources_the_file_too(asked: Asked) -> None:
    """bash sources BASH_ENV for every script, such as pyenv's python3."""
    start = Path(asked.log.parent, "python3")
    start.write_text(start.read_text().replace("#!/bin/sh", "#!/usr/bin/env bash"))
    done = subprocess.run(
        ["bash", "-c", "echo $OMP_NUM_THREADS"],
        env={**os.environ, "BASH_ENV": str(SCRIPT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip().isdecimal()
    assert len(asked.calls) == 1


def test_without_a_python_earlier_exports_stay(shell: Shell, machine: Machine) -> None:
    code = ". ./bitnet-env.sh; PATH=/nowhere BITNET_TUNING_HOME=/nowhere; . ./bitnet-env.sh; "
    assert shell.sourced(machine.path, code=f"{code} PATH=/usr/bin:/bin") == everything(6)


def test_modules_in_the_current_folder_are_not_imported(
    shell: Shell, machine: Machine, tmp_path: Path
) -> None:
    place = tmp_path / "downloads"
    place.mkdir()
    for name in ("bitnet_tuning", "argparse", "os", "glob"):
        (place / f"{name}.py").write_text("open('imported', 'w')")
    done = shell.run(f". '{SCRIPT}'; env", machine.path, folder=place)
    assert variables_in(done.stdout) == everything(6)
    assert not (place / "imported").exists()


# Ways to source it


def test_the_binding_is_exported_on_demand(shell: Shell, machine: Machine) -> None:
    assert shell.sourced(machine.path) == everything(6)
    assert shell.sourced(machine.path, BOUND) == everything(6, bound=True)
    code = "BITNET_ENV_BIND=1; . ./bitnet-env.sh; BITNET_ENV_BIND=; . ./bitnet-env.sh"
    assert shell.sourced(machine.path, code=code) == everything(6)


def test_no_spinning_under_a_quota(shell: Shell, machine: Machine) -> None:
    machine.cgroup2("/", {"cpu.max": "250000 100000"})
    threads = choose_threads(Request(), machine.host(), {}).setting.threads
    assert shell.sourced(machine.path) == everything(threads, spinning=False)
    assert shell.sourced(machine.path, BOUND) == everything(threads, spinning=False, bound=True)


STRANGE = """\
set -eu
set -C
IFS=0123456789:
CDPATH=/:/usr
cd /
"""

TRAPS = {
    "bash": "set -ET -o pipefail; trap 'echo trapped' DEBUG ERR EXIT; "
    "shopt -s failglob nocasematch extglob",
    "zsh": "setopt nomatch ksh_arrays sh_glob; trap 'echo trapped' EXIT",
    "dash": "trap 'echo trapped' EXIT; set -fa",
    "busybox": "trap 'echo trapped' EXIT; set -fa",
}


def test_a_strange_shell(shell: Shell, machine: Machine) -> None:
    code = f'{STRANGE}. "{SCRIPT}"\nprintf "%s\\n" "$? $PWD"\nenv'
    done = shell.run(code, machine.path)
    assert done.stdout.splitlines()[0] == "0 /"
    assert variables_in(done.stdout) == everything(6)
    assert done.stderr == ""


def test_options_and_traps_of_the_user(shell: Shell, machine: Machine) -> None:
    """What a trap prints is not taken for the answer."""
    done = shell.run(f"{TRAPS[shell.name]}; . ./bitnet-env.sh; env", machine.path)
    assert done.returncode == 0
    assert variables_in(done.stdout) == everything(6)
    assert done.stderr == ""


def test_the_status_before_does_not_matter(shell: Shell, machine: Machine) -> None:
    code = "set -e; false || . ./bitnet-env.sh; . ./bitnet-env.sh && echo $?"
    assert shell.run(code, machine.path).stdout == "0\n"


def test_a_root_without_anything_is_one_cpu(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    assert shell.sourced(tmp_path / "bare") == everything(1)


@pytest.mark.parametrize("start", ["", "cd /; ", "set -eu; "])
def test_a_path_with_spaces_and_a_link(
    shell: Shell, machine: Machine, checkout: Path, asked: Asked, start: str
) -> None:
    link = checkout.parent / "env *.sh"
    link.symlink_to(checkout / "bitnet-env.sh")
    for path in (checkout / "bitnet-env.sh", link):
        done = shell.run(f'{start}. "$FILE"; env', machine.path, variables={"FILE": str(path)})
        assert (variables_in(done.stdout), done.stderr) == (everything(6), "")
    assert len(asked.calls) == 1


def test_a_copy_of_the_script_asks_an_installed_package(
    shell: Shell, machine: Machine, tmp_path: Path, asked: Asked
) -> None:
    shutil.copy(SCRIPT, tmp_path / "copy.sh")
    own = {"PYTHONPATH": str(REPOSITORY)}
    for _ in range(2):
        done = shell.run(". ./copy.sh; env", machine.path, folder=tmp_path, variables=own)
        assert variables_in(done.stdout) == everything(6)
    assert len(asked.calls) == 1


def test_an_interactive_shell(shell: Shell, machine: Machine) -> None:
    """It says what it says about a file with nothing in it; aliases do not matter."""
    machine.cgroup2("/ours", {"ours/cpu.max": "300000 100000"})
    aliases = "alias cd='cd -P' python3='python3 -i' cores='lscpu -e' bitnet='run it'\n"
    empty, done = (
        shell.run(f"{aliases} . {file}; env", machine.path, flags=["-i"])
        for file in ("/dev/null", "./bitnet-env.sh")
    )
    assert variables_in(done.stdout) == everything(3, spinning=False)
    assert done.stderr == empty.stderr


COMMON = "alias; trap; umask; pwd; echo $# $*; (: >&9) 2>&1"
STATE = {
    "bash": f"set; set -o; shopt; declare -F; {COMMON}",
    "zsh": f"typeset; setopt; functions; {COMMON}",
    "dash": f"set; set -o; {COMMON}",
    "busybox": f"set; set -o; {COMMON}",
}
CHANGING = re.compile(
    r"(integer )?(\d*\s*|readonly )*(_|\?|\$|!|BASH_\w+|PIPESTATUS|pipestatus|RANDOM|SRANDOM|"
    r"SECONDS|EPOCH\w+|LINENO|TTYIDLE|status|PPID|(OMP|MKL|OPENBLAS|KMP)_\w+)=.*"
)


def test_nothing_else_stays(shell: Shell, machine: Machine, tmp_path: Path) -> None:
    state = STATE[shell.name]
    code = (
        f"set -u; value=mine; trap : USR1; {{ {state}; }} >'{tmp_path}/before'; . ./bitnet-env.sh; "
        f"{{ {state}; }} >'{tmp_path}/after'; echo \"$OMP_NUM_THREADS $value\""
    )
    done = shell.run(code, machine.path, arguments=["one", "two"])
    assert (done.stdout, done.stderr) == ("6 mine\n", "")
    before, after = (steady((tmp_path / name).read_text()) for name in ("before", "after"))
    assert before == after
    assert any("BITNET_ENV_ROOT" in line for line in before), "variables are listed at all"


def steady(text: str) -> list[str]:
    """Without what any command changes."""
    return [line for line in text.splitlines() if not CHANGING.fullmatch(line.strip())]


# Whose variables


MINE = {
    "OMP_NUM_THREADS": "3",
    "MKL_NUM_THREADS": "5",
    "OPENBLAS_NUM_THREADS": "7",
    "OMP_PROC_BIND": "close",
    "OMP_PLACES": "cores",
    "GOMP_CPU_AFFINITY": "0-3",
    "KMP_AFFINITY": "compact",
    "KMP_HW_SUBSET": "1t",
    "KMP_BLOCKTIME": "0",
    "OMP_WAIT_POLICY": "passive",
    "KMP_LIBRARY": "turnaround",
}
COUNTS, PAIR, WAITING = set(THREAD_COUNTS), set(BINDING), {"KMP_BLOCKTIME"}


@pytest.mark.parametrize(
    ("mine", "added"),
    [
        (("OMP_NUM_THREADS",), PAIR | WAITING),
        (("MKL_NUM_THREADS",), {*COUNTS, *PAIR, *WAITING} - {"MKL_NUM_THREADS"}),
        (("MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), PAIR | WAITING),
        (("OMP_PROC_BIND",), COUNTS | WAITING),
        (("OMP_PLACES",), COUNTS | WAITING),
        (("GOMP_CPU_AFFINITY",), COUNTS | WAITING),
        (("KMP_AFFINITY",), COUNTS | WAITING),
        (("KMP_HW_SUBSET",), COUNTS | WAITING),
        (("KMP_BLOCKTIME",), COUNTS | PAIR),
        (("OMP_WAIT_POLICY",), COUNTS | PAIR),
        (("KMP_LIBRARY",), COUNTS | PAIR),
        (("OMP_NUM_THREADS", "OMP_PROC_BIND"), set()),
        (("OMP_PLACES", "KMP_LIBRARY"), COUNTS),
    ],
)
def test_what_the_user_set_stays(
    shell: Shell, machine: Machine, mine: tuple[str, ...], added: set[str]
) -> None:
    own = {name: MINE[name] for name in mine}
    whole = everything(6, bound=True)
    lone = {MARK: "6"} if added == COUNTS else {}
    assert shell.sourced(machine.path, {**own, **BOUND}) == {
        **{name: value for name, value in whole.items() if name in added},
        **own,
        **lone,
    }
    unbound = added - PAIR
    lone = {MARK: "6"} if unbound and "KMP_BLOCKTIME" not in unbound else {}
    assert shell.sourced(machine.path, own) == {
        **{name: value for name, value in whole.items() if name in unbound and unbound != WAITING},
        **own,
        **lone,
    }


@pytest.mark.parametrize(
    "own",
    [
        dict.fromkeys(THREAD_COUNTS, "3"),
        {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1"},
        BINDING,
        {"KMP_BLOCKTIME": "200"},
    ],
)
def test_what_could_not_be_told_from_the_users_is_not_added(
    shell: Shell, machine: Machine, own: dict[str, str]
) -> None:
    assert shell.sourced(machine.path, own) == own
    assert shell.sourced(machine.path, own, ". ./bitnet-env.sh; BITNET_ENV=off; . ./bitnet-env.sh")


def owners() -> list[dict[str, str]]:
    """What users may have set: one variable, two of them, ours by chance, nothing at all."""
    like_ours = everything(6, bound=True)
    single = [{name: value} for name, value in (*MINE.items(), *like_ours.items())]
    pairs = [{**one, **other} for one, other in product(single, single) if one != other]
    return [{}, {"OMP_NUM_THREADS": "", "OMP_PLACES": ""}, *single, *pairs[::7]]


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("quota", ["max", "250000"])
def test_what_it_adds_is_recognised_and_taken_back(
    shell: Shell, machine: Machine, quota: str, bound: bool
) -> None:
    """Launchers and ``off`` name exactly what was added, whatever the user had set."""
    machine.cgroup2("/", {"cpu.max": f"{quota} 100000"})
    host = machine.host()
    threads = choose_threads(Request(), host, {}).setting.threads
    bind = BOUND if bound else {}
    cases = owners()
    code = (
        'while read -r own; do (eval "export $own"; . ./bitnet-env.sh; env; echo next\n'
        ". ./bitnet-env.sh; env; echo next; BITNET_ENV=off; . ./bitnet-env.sh; env; echo next\n"
        ") done"
    )
    lines = [" ".join(f"{name}={value}" for name, value in own.items()) or "OWN=" for own in cases]
    done = shell.run(code, machine.path, lines=lines, variables=bind)
    assert done.stderr == ""
    found = [variables_in(text) for text in done.stdout.split("next\n")]
    for index, own in enumerate(cases):
        real = {name: value for name, value in own.items() if value}
        once, twice, off = found[3 * index : 3 * index + 3]
        assert once == twice
        assert real.items() <= once.items()
        added = {name: value for name, value in once.items() if value and name not in real}
        assert exported(once) == added.keys(), own
        assert {name: value for name, value in off.items() if value} == real
        assert added == shell_exports({**real, **bind}, threads, host.quota_binds), own
        added.pop(MARK, None)
        wanted = choose_variables(LLVM, (), threads, host.quota_binds, real)[0]
        assert added.items() <= wanted.items()


def test_launchers_compute_anew_what_was_exported(shell: Shell, machine: Machine) -> None:
    environ = shell.sourced(machine.path)
    machine.affinity("0-1")
    decided = choose_threads(Request(), machine.host(), environ)
    assert decided.setting.threads == 2
    assert "2 of 6 physical cores" in decided.reasons["threads"]
    wanted = everything(2, bound=True)
    assert choose_variables(LLVM, (), 2, False, environ)[0] == wanted


def test_another_shell_with_other_limits_computes_anew(shell: Shell, machine: Machine) -> None:
    environ = shell.sourced(machine.path)
    machine.cgroup2("/", {"cpu.max": "200000 100000"})
    assert shell.sourced(machine.path, environ) == everything(2, spinning=False)


@pytest.mark.parametrize(
    ("text", "threads"),
    [("3", 3), (" 4 ", 4), ("512", 512), ("007", 7)]
    + [(text, 6) for text in ("", "0", "00", "513", "-1", "many", "2 3", "9" * 40, "$(x)", "*")],
)
def test_bitnet_threads(shell: Shell, machine: Machine, text: str, threads: int) -> None:
    """What makes no sense is left to the launchers, who say so."""
    assert shell.sourced(machine.path, {"BITNET_THREADS": text}) == everything(threads)


def test_bitnet_threads_before_the_word(shell: Shell, machine: Machine) -> None:
    assert shell.sourced(machine.path, code="BITNET_THREADS=3 . ./bitnet-env.sh") == everything(3)


# Off


def test_off_takes_everything_back(shell: Shell, machine: Machine) -> None:
    word = "BITNET_ENV=off; . ./bitnet-env.sh" if shell.name == "dash" else ". ./bitnet-env.sh off"
    code = f". ./bitnet-env.sh; {word}; echo $? ${{BITNET_ENV-gone}}; env"
    done = shell.run(code, machine.path)
    assert done.stdout.startswith("0 gone\n")
    assert variables_in(done.stdout) == {}
    assert done.stderr == ""


def test_off_leaves_what_was_changed_since(shell: Shell, machine: Machine) -> None:
    off = "BITNET_ENV=off; . ./bitnet-env.sh"
    code = f". ./bitnet-env.sh; OMP_PROC_BIND=close; {off}"
    assert shell.sourced(machine.path, BOUND, code) == {
        "OMP_PROC_BIND": "close",
        "OMP_PLACES": "cores",
    }


def test_off_with_nothing_set(shell: Shell, machine: Machine) -> None:
    assert shell.sourced(machine.path, code="BITNET_ENV=off; . ./bitnet-env.sh") == {}


def test_words_of_the_program_that_sources_it(shell: Shell, machine: Machine) -> None:
    done = shell.run(". ./bitnet-env.sh; env", machine.path, arguments=["off", "now"])
    assert variables_in(done.stdout) == everything(6)
    done = shell.run(". ./bitnet-env.sh; env", machine.path, arguments=["prompts.jsonl"])
    assert (variables_in(done.stdout), done.stderr) == (everything(6), "")
    code = "BITNET_ENV=1; . ./bitnet-env.sh; env"
    done = shell.run(code, machine.path, arguments=["train"])
    assert (variables_in(done.stdout), done.stderr) == (everything(6), "")


# Neither sourced nor known


@pytest.mark.parametrize("word", ["on", "OFF", "nonsense", "--help", "-"])
def test_an_unknown_word(shell: Shell, machine: Machine, word: str, asked: Asked) -> None:
    given = f"BITNET_ENV={word}; . ./bitnet-env.sh"
    if shell.name != "dash":
        given = f". ./bitnet-env.sh {word}"
    done = shell.run(f"set -eu; {given}; echo $?; env", machine.path)
    assert done.stdout.startswith("0\n")
    assert variables_in(done.stdout) == {}
    assert done.stderr == (
        f"bitnet-env.sh: no such word: {word} (off takes back); nothing changed\n"
    )
    assert asked.calls == []


@pytest.mark.parametrize("name", ["bitnet-env.sh", "./bitnet-env.sh", str(SCRIPT)])
def test_executed(shell: Shell, asked: Asked, name: str) -> None:
    done = subprocess.run(
        [*shell.command, name], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "bitnet-env.sh: run, not sourced: nothing changed; use . ./bitnet-env.sh\n"
    )
    assert asked.calls == []


# What it says


def test_a_line_where_it_is_wanted(shell: Shell, machine: Machine) -> None:
    verbose = {"BITNET_ENV_VERBOSE": "1"}
    code = ". ./bitnet-env.sh; BITNET_ENV=off; . ./bitnet-env.sh; . ./bitnet-env.sh"
    done = shell.run(f"{code}; echo end", machine.path, variables=verbose)
    assert done.stdout == "end\n"
    names = "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS KMP_BLOCKTIME"
    exports = " ".join(f"{name}={value}" for name, value in everything(6).items())
    assert done.stderr.splitlines() == [
        f"bitnet-env.sh: exported {exports}",
        f"bitnet-env.sh: took back {names}",
        f"bitnet-env.sh: exported {exports}",
    ]


def test_where_it_exports_nothing_it_says_so(shell: Shell, machine: Machine) -> None:
    verbose = {"BITNET_ENV_VERBOSE": "1", "OMP_NUM_THREADS": "3", "KMP_BLOCKTIME": "0"}
    done = shell.run(". ./bitnet-env.sh", machine.path, variables=verbose)
    assert done.stderr == "bitnet-env.sh: exported nothing: the rest is yours\n"


def test_length() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 100


def test_shellcheck() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no shellcheck")
    done = subprocess.run(
        [program, "-s", "sh", str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
