"""Running processes as the kernel shows them: below fake roots, and one that really runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_tuning.machine.process import Family, Process, Thread, shows_programs
from bitnet_tuning.machine.root import Root
from tests.machines import Machine
from tests.processes import SECONDS

MAPS = """\
7f00 default file=/model mapped=30 active=20 N0=20 N1=10 kernelpagesize_kB=4
7f10 default anon=2 dirty=2 N1=2 kernelpagesize_kB=2048
7f20 default
"""


def stat(
    pid: int, parent: int, group: int, *, state: str = "R", ticks: int = 0, nice: int = 0
) -> str:
    begin = f"{pid} (llama (x) cli) {state} {parent} {group} 1 0 -1 0 0 0 0 0"
    return f"{begin} {ticks} 0 0 0 20 {nice} 1"


class Programs(Machine):
    """A fake root with processes."""

    def process(self, pid: int, parent: int, group: int, **how: str) -> Programs:
        state = how.get("state", "R")
        self.write(f"proc/{pid}/stat", stat(pid, parent, group, state=state))
        self.write(f"proc/{pid}/environ", how.get("environ", "A=1\0").encode())
        return self.thread(pid, pid, 5_000_000, 0, "0-1")

    def thread(self, pid: int, tid: int, ran: int, waited: int, cpus: str) -> Programs:
        folder = f"proc/{pid}/task/{tid}"
        self.write(f"{folder}/schedstat", f"{ran} {waited} 17")
        self.write(f"{folder}/stat", stat(tid, 1, 1))
        self.write(f"{folder}/status", f"Name:\tx\nCpus_allowed:\t3\nCpus_allowed_list:\t{cpus}")
        return self


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path / "root")


def family(programs: Programs, leader: int = 100) -> Family:
    return Family(Root(str(programs.path)), leader)


def ids(seen: Family) -> list[int]:
    return [process.id for process in seen.look()]


def test_a_thread_has_its_times_and_its_affinity(programs: Programs) -> None:
    programs.process(100, 1, 100).thread(100, 101, 2_000_000_000, 500_000_000, "0,4-5")
    (process,) = family(programs).look()
    assert process.threads == (
        Thread(100, 0.005, 0.0, frozenset({0, 1}), 0),
        Thread(101, 2.0, 0.5, frozenset({0, 4, 5}), 0),
    )


def test_without_schedstat_the_ticks_of_stat_count(programs: Programs) -> None:
    programs.process(100, 1, 100)
    programs.remove("proc/100/task/100/schedstat")
    programs.write("proc/100/task/100/stat", stat(100, 1, 100, ticks=250))
    (thread,) = family(programs).look()[0].threads
    assert (thread.ran, thread.waited) == (2.5, 0.0)


def test_a_schedstat_of_zeros_does_not_count(programs: Programs) -> None:
    programs.process(100, 1, 100).thread(100, 100, 0, 0, "0")
    programs.write("proc/100/task/100/stat", stat(100, 1, 100, ticks=30))
    assert family(programs).look()[0].threads[0].ran == 0.3


@pytest.mark.parametrize("text", ["", "0-", "x"])
def test_a_broken_affinity_is_unknown(programs: Programs, text: str) -> None:
    programs.process(100, 1, 100).thread(100, 100, 1, 0, text)
    cpus = family(programs).look()[0].threads[0].cpus
    assert cpus == (frozenset() if not text else None)


def test_without_a_status_file_the_affinity_is_unknown(programs: Programs) -> None:
    programs.process(100, 1, 100).remove("proc/100/task/100/status")
    assert family(programs).look()[0].threads[0].cpus is None


def test_an_environment_may_contain_equal_signs_and_newlines_or_be_empty(
    programs: Programs,
) -> None:
    text = "OMP_PLACES={0}:2\0OPT=a=b\0MULTI=one\ntwo\0EMPTY=\0nonsense\0LAST=x\0"
    programs.process(100, 1, 100, environ=text).process(101, 100, 100, environ="")
    first, second = family(programs).look()
    assert first.variables == {
        **{"OMP_PLACES": "{0}:2", "OPT": "a=b", "MULTI": "one\ntwo"},
        **{"EMPTY": "", "LAST": "x"},
    }
    assert second.variables == {}


def test_members_are_the_leader_its_descendants_and_its_group(programs: Programs) -> None:
    programs.process(1, 0, 1).process(50, 1, 50).process(100, 50, 100)
    programs.process(101, 100, 100)  # in the group
    programs.process(102, 101, 102)  # a grandchild in a group of its own
    programs.process(103, 1, 100)  # an orphan of the group
    programs.process(104, 50, 50)
    assert ids(family(programs)) == [100, 101, 102, 103]


def test_new_members_are_added_and_zombies_left_out(programs: Programs) -> None:
    seen = family(programs.process(100, 1, 100).process(50, 1, 50))
    assert ids(seen) == [100]
    programs.process(120, 100, 100)
    assert ids(seen) == [100, 120]
    programs.process(100, 1, 100, state="Z")
    assert ids(seen) == [120]


def test_another_process_is_examined_only_once(programs: Programs) -> None:
    seen = family(programs.process(100, 1, 100).process(50, 1, 50))
    assert ids(seen) == [100]
    programs.process(50, 100, 100)
    assert ids(seen) == [100]


def test_an_empty_root_shows_nothing(programs: Programs) -> None:
    assert family(programs).look() == ()
    assert not shows_programs(Root(str(programs.path)))
    programs.write("proc/self/task/1/stat", "")
    assert shows_programs(Root(str(programs.path)))


@pytest.mark.parametrize("content", ["", "100 (x", "100 (x) R", "100 (x) R 1"])
def test_a_process_with_a_broken_stat_is_no_member(programs: Programs, content: str) -> None:
    programs.process(100, 1, 100).process(101, 100, 100).write("proc/101/stat", content)
    assert 101 not in ids(family(programs))


def test_memory_niceness_and_nodes_are_read(programs: Programs) -> None:
    programs.process(100, 1, 100)
    programs.write("proc/100/task/100/stat", stat(100, 1, 100, nice=-5))
    sizes = "VmLck:\t    2000 kB\nVmRSS:\t    3000 kB\nHugetlbPages:\t    2048 kB"
    programs.write("proc/100/status", f"Name:\tx\n{sizes}")
    programs.write("proc/100/smaps_rollup", "0-1 ---p\nRss: 9 kB\nAnonHugePages:   4096 kB")
    programs.write("proc/100/numa_maps", MAPS)
    (plain,) = family(programs).look()
    assert plain == Process(
        *(100, {"A": "1"}, (Thread(100, 0.005, 0.0, frozenset({0, 1}), -5),)),
        resident=3000 * 1024,
        locked=2000 * 1024,
    )
    (counted,) = family(programs).look(huge=True, nodes=True)
    assert counted.huge == (4096 + 2048) * 1024
    assert counted.nodes == {0: 20 * 4096, 1: 10 * 4096 + 2 * (2 << 20)}


def test_what_the_kernel_does_not_show_is_unknown(programs: Programs) -> None:
    programs.process(100, 1, 100).remove("proc/100/environ")
    (seen,) = family(programs).look(huge=True, nodes=True)
    assert seen[3:] == (None, None, None, None)
    assert seen.variables is None


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
def test_a_real_process_shows_its_environment_threads_and_memory() -> None:
    cpu = min(os.sched_getaffinity(0))
    with subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(cpu)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_PLACES": "cores"},
        start_new_session=True,
    ) as child:
        assert child.stdout is not None
        refused = child.stdout.readline().strip() != b"0"
        (process,) = Family(Root(), child.pid).look()
        child.communicate(b"\n", timeout=SECONDS)
    (thread,) = process.threads
    assert process.id == child.pid
    assert process.variables is not None and process.variables["OMP_PLACES"] == "cores"
    assert thread.cpus == frozenset({cpu})
    assert thread.niceness == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    assert 0 < thread.ran < SECONDS
    assert process.resident is not None and process.resident > 1 << 20
    if refused:
        pytest.skip("this process may not lock memory")
    assert process.locked == 1 << 16
