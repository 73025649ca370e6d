"""bitnet-env.sh in every shell: it exports what Python computes, asks Python once, and changes
nothing else in the shell."""

from __future__ import annotations

import os
import re
import shlex
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
from tests.processes import until

SCRIPT = REPOSITORY / "bitnet-env.sh"
BOOT = "proc/sys/kernel/random/boot_id"
BOUND = {"BITNET_ENV_BIND": "1"}
NOTHING = "bitnet-env.sh: exported nothing: found no working Python 3.10 or later\n"
OURS = re.compile(r"((OMP|KMP|GOMP|MKL|OPENBLAS)_\w+|BITNET_ENV_COUNT)=.*")

COMMANDS = {
    "bash": ["bash", "--norc", "--noprofile"],
    "zsh": ["zsh", "-f"],
    "dash": ["dash"],
    "busybox": ["busybox", "sh"],
}


class Shell:
    """One of the shells, started without the user's start-up files."""

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
        """Run ``code``, with ``lines`` as its standard input."""
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
        """Return the variables of OpenMP and BLAS that programs started afterwards see."""
        done = self.run(f"{code}; env", root, variables=variables)
        assert (done.returncode, done.stderr) == (0, "")
        return variables_in(done.stdout)

    def sourced_with(
        self, cases: Iterable[Mapping[str, str]], root: Path, code: str = ". ./bitnet-env.sh"
    ) -> list[dict[str, str]]:
        """Do the same in a subshell with each of these environments, all in one shell."""
        lines = [
            " ".join(f"{name}={shlex.quote(value)}" for name, value in case.items()) or "NONE="
            for case in cases
        ]
        loop = f'while read -r own; do (eval "export $own"; {code}; env; echo next) done'
        done = self.run(loop, root, lines=lines)
        assert (done.returncode, done.stderr) == (0, "")
        return [variables_in(text) for text in done.stdout.split("next\n")[:-1]]


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


@pytest.fixture(scope="module", autouse=True)
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """The content and time of the file in which Python saves its answer for ``machine``."""
    folder = tmp_path_factory.mktemp("saved")
    root, home = six_cores(folder / "root").path, folder / "home"
    shell = Shell(next(filter(shutil.which, COMMANDS)))

    def is_saved() -> bool:  # not while a module is younger than two seconds
        shell.sourced(root, {"BITNET_TUNING_HOME": str(home)})
        return home.exists()

    until(is_saved)
    (file,) = home.iterdir()
    return file.read_text(), file.stat().st_mtime_ns


def six_cores(root: Path) -> Machine:
    """A machine with two threads on each of its six cores."""
    machine = Machine(root).regular(cores=6, threads=2).affinity("0-11")
    return machine.write(BOOT, "a0a0")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine about which Python has not been asked yet."""
    return six_cores(tmp_path / "root")


@pytest.fixture
def known(machine: Machine, own_state: Path, saved: tuple[str, int]) -> Machine:
    """The same machine, with Python's answer saved."""
    own_state.mkdir()
    rewrite(own_state / "env-a0a0", *saved)
    return machine


def rewrite(file: Path, text: str, time: int) -> None:
    file.write_text(text)
    os.utime(file, ns=(time, time))


PYTHON, QUOTED = shlex.quote(sys.executable), shlex.quote(str(SCRIPT))


