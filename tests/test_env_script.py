"""bitnet-env.sh in every shell: the counts that Python computes, and no other trace."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path

import pytest

from bitnet_tuning.engine.binary import LLVM
from bitnet_tuning.machine.detect import read_host
from bitnet_tuning.machine.foreign import macos_host
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.plan.openmp import BINDING, THREAD_COUNTS, choose_variables, exported
from bitnet_tuning.plan.threads import choose_threads
from tests.conftest import REPOSITORY
from tests.machines import CGROUP, CPU, Machine, x86_entries

SCRIPT = REPOSITORY / "bitnet-env.sh"
DUMPS = REPOSITORY.parent / "shared" / "hosts"
NAMES = (*THREAD_COUNTS, *BINDING, "KMP_BLOCKTIME")
OURS = re.compile(r"(OMP|KMP|GOMP|MKL|OPENBLAS)_\w+=.*")

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
    return Machine(tmp_path / "root").regular(cores=6, threads=2)


def everything(threads: int, *, spinning: bool = True) -> dict[str, str]:
    """All that the script exports where the user set nothing."""
    waiting = {"KMP_BLOCKTIME": "200"} if spinning else {}
    return {**dict.fromkeys(THREAD_COUNTS, str(threads)), **BINDING, **waiting}


# The same counts as Python's


def computed(host: Host) -> str:
    """As ``counts`` prints it."""
    threads = choose_threads(host, {}, None, None, None).generation
    return f"{threads} {'' if host.quota_binds else '200'}"


def counts(shell: Shell, roots: Iterable[Path | str]) -> list[str]:
    """Threads and KMP_BLOCKTIME for each root, all from one shell."""
    code = "while read -r BITNET_ENV_ROOT; do . ./bitnet-env.sh; echo $OMP_NUM_THREADS "
    done = shell.run(code + '"${KMP_BLOCKTIME-}"; done', lines=map(str, roots))
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def check(shell: Shell, roots: Mapping[str, Path]) -> None:
    found = dict(zip(roots, counts(shell, roots.values()), strict=True))
    assert found == {name: computed(read_host(str(root))) for name, root in roots.items()}


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for path in sorted(DUMPS.glob("*.tar.gz")):
        folders[path.name] = tmp_path_factory.mktemp("dump")
        with tarfile.open(path) as archive:
            # What is not looked at is most of it.
            needed = [one for one in archive if not re.search(r"/(cache|cpuidle)/", one.name)]
            archive.extractall(folders[path.name], needed, filter="tar")
    return folders


@pytest.mark.skipif(not DUMPS.is_dir(), reason="no dumps beside the checkout")
def test_dumps_of_real_machines(shell: Shell, dumps: dict[str, Path]) -> None:
    check(shell, dumps)


New = Callable[[str], Machine]
"""A made-up machine by name, with nothing in it yet."""


def topologies(new: New) -> None:
    """Ways in which kernels have shown CPUs and cores."""
    for size in product((1, 3, 13), (1, 2, 4), (1, 2)):
        new(f"cores, threads, packages {size}").regular(*size)
    groups = [[0, 17, 33], [1], [2, 65], [40, 41]]
    for masks, new_names, end in product((False, True), (False, True), (b"\n", b"", b"\n\0")):
        one = new(f"masks {masks}, new names {new_names}, end {end!r}")
        one.cores(groups, masks=masks, new_names=new_names, end=end)
    new("nothing")
    new("only ids").bare_cpus([0, 2, 5, 11])
    new("cpuinfo").cpuinfo(x86_entries(5))
    new("s390").cpuinfo(f"processor {cpu}: version = 00" for cpu in range(3))
    new("offline").regular(8, 2).offline(1, 2, 9)
    new("folders").regular(12, 2).offline(3, 4).remove(f"{CPU}/online")
    described = new("a folder that says nothing").regular(4).remove(f"{CPU}/online")
    described.write(f"{CPU}/cpu9/uevent", "")
    lists = {0: "0,2", 1: "0-1", 2: "2", 3: "9,3"}
    new("disagreement").regular(4).per_cpu("topology/thread_siblings_list", lists)
    for text in ("", "0-", "3-1", "0-3-5", "x", "-1", "0,,2", "0-99999"):
        new(f"online {text!r}").regular(4).write(f"{CPU}/online", text)


def hybrids(new: New) -> None:
    """Kinds of cores, told by lists, capacities and clocks."""
    for size in product((1, 2, 3, 4, 8), (1, 4, 8, 12)):
        new(f"listed {size}").hybrid(*size)
    for text in ("4-7", "", "90", "x"):
        new(f"atoms {text!r}").regular(8).intel_kinds("0-3", text, "6-7")
    for values, vendor in product(FIGURES, ("GenuineIntel", "AuthenticAMD", "")):
        named = dict(enumerate(values))
        one = new(f"clocks {values} {vendor}").regular(len(values)).frequencies(named)
        one.cpuinfo(x86_entries(2, vendor=vendor))
        new(f"capacities {values} {vendor}").regular(len(values)).capacities(named)
    clocks = {cpu: 5_000_000 if cpu < 4 else 4_000_000 for cpu in range(12)}
    new("lists and clocks").hybrid(2, 8).frequencies(clocks)
    new("a core without a clock").regular(3).frequencies({0: 9, 2: 5})
    for cpus in ("0-3", "3-11", "2,7,9"):
        new(f"{cpus} of a hybrid").hybrid(2, 8).affinity(cpus)


FIGURES = (
    [1024] * 8,
    [997, 990, 970, 731, 720, 718, 700, 690],
    [1024, 1024, 512, 512],
    [1000, 840, 710, 600, 500],
    [1200, 1000, 999, 998, 997, 996, 995],
    [1, 99, 99],
    [1024, 430, 430, 430, 430, 430, 430],
)


def limits(new: New) -> None:
    """Affinity and quotas."""
    for cpus in ("0-3", "0,8", "5", "", "70-80", "0-8191", "?", "1,3,5,9,11", "0-15"):
        new(f"affinity {cpus!r}").affinity(cpus)
    for mask in ("00000000,00000103", "ff", "zz", "1,00000000", ""):
        new(f"mask {mask!r}").write("proc/self/status", f"Name:\tx\nCpus_allowed:\t{mask}")
    for text in QUOTAS:
        new(f"cpu.max {text!r}").cgroup2("/", {"cpu.max": text})
    for level in ("", "a/", "a/b/"):
        files = {f"{one}cpu.max": "600000 100000" for one in ("", "a/", "a/b/")}
        new(f"level {level}").cgroup2("/a/b", {**files, f"{level}cpu.max": "300000 100000"})
    new("both").affinity("0-5").cgroup2("/", {"cpu.max": "300000 100000"})
    for controllers, quota, period in product(
        ("cpu", "cpuacct,cpu", "cpuset", "memory"), (200_000, -1, 75_000), (100_000, 50_000, 0, "")
    ):
        files = {"job/cpu.cfs_quota_us": str(quota), "job/cpu.cfs_period_us": str(period)}
        new(f"{controllers} {quota} {period}").cgroup1(controllers, "/job", files)
    outer = {"cpu.cfs_quota_us": 150_000, "a/b/cpu.cfs_quota_us": 400_000}
    new("an outer level of version 1").cgroup1("cpu", "/a/b", outer)


QUOTAS = (
    *("max 100000", "400000 100000", "150000 100000", "50000 100000", "290000 100000"),
    *("200000", "0 100000", "100000 0", "-1 100000", "", "many 100000", "300000 x"),
    *("800000 100000", "799999 100000", "0300000 0100000", "9" * 17 + " 1"),
)


def mounts(new: New) -> None:
    """Places of control groups."""
    two = {"cpu.max": "200000 100000", "docker:1:2/cpu.max": "100000 100000"}
    one = {"ours/cpu.max": "100000 100000"}
    for path in ("/", "/..", "/../x", "/a/../../b", "/gone (deleted)", "/docker:1:2", "//"):
        new(f"group {path}").cgroup2(path, two)
    for origin in ("/docker/12", "/docker/1", "/docker", "/other", "/docker/12/"):
        new(f"origin {origin}").cgroup2("/docker/12", two, origin=origin)
    for mount in ("/cgroup2", "/mnt/a b/groups", "/x"):
        new(f"at {mount}").cgroup2("/", two, mount=mount)
    others = new("two mounts").cgroup2("/ours", two, mount="/other", origin="/theirs")
    others.cgroup2("/ours", one)
    apart = new("mounts of others").cgroup2("/ours", two, mount="/other", origin="/theirs")
    apart.cgroup2("/ours", {"cpu.max": "100000 100000"}, mount="/third", origin="/third")
    first = new("mounts of others, version 1")
    for number, origin in enumerate(("/theirs", "/third")):
        files = {"cpu.cfs_quota_us": 300_000 - 100_000 * number}
        first.cgroup1("cpu", "/ours", files, mount=f"/cpu{number}", origin=origin)
    crowded(new("a long table").cgroup2("/ours", one))
    for table in ("proc/self/mounts", "proc/mounts"):
        found = new(table).write("proc/self/cgroup", "0::/a\n4:x,cpu:/b")
        found.write(table, "proc /proc proc rw 0 0\nn /g cgroup2 rw 0 0\nn /h cgroup rw,cpu 0 0")
        found.write("g/a/cpu.max", "500000 100000").write("h/b/cpu.cfs_quota_us", 300_000)
    for place in ("cpu.max", "job/cpu.max", "unified/job/cpu.max", "cpu,x/job/cpu.cfs_quota_us"):
        bare = new(f"customary {place}").write("proc/self/cgroup", "3:cpu:/job\n0::/job")
        bare.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw")
        bare.write(f"{CGROUP}/{place}", 200_000)


def crowded(machine: Machine) -> Machine:
    """Ours is the last of a hundred mounts."""
    table = machine.path / "proc/self/mountinfo"
    others = (f"{number} 1 7:1 / /snap/{number} rw - squashfs /dev/x ro" for number in range(99))
    return machine.write("proc/self/mountinfo", "\n".join((*others, table.read_text().strip())))


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("roots")
    named: dict[str, Path] = {}

    def new(name: str) -> Machine:
        assert name not in named
        named[name] = base / f"root {len(named)}"
        return Machine(named[name])

    def eight(name: str) -> Machine:
        return new(name).regular(8, 2)

    topologies(new)
    hybrids(new)
    limits(eight)
    mounts(eight)
    return named


def test_made_up_machines(shell: Shell, roots: dict[str, Path]) -> None:
    check(shell, roots)


def test_the_made_up_machines_differ(roots: dict[str, Path]) -> None:
    found = {computed(read_host(str(root))) for root in roots.values()}
    assert {f"{threads} 200" for threads in range(1, 13)} <= found
    assert {"1 ", "2 ", "3 ", "4 "} <= found


@pytest.mark.parametrize(
    ("physical", "fast", "slow"), [(8, 4, 4), (10, 8, 2), (4, 4, 0), (12, 1, 11), (11, 5, 6)]
)
def test_macos(shell: Shell, tmp_path: Path, physical: int, fast: int, slow: int) -> None:
    """Its program is asked; names that a machine lacks are complained about."""
    values = {"hw.physicalcpu": physical}
    if slow:
        values |= {"hw.perflevel0.physicalcpu": fast, "hw.perflevel1.physicalcpu": slow}
    program = tmp_path / "usr/sbin/sysctl"
    program.parent.mkdir(parents=True)
    (tmp_path / "System/Library").mkdir(parents=True)
    said = "".join(f"echo {name}: {value}\n" for name, value in values.items())
    program.write_text(f"#!/bin/sh\necho unknown oid >&2\n{said}exit 1\n")
    program.chmod(0o755)
    assert counts(shell, [tmp_path]) == [computed(macos_host(values, Memory(None, None)))]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads this machine")
def test_this_machine(shell: Shell) -> None:
    assert counts(shell, [""]) == counts(shell, ["/"]) == [computed(read_host())]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_this_process_on_one_cpu(shell: Shell) -> None:
    one = {min(os.sched_getaffinity(0))}
    done = shell.run(
        ". ./bitnet-env.sh; echo $OMP_NUM_THREADS",
        prepare=lambda: os.sched_setaffinity(0, one),
    )
    assert done.stdout == "1\n"


def test_no_program_is_started(shell: Shell, machine: Machine) -> None:
    machine.hybrid(2, 8).affinity("0-11").cgroup2("/", {"cpu.max": "900000 100000"})
    code = "PATH=/nowhere; . ./bitnet-env.sh; echo $OMP_NUM_THREADS"
    assert shell.run(code, machine.path).stdout.split()[0] == computed(machine.host()).split()[0]


# Ways to source it


def test_everything_is_exported(shell: Shell, machine: Machine) -> None:
    assert shell.sourced(machine.path) == everything(6)


def test_no_spinning_under_a_quota(shell: Shell, machine: Machine) -> None:
    machine.cgroup2("/", {"cpu.max": "250000 100000"})
    assert shell.sourced(machine.path) == everything(2, spinning=False)


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
    assert shell.sourced(tmp_path / "absent") == everything(1)


@pytest.mark.parametrize("linked", [False, True])
def test_any_folder_and_a_path_with_spaces(
    shell: Shell, machine: Machine, tmp_path: Path, linked: bool
) -> None:
    place = tmp_path / "a folder; with 'all' $sorts"
    place.mkdir()
    if linked:
        (place / "env *.sh").symlink_to(SCRIPT)
    else:
        shutil.copy(SCRIPT, place / "env *.sh")
    done = shell.run(". './env *.sh'; env", machine.path, folder=place)
    assert (variables_in(done.stdout), done.stderr) == (everything(6), "")


def test_an_interactive_shell(shell: Shell, machine: Machine) -> None:
    """It says what it says about a file with nothing in it; aliases do not matter."""
    crowded(machine.cgroup2("/ours", {"ours/cpu.max": "300000 100000"}))
    aliases = "alias grep='grep --color=always -n' cores='lscpu -e' bitnet='run it'\n"
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
        (("OMP_PLACES", "KMP_LIBRARY"), set()),
    ],
)
def test_what_the_user_set_stays(
    shell: Shell, machine: Machine, mine: tuple[str, ...], added: set[str]
) -> None:
    own = {name: MINE[name] for name in mine}
    assert shell.sourced(machine.path, own) == {
        **{name: value for name, value in everything(6).items() if name in added},
        **own,
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
    like_ours = everything(6)
    single = [{name: value} for name, value in (*MINE.items(), *like_ours.items())]
    pairs = [{**one, **other} for one, other in product(single, single) if one != other]
    return [{}, {"OMP_NUM_THREADS": "", "OMP_PLACES": ""}, *single, *pairs[::7]]


def test_what_it_adds_is_recognised_and_taken_back(shell: Shell, machine: Machine) -> None:
    """Launchers and ``off`` name exactly what was added, whatever the user had set."""
    cases = owners()
    code = (
        'while read -r own; do (eval "export $own"; . ./bitnet-env.sh; env; echo next\n'
        ". ./bitnet-env.sh; env; echo next; BITNET_ENV=off; . ./bitnet-env.sh; env; echo next\n"
        ") done"
    )
    lines = [" ".join(f"{name}={value}" for name, value in own.items()) or "OWN=" for own in cases]
    done = shell.run(code, machine.path, lines=lines)
    assert done.stderr == ""
    found = [variables_in(text) for text in done.stdout.split("next\n")]
    for index, own in enumerate(cases):
        real = {name: value for name, value in own.items() if value}
        once, twice, off = found[3 * index : 3 * index + 3]
        assert once == twice
        assert real.items() <= once.items()
        added = {name: value for name, value in once.items() if name not in real}
        assert exported(once) == added.keys(), own
        assert {name: value for name, value in off.items() if value} == real
        wanted = choose_variables(LLVM, (), 6, False, real).variables
        assert added.items() <= wanted.items()


def test_launchers_compute_anew_what_was_exported(shell: Shell, machine: Machine) -> None:
    environ = shell.sourced(machine.path)
    machine.affinity("0-1")
    decided = choose_threads(machine.host(), environ, None, None, None)
    assert decided.generation == 2
    assert "2 of 6 physical cores" in decided.reason
    assert choose_variables(LLVM, (), 2, False, environ).variables == everything(2)


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
    assert shell.sourced(machine.path, code=code) == {
        "OMP_PROC_BIND": "close",
        "OMP_PLACES": "cores",
    }


def test_off_with_nothing_set(shell: Shell, machine: Machine) -> None:
    assert shell.sourced(machine.path, code="BITNET_ENV=off; . ./bitnet-env.sh") == {}


def test_words_of_the_program_that_sources_it(shell: Shell, machine: Machine) -> None:
    done = shell.run(". ./bitnet-env.sh; env", machine.path, arguments=["off", "now"])
    assert variables_in(done.stdout) == everything(6)


# What it says


def test_a_line_where_it_is_wanted(shell: Shell, machine: Machine) -> None:
    verbose = {"BITNET_ENV_VERBOSE": "1", "OMP_PLACES": "sockets"}
    code = ". ./bitnet-env.sh; BITNET_ENV=off; . ./bitnet-env.sh; . ./bitnet-env.sh"
    done = shell.run(f"{code}; echo end", machine.path, variables=verbose)
    assert done.stdout == "end\n"
    first, second, third = done.stderr.splitlines()
    assert first == third
    assert first.startswith("bitnet-env.sh: exported OMP_NUM_THREADS=6 MKL_NUM_THREADS=6 ")
    assert first.endswith(" KMP_BLOCKTIME=200; as you set them: OMP_PLACES")
    assert second.startswith("bitnet-env.sh: took back OMP_NUM_THREADS MKL_NUM_THREADS ")


def test_where_it_exports_nothing_it_says_why(shell: Shell, machine: Machine) -> None:
    verbose = {"BITNET_ENV_VERBOSE": "1", **BINDING}
    done = shell.run(". ./bitnet-env.sh", machine.path, variables=verbose)
    assert done.stderr == (
        "bitnet-env.sh: exported nothing; as you set them: OMP_PROC_BIND OMP_PLACES\n"
    )


def test_shellcheck() -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("no shellcheck")
    done = subprocess.run(
        [program, "-s", "sh", str(SCRIPT)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
