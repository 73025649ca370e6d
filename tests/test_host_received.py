"""What a running program has received: on fake roots, and of one that really runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_tuning.machine.limits import LockLimit
from bitnet_tuning.machine.process import Family, Received, read_received
from bitnet_tuning.machine.root import Root
from tests.machines import Machine

LIMITS = "Limit  Soft Limit  Hard Limit  Units\nMax locked memory   8388608   8388608   bytes"
MAPS = """\
7f00 default file=/model mapped=30 active=20 N0=20 N1=10 kernelpagesize_kB=4
7f10 default anon=2 dirty=2 N1=2 kernelpagesize_kB=2048
7f20 default
"""


class Programs(Machine):
    """A fake root with processes of process group 100."""

    def process(self, pid: int, resident: int, threads: int, *, locked: int = 0) -> Programs:
        self.write(f"proc/{pid}/stat", stat(pid))
        self.write(
            f"proc/{pid}/status",
            f"Name:\tx\nVmLck:\t{locked:8} kB\nVmRSS:\t{resident:8} kB\n"
            f"HugetlbPages:\t    2048 kB\nThreads:\t{threads}",
        )
        self.write(f"proc/{pid}/environ", b"OMP_NUM_THREADS=4\0EMPTY=\0")
        self.write(f"proc/{pid}/smaps_rollup", "0-1 ---p\nRss: 9 kB\nAnonHugePages:   4096 kB")
        self.write(f"proc/{pid}/numa_maps", MAPS)
        self.write(f"proc/{pid}/limits", LIMITS)
        for thread in range(pid, pid + threads):
            self.thread(pid, thread)
        return self

    def thread(self, pid: int, thread: int, cpus: str = "0-1", niceness: int = 0) -> Programs:
        folder = f"proc/{pid}/task/{thread}"
        self.write(f"{folder}/stat", stat(thread, niceness))
        self.write(f"{folder}/status", f"Name:\tx\nCpus_allowed_list:\t{cpus}")
        return self


def stat(pid: int, niceness: int = 0) -> str:
    return f"{pid} (llama (x) cli) S 1 100 1 0 -1 0 0 0 0 0 5 5 0 0 20 {niceness} 1 0 0"


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path / "root")


def look(programs: Programs, counted: bool = False) -> Received | None:
    root = Root(str(programs.path))
    return read_received(root, Family(root, 100), huge=counted, nodes=counted)


def test_all_that_is_shown(programs: Programs) -> None:
    programs.process(100, 3000, 2, locked=2000).thread(100, 101, "2,4", -5)
    assert look(programs) == Received(
        process=100,
        cpus=(frozenset((0, 1)), frozenset((2, 4))),
        niceness=(0, -5),
        resident=3000 * 1024,
        locked=2000 * 1024,
        huge=None,
        variables={"OMP_NUM_THREADS": "4", "EMPTY": ""},
        lock_limit=LockLimit(8 << 20),
        nodes={},
    )
    seen = look(programs, counted=True)
    assert seen is not None
    assert seen.huge == (4096 + 2048) * 1024
    assert seen.nodes == {0: 20 * 4096, 1: 10 * 4096 + 2 * (2 << 20)}


def test_nothing_is_shown_but_the_process(programs: Programs) -> None:
    programs.write("proc/100/stat", stat(100)).write("proc/100/status", "VmRSS:\t 1 kB")
    assert look(programs, counted=True) == Received(100, (), (), 1024, None, None, None, None, {})


@pytest.mark.parametrize(
    ("script", "engine", "expected"),
    [((1000, 1), (500, 4), 101), ((1000, 1), (5000, 1), 101), ((5000, 2), (500, 2), 100)],
)
def test_the_member_that_computes_is_looked_at(
    programs: Programs, script: tuple[int, int], engine: tuple[int, int], expected: int
) -> None:
    seen = look(programs.process(100, *script).process(101, *engine))
    assert seen is not None and seen.process == expected


def test_what_has_ended_is_not_looked_at(programs: Programs) -> None:
    assert look(programs) is None
    programs.write("proc/100/stat", stat(100)).write("proc/100/status", "State:\tZ (zombie)")
    assert look(programs) is None


LOCKER = """\
import ctypes, mmap, os, sys
os.nice(3)
os.sched_setaffinity(0, {int(sys.argv[1])})
memory = mmap.mmap(-1, 1 << 16)
held = ctypes.c_char.from_buffer(memory)
print(ctypes.CDLL(None).mlock(ctypes.byref(held), ctypes.c_size_t(1 << 16)), flush=True)
input()
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc")
def test_a_program_that_runs() -> None:
    cpu = min(os.sched_getaffinity(0))
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(cpu)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "KMP_BLOCKTIME": "7"},
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        refused = child.stdout.readline().strip() != b"0"
        seen = read_received(Root(), Family(Root(), child.pid), nodes=True)
        child.communicate(b"\n", timeout=20)
    assert seen is not None
    assert (seen.process, set(seen.cpus)) == (child.pid, {frozenset((cpu,))})
    assert set(seen.niceness) == {min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)}
    assert seen.variables is not None and seen.variables["KMP_BLOCKTIME"] == "7"
    assert seen.resident is not None and seen.resident > 1 << 20
    if refused:
        pytest.skip("no memory may be locked here")
    assert seen.locked == 1 << 16