class Asked:
    """The python3 on PATH, which logs its starts."""

    def __init__(
        self, folder: Path, action: str = f'exec {shlex.quote(sys.executable)} "$@"'
    ) -> None:
        folder.mkdir()
        self.log = folder / "log"
        self.log.touch()
        self.program = folder / "python3"
        self.becomes(action)

    def becomes(self, action: str) -> None:
        """Make python3 do something else: a shell command."""
        log = shlex.quote(str(self.log))
        self.program.write_text(f'#!/bin/sh\necho "$*" >>{log}\n{action}\n')
        self.program.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(autouse=True)
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Put a python3 that logs its starts and runs this Python first on PATH."""
    asked = Asked(tmp_path / "programs")
    monkeypatch.setenv("PATH", f"{tmp_path / 'programs'}{os.pathsep}{os.environ['PATH']}")
    return asked


def everything(threads: int, *, spinning: bool = True, bound: bool = False) -> dict[str, str]:
    """Return all that the script exports if the user has set nothing."""
    counts = dict.fromkeys(THREAD_COUNTS, str(threads))
    binding = BINDING if bound else {}
    mark = {} if bound or spinning else {MARK: str(threads)}
    return {**counts, **binding, **({"KMP_BLOCKTIME": "200"} if spinning else {}), **mark}


# Python is asked once, and not again while nothing changes


def test_python_is_asked_once(shell: Shell, machine: Machine, asked: Asked) -> None:
    assert shell.sourced(machine.path) == everything(6)
    assert len(asked.calls) == 1
    assert asked.calls[0].startswith("-m bitnet_tuning env --sh ")
    code = "PATH=/nowhere; . ./bitnet-env.sh; PATH=/usr/bin:/bin"
    assert shell.sourced(machine.path, code=code) == everything(6)
    assert len(asked.calls) == 1


def test_the_answer_is_saved_below_a_tilde_that_no_shell_expanded(
    shell: Shell, machine: Machine, tmp_path: Path, asked: Asked
) -> None:
    own = {"HOME": str(tmp_path), "BITNET_TUNING_HOME": "~/kept answers"}
    for _ in range(2):
        assert shell.sourced(machine.path, own) == everything(6)
    assert [path.name for path in (tmp_path / "kept answers").iterdir()] == ["env-a0a0"]
    assert len(asked.calls) == 1


def test_every_shell_uses_the_answer_that_one_saved(machine: Machine, asked: Asked) -> None:
    for name in filter(shutil.which, COMMANDS):
        assert Shell(name).sourced(machine.path) == everything(6)
    assert len(asked.calls) == 1


def test_answers_for_two_affinities_are_both_kept(
    shell: Shell, known: Machine, asked: Asked
) -> None:
    for _ in range(2):
        assert shell.sourced(known.affinity("0-2").path) == everything(3)
        assert shell.sourced(known.affinity("0-11").path) == everything(6)
    assert len(asked.calls) == 1


def test_another_control_group_with_the_same_limits_needs_no_python(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    # Under systemd, every terminal is in a group of its own.
    files = {f"{group}/cgroup.procs": "" for group in ("one", "two")}
    machine.cgroup2("/one", {**files, "cpu.max": "300000 100000"})
    assert shell.sourced(machine.path) == everything(3, spinning=False)
    machine.write("proc/self/cgroup", "0::/two")
    assert shell.sourced(machine.path) == everything(3, spinning=False)
    assert len(asked.calls) == 1
    asked.becomes("echo 2 1")
    machine.write("proc/self/cgroup", "0::/not shown")
    assert shell.sourced(machine.path) == everything(2, spinning=False)


# A saved answer that no longer holds is not used


def test_a_changed_affinity_or_set_of_online_cpus_is_noticed(
    shell: Shell, known: Machine, asked: Asked
) -> None:
    asked.becomes("echo 1 0")
    assert shell.sourced(known.affinity("0-1").path) == everything(1)
    assert shell.sourced(known.affinity("0-11").path) == everything(6)
    assert shell.sourced(known.offline(5, 11).path) == everything(1)
    assert len(asked.calls) == 2


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_a_changed_affinity_of_this_process_is_noticed(shell: Shell) -> None:
    one = {min(os.sched_getaffinity(0))}
    code = ". ./bitnet-env.sh; echo $OMP_NUM_THREADS"
    before = shell.run(code).stdout
    bound = shell.run(code, prepare=lambda: os.sched_setaffinity(0, one)).stdout
    threads = choose_threads(Request(), read_host(), {}).setting.threads
    assert (before, bound) == (f"{threads}\n", "1\n")
    assert shell.run(code).stdout == before


LEVELS = ("", "a/", "a/b/")


def test_a_changed_quota_is_noticed_at_every_level(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    machine.cgroup2("/a/b", {f"{level}cpu.max": "max 100000" for level in LEVELS})
    assert shell.sourced(machine.path) == everything(6)
    asked.becomes("echo 2 1")
    for level in LEVELS:
        machine.write(f"sys/fs/cgroup/{level}cpu.max", "200000 100000")
        assert shell.sourced(machine.path) == everything(2, spinning=False)
        machine.write(f"sys/fs/cgroup/{level}cpu.max", "max 100000")
        assert shell.sourced(machine.path) == everything(6)


@pytest.mark.parametrize("controllers", ["cpu", "cpu,cpuacct"])
def test_a_changed_quota_of_version_1_is_noticed_at_every_level(
    shell: Shell, machine: Machine, asked: Asked, controllers: str
) -> None:
    files = {"cpu.cfs_quota_us": -1, "cpu.cfs_period_us": 100_000}
    machine.cgroup1(
        controllers, "/a/b", {f"{level}{name}": files[name] for level in LEVELS for name in files}
    )
    assert shell.sourced(machine.path) == everything(6)
    asked.becomes("echo 2 1")
    for level in LEVELS:
        for name, before in files.items():
            machine.write(f"sys/fs/cgroup/{controllers}/{level}{name}", 50_000)
            assert shell.sourced(machine.path) == everything(2, spinning=False)
            machine.write(f"sys/fs/cgroup/{controllers}/{level}{name}", before)
            assert shell.sourced(machine.path) == everything(6)


def test_a_changed_quota_of_a_container_is_noticed(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    # The container's own group is the root of the mount.
    machine.cgroup2("/docker/12", {"cpu.max": "400000 100000"}, origin="/docker/12")
    assert shell.sourced(machine.path) == everything(4, spinning=False)
    asked.becomes("echo 2 1")
    machine.write("sys/fs/cgroup/cpu.max", "200000 100000")
    assert shell.sourced(machine.path) == everything(2, spinning=False)


def test_nothing_is_saved_if_only_python_finds_the_quota(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    machine.cgroup2("/", {"cpu.max": "400000 100000"}, mount="/mnt/a b")
    assert shell.sourced(machine.path) == everything(4, spinning=False)
    asked.becomes("echo 2 1")
    assert shell.sourced(machine.path) == everything(2, spinning=False)


def test_another_boot_needs_a_new_answer(shell: Shell, known: Machine, asked: Asked) -> None:
    siblings = dict.fromkeys((4, 5, 10, 11), "4-5,10-11")
    known.per_cpu("topology/thread_siblings_list", siblings)
    assert shell.sourced(known.path) == everything(6), "the cores change only with a boot"
    known.write(BOOT, "b1b1")
    assert shell.sourced(known.path) == everything(5)
    assert len(asked.calls) == 1


def test_nothing_is_saved_without_a_home(
    shell: Shell, machine: Machine, asked: Asked, tmp_path: Path
) -> None:
    code = f"unset HOME BITNET_TUNING_HOME; cd '{tmp_path}'; . {QUOTED}"
    for threads in (6, 5):
        asked.becomes(f"echo {threads} 0")
        assert shell.sourced(machine.path, code=code) == everything(threads)
    assert not (tmp_path / ".cache").exists()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package and the script, with the times of the originals."""
    place = tmp_path_factory.mktemp("copy") / "a folder; with 'all' $sorts \\ü"
    ignored = shutil.ignore_patterns("__pycache__", "*.gguf")
    shutil.copytree(REPOSITORY / "bitnet_tuning", place / "bitnet_tuning", ignore=ignored)
    shutil.copy2(SCRIPT, place)
    return place


def test_a_changed_package_is_asked_again(
    shell: Shell, machine: Machine, checkout: Path, tmp_path: Path, asked: Asked
) -> None:
    place = shutil.copytree(checkout, tmp_path / "changed")
    (module,) = place.rglob("threads.py")
    text = module.read_text()

    def source() -> dict[str, str]:
        done = shell.run(". ./bitnet-env.sh; env", machine.path, folder=place)
        assert done.stderr == ""
        return variables_in(done.stdout)

    assert source() == source() == everything(6)
    assert len(asked.calls) == 1
    module.write_text(text.replace("MOST_THREADS = 12", "MOST_THREADS = 3"))
    assert source() == everything(3)
    module.write_text(text.replace("MOST_THREADS = 12", "MOST_THREADS = 2"))
    for path in place.rglob("*.py"):  # as if an older release replaced it
        time = path.stat().st_mtime - 1_000_000
        os.utime(path, (time, time))
    assert source() == everything(2)


def test_another_checkout_does_not_use_the_answer(
    shell: Shell, known: Machine, checkout: Path, asked: Asked
) -> None:
    asked.becomes("echo 5 0")
    done = shell.run(". ./bitnet-env.sh; env", known.path, folder=checkout)
    assert variables_in(done.stdout) == everything(5)


# A damaged file of answers does no harm


def test_a_damaged_answer_is_not_used(
    shell: Shell, known: Machine, own_state: Path, saved: tuple[str, int], asked: Asked
) -> None:
    text, time = saved
    asked.becomes("echo 5 0")
    wrong = "|x 0|4|0 0|007 0|4 2|4 0 0|1234 0|$(touch hit) 0|4;touch hit 0"
    for answer in wrong.split("|"):
        rewrite(own_state / "env-a0a0", text.replace("\n6 0\n", f"\n{answer}\n"), time)
        assert shell.sourced(known.path) == everything(5), answer
    assert not list(REPOSITORY.glob("hit"))


def test_a_truncated_file_gives_no_wrong_answer(
    shell: Shell, known: Machine, own_state: Path, saved: tuple[str, int], asked: Asked
) -> None:
    asked.becomes("echo 6 0")
    for size in (0, 10, -1, -2, -3, -4, -6):
        rewrite(own_state / "env-a0a0", saved[0][:size], saved[1])
        assert shell.sourced(known.path) == everything(6)


# Without a Python that works


@pytest.mark.parametrize("action", ["", "exit 1", "exit 0"])
def test_without_a_working_python_nothing_is_exported(
    shell: Shell, machine: Machine, tmp_path: Path, action: str
) -> None:
    """No python3 on PATH, one that fails as an old one does, and one that prints nothing."""
    path = tmp_path / "others"
    if action:
        Asked(path, action)
    for verbose, said in (("", ""), ("1", NOTHING)):
        own = {"BITNET_ENV_VERBOSE": verbose}
        code = f"PATH='{path}'; . ./bitnet-env.sh; echo $?; PATH=/usr/bin:/bin; env"
        done = shell.run(f"set -eu; {code}", machine.path, variables=own)
        assert (done.stdout[:2], done.stderr) == ("0\n", said)
        assert variables_in(done.stdout) == {}


@pytest.mark.skipif(not shutil.which("bash"), reason="not installed")
def test_a_python3_that_is_a_bash_script_does_not_start_an_endless_loop(asked: Asked) -> None:
    # bash sources the file in BASH_ENV before every script, such as pyenv's python3.
    asked.program.write_text(asked.program.read_text().replace("#!/bin/sh", "#!/usr/bin/env bash"))
    done = Shell("bash").run("echo $OMP_NUM_THREADS", variables={"BASH_ENV": str(SCRIPT)})
    assert done.stdout.strip().isdecimal()
    assert len(asked.calls) == 1


def test_without_a_python_earlier_exports_stay(shell: Shell, known: Machine) -> None:
    code = ". ./bitnet-env.sh; PATH=/nowhere BITNET_TUNING_HOME=/nowhere; . ./bitnet-env.sh; "
    assert shell.sourced(known.path, code=f"{code} PATH=/usr/bin:/bin") == everything(6)


def test_modules_in_the_current_folder_are_not_imported(
    shell: Shell, machine: Machine, tmp_path: Path
) -> None:
    place = tmp_path / "downloads"
    place.mkdir()
    for name in ("bitnet_tuning", "argparse", "os", "glob"):
        (place / f"{name}.py").write_text("open('imported', 'w')")
    done = shell.run(f". {QUOTED}; env", machine.path, folder=place)
    assert variables_in(done.stdout) == everything(6)
    assert not (place / "imported").exists()


# Ways to source it


def test_the_binding_is_exported_on_demand(shell: Shell, known: Machine) -> None:
    assert shell.sourced(known.path, BOUND) == everything(6, bound=True)
    code = "BITNET_ENV_BIND=1; . ./bitnet-env.sh; BITNET_ENV_BIND=; . ./bitnet-env.sh"
    assert shell.sourced(known.path, code=code) == everything(6)


def test_under_a_quota_threads_do_not_spin(shell: Shell, machine: Machine) -> None:
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


def test_options_of_the_shell_do_not_matter(shell: Shell, machine: Machine, asked: Asked) -> None:
    asked.becomes("echo 6 0")
    code = f'{STRANGE}. "{SCRIPT}"\nprintf "%s\\n" "$? $PWD"\nenv'
    done = shell.run(code, machine.path)
    assert done.stdout.splitlines()[0] == "0 /"
    assert variables_in(done.stdout) == everything(6)
    assert done.stderr == ""


def test_output_of_a_trap_is_not_taken_for_the_answer(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    asked.becomes("echo 6 0")
    done = shell.run(f"{TRAPS[shell.name]}; . ./bitnet-env.sh; env", machine.path)
    assert done.returncode == 0
    assert variables_in(done.stdout) == everything(6)
    assert done.stderr == ""


def test_an_earlier_failure_does_not_matter(shell: Shell, known: Machine) -> None:
    code = "set -e; false || . ./bitnet-env.sh; . ./bitnet-env.sh && echo $?"
    assert shell.run(code, known.path).stdout == "0\n"


def test_missing_files_of_the_kernel_are_no_error(
    shell: Shell, tmp_path: Path, asked: Asked
) -> None:
    asked.becomes("echo 1 0")
    assert shell.sourced(tmp_path / "bare") == everything(1)


def test_its_path_may_contain_spaces_and_a_link(
    shell: Shell, machine: Machine, checkout: Path, tmp_path: Path, asked: Asked
) -> None:
    link = tmp_path / "env *.sh"
    link.symlink_to(checkout / "bitnet-env.sh")
    for path in (checkout / "bitnet-env.sh", link):
        for start in ("", "cd /; ", "set -eu; "):
            own = {"FILE": str(path)}
            done = shell.run(f'{start}. "$FILE"; env', machine.path, variables=own)
            assert (variables_in(done.stdout), done.stderr) == (everything(6), "")
    assert len(asked.calls) == 1


def test_a_copy_of_the_script_alone_uses_the_installed_package(
    shell: Shell, machine: Machine, tmp_path: Path, asked: Asked
) -> None:
    shutil.copy(SCRIPT, tmp_path / "copy.sh")
    own = {"PYTHONPATH": str(REPOSITORY)}
    for _ in range(2):
        done = shell.run(". ./copy.sh; env", machine.path, folder=tmp_path, variables=own)
        assert variables_in(done.stdout) == everything(6)
    assert len(asked.calls) == 1


def test_in_an_interactive_shell_aliases_do_not_matter(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    asked.becomes("echo 3 1")
    machine.cgroup2("/ours", {"ours/cpu.max": "300000 100000"})
    aliases = "alias cd='cd -P' python3='python3 -i' cores='lscpu -e' bitnet='run it'\n"
    # An interactive shell without a terminal complains: it does so with an empty file, too.
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


def test_nothing_else_in_the_shell_changes(shell: Shell, known: Machine, tmp_path: Path) -> None:
    state = STATE[shell.name]
    code = (
        f"set -u; value=mine; trap : USR1; {{ {state}; }} >'{tmp_path}/before'; . ./bitnet-env.sh; "
        f"{{ {state}; }} >'{tmp_path}/after'; echo \"$OMP_NUM_THREADS $value\""
    )
    done = shell.run(code, known.path, arguments=["one", "two"])
    assert (done.stdout, done.stderr) == ("6 mine\n", "")
    before, after = (steady((tmp_path / name).read_text()) for name in ("before", "after"))
    assert before == after
    assert any("BITNET_ENV_ROOT" in line for line in before), "variables are listed at all"


def steady(text: str) -> list[str]:
    """Return the lines of a listing without the variables that any command changes."""
    return [line for line in text.splitlines() if not CHANGING.fullmatch(line.strip())]


# Variables of the user


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


SET_AND_ADDED = [
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
]
"""Variables that the user set, and those that the script adds with BITNET_ENV_BIND=1."""


def test_what_the_user_set_stays(shell: Shell, known: Machine) -> None:
    whole = everything(6, bound=True)
    cases, wanted = [], []
    for mine, added in SET_AND_ADDED:
        own = {name: MINE[name] for name in mine}
        cases += [{**own, **BOUND}, own]
        lone = {MARK: "6"} if added == COUNTS else {}
        wanted.append({name: value for name, value in whole.items() if name in added} | own | lone)
        free = added - PAIR
        mark = {MARK: "6"} if free and "KMP_BLOCKTIME" not in free else {}
        free = set() if free == WAITING else free
        wanted.append({name: value for name, value in whole.items() if name in free} | own | mark)
    for case, found, right in zip(
        cases, shell.sourced_with(cases, known.path), wanted, strict=True
    ):
        assert found == right, case


def test_nothing_is_added_that_could_be_taken_for_the_users(shell: Shell, known: Machine) -> None:
    cases: list[dict[str, str]] = [
        dict.fromkeys(THREAD_COUNTS, "3"),
        {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "3", "OPENBLAS_NUM_THREADS": "1"},
        BINDING,
        {"KMP_BLOCKTIME": "200"},
    ]
    assert shell.sourced_with(cases, known.path) == cases
    undone = ". ./bitnet-env.sh; BITNET_ENV=off; . ./bitnet-env.sh"
    assert shell.sourced_with(cases, known.path, undone) == cases


def owners(part: int) -> list[dict[str, str]]:
    """Return what users may have set: nothing, one variable, and some of the pairs.

    Some values are those that the script would export. Each ``part`` has other pairs.
    """
    like_ours = everything(6, bound=True)
    single = [{name: value} for name, value in (*MINE.items(), *like_ours.items())]
    pairs = [{**one, **other} for one, other in product(single, single) if one != other]
    return [{}, {"OMP_NUM_THREADS": "", "OMP_PLACES": ""}, *single, *pairs[part::PARTS]]


PARTS = 8 * len(COMMANDS)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("quota", ["max", "250000"])
def test_what_it_adds_is_recognised_and_removed(
    shell: Shell, known: Machine, asked: Asked, quota: str, bound: bool
) -> None:
    """Launchers and ``off`` find exactly what was added, whatever the user had set."""
    known.cgroup2("/", {"cpu.max": f"{quota} 100000"})
    host = known.host()
    threads = choose_threads(Request(), host, {}).setting.threads
    asked.becomes(f"echo {threads} {int(host.quota_binds)}")
    bind = BOUND if bound else {}
    cases = owners([*COMMANDS].index(shell.name) + len(COMMANDS) * (bound + 2 * (quota == "max")))
    code = (
        ". ./bitnet-env.sh; env; echo next; . ./bitnet-env.sh; env; echo next; "
        "BITNET_ENV=off; . ./bitnet-env.sh"
    )
    found = shell.sourced_with(({**own, **bind} for own in cases), known.path, code)
    for index, own in enumerate(cases):
        real = {name: value for name, value in own.items() if value}
        once, twice, off = found[3 * index : 3 * index + 3]
        assert once == twice
        assert real.items() <= once.items()
        added = {name: value for name, value in once.items() if value and name not in real}
        assert exported(once) == added.keys(), own
        assert {name: value for name, value in off.items() if value} == real, own
        assert added == shell_exports({**real, **bind}, threads, host.quota_binds), own
        added.pop(MARK, None)
        wanted = choose_variables(LLVM, threads, host.quota_binds, real)[0]
        assert added.items() <= wanted.items()


def test_launchers_replace_what_was_exported(shell: Shell, known: Machine) -> None:
    environ = shell.sourced(known.path)
    known.affinity("0-1")
    decided = choose_threads(Request(), known.host(), environ)
    assert decided.setting.threads == 2
    assert "2 of 6 physical cores" in decided.reasons["threads"]
    wanted = everything(2, bound=True)
    assert choose_variables(LLVM, 2, False, environ)[0] == wanted


def test_a_shell_with_other_limits_replaces_what_was_exported(
    shell: Shell, machine: Machine, asked: Asked
) -> None:
    asked.becomes("echo 2 1")
    assert shell.sourced(machine.path, everything(6)) == everything(2, spinning=False)


def test_bitnet_threads_sets_the_count_unless_it_is_no_number_from_1_to_512(
    shell: Shell, known: Machine
) -> None:
    """Launchers report a BITNET_THREADS that is wrong."""
    valid = {"3": 3, " 4 ": 4, "512": 512, "007": 7}
    wrong = ("", "0", "00", "513", "-1", "many", "2 3", "9" * 40, "$(x)", "*")
    texts = {**valid, **dict.fromkeys(wrong, 6)}
    found = shell.sourced_with(({"BITNET_THREADS": text} for text in texts), known.path)
    for (text, threads), exports in zip(texts.items(), found, strict=True):
        assert exports == everything(threads), text
    assert shell.sourced(known.path, code="BITNET_THREADS=3 . ./bitnet-env.sh") == everything(3)


# off


def test_off_unsets_everything(shell: Shell, known: Machine) -> None:
    word = "BITNET_ENV=off; . ./bitnet-env.sh" if shell.name == "dash" else ". ./bitnet-env.sh off"
    code = f". ./bitnet-env.sh; {word}; echo $? ${{BITNET_ENV-gone}}; env"
    done = shell.run(code, known.path)
    assert done.stdout.startswith("0 gone\n")
    assert variables_in(done.stdout) == {}
    assert done.stderr == ""
    assert shell.sourced(known.path, code="BITNET_ENV=off; . ./bitnet-env.sh") == {}


def test_off_leaves_what_was_changed_since(shell: Shell, known: Machine) -> None:
    off = "BITNET_ENV=off; . ./bitnet-env.sh"
    code = f". ./bitnet-env.sh; OMP_PROC_BIND=close; {off}"
    assert shell.sourced(known.path, BOUND, code) == {
        "OMP_PROC_BIND": "close",
        "OMP_PLACES": "cores",
    }


@pytest.mark.parametrize(
    ("arguments", "before"),
    [(["off", "now"], ""), (["prompts.jsonl"], ""), (["train"], "BITNET_ENV=1; ")],
)
def test_arguments_of_the_program_that_sources_it_are_ignored(
    shell: Shell, known: Machine, arguments: list[str], before: str
) -> None:
    done = shell.run(f"{before}. ./bitnet-env.sh; env", known.path, arguments=arguments)
    assert (variables_in(done.stdout), done.stderr) == (everything(6), "")


# Wrong use


@pytest.mark.parametrize("word", ["on", "OFF", "--help", "-"])
def test_an_unknown_argument_changes_nothing(
    shell: Shell, known: Machine, word: str, asked: Asked
) -> None:
    given = f"BITNET_ENV={word}; . ./bitnet-env.sh"
    if shell.name != "dash":
        given = f". ./bitnet-env.sh {word}"
    done = shell.run(f"set -eu; {given}; echo $?; env", known.path)
    assert done.stdout.startswith("0\n")
    assert variables_in(done.stdout) == {}
    assert done.stderr == (
        f"bitnet-env.sh: unknown argument: {word} (the only one is off); nothing changed\n"
    )
    assert asked.calls == []


@pytest.mark.parametrize("name", ["bitnet-env.sh", "./bitnet-env.sh", str(SCRIPT)])
def test_run_instead_of_sourced_it_says_how_to_source_it(
    shell: Shell, asked: Asked, name: str
) -> None:
    done = subprocess.run(
        [*shell.command, name], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("bitnet-env.sh: this file must be sourced, not run: . ./bitnet-env.sh\n")
    assert asked.calls == []


# BITNET_ENV_VERBOSE


def test_verbose_prints_a_line_about_what_was_done(shell: Shell, known: Machine) -> None:
    verbose = {"BITNET_ENV_VERBOSE": "1"}
    off = "BITNET_ENV=off; . ./bitnet-env.sh"
    done = shell.run(f". ./bitnet-env.sh; {off}; {off}", known.path, variables=verbose)
    names = "OMP_NUM_THREADS MKL_NUM_THREADS OPENBLAS_NUM_THREADS KMP_BLOCKTIME"
    exports = " ".join(f"{name}={value}" for name, value in everything(6).items())
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f"bitnet-env.sh: exported {exports}",
        f"bitnet-env.sh: unset {names}",
        "bitnet-env.sh: unset nothing: nothing was exported",
    ]
    own = {**verbose, "OMP_NUM_THREADS": "3", "KMP_BLOCKTIME": "0"}
    done = shell.run(". ./bitnet-env.sh", known.path, variables=own)
    assert done.stderr == "bitnet-env.sh: exported nothing: your own settings stay\n"


# The file


def test_the_script_has_at_most_100_lines() -> None:
    assert len(SCRIPT.read_text().splitlines()) <= 100


def test_shellcheck_finds_nothing() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        [program, "-s", "sh", str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
