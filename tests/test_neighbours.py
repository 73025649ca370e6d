"""Programs beside the engine: what they take is measured, and the plan leaves it to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from bitnet_tuning.machine import load
from bitnet_tuning.machine.detect import count_running
from bitnet_tuning.machine.load import Neighbours, watch
from bitnet_tuning.machine.root import Root
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.setting import Setting
from tests import profile_samples
from tests.engines import FakeEngine
from tests.machines import Machine
from tests.processes import marked, until
from tests.profile_samples import ENGINE, MODEL

SCRIPTS = Path(__file__).parents[1]
MODEL_FILE = SCRIPTS / "bitnet_tuning" / "demo" / "demo-i2_s.gguf"
IGNORE = "BITNET_IGNORE_LOAD"
HELLO = Request(prompt="hello")
TICKS = 100
"""Ticks per second of /proc/stat."""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root")


class Town:
    """A machine of some CPUs whose clock moves when somebody sleeps."""

    def __init__(self, machine: Machine, cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.machine = machine.cores([[cpu] for cpu in range(cpus)]).affinity(f"0-{cpus - 1}")
        self.now = 1000.0
        self.busy: dict[int, Callable[[float], float]] = {}
        """CPU time that others have used on each CPU at a moment."""
        self.stolen = 0.0
        """Share of each CPU that the hypervisor takes."""
        self.processes: dict[int, tuple[str, float, float, int]] = {}
        """Name, share of a CPU, start, parent."""
        self.nice: dict[int, int] = {}
        self.average = 0.0
        self.cpus = cpus
        clock = SimpleNamespace(monotonic=lambda: self.now, process_time=lambda: 0.0)
        monkeypatch.setattr(load, "time", clock)
        self.sleep(0)

    def spins(self, pid: int, name: str, since: float, cpu: int, parent: int = 1) -> Town:
        self.processes[pid] = (name, 1.0, since, parent)
        self.busy[cpu] = lambda now: now - since
        self.sleep(0)
        return self

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        rows = []
        for cpu in range(self.cpus):
            used = self.busy[cpu](self.now) if cpu in self.busy else 0.0
            rows.append((round(used * TICKS), round(self.stolen * self.now * TICKS)))
        lines = [f"cpu {sum(u for u, _ in rows)} 0 0 9 0 0 0 {sum(s for _, s in rows)}"]
        lines += [f"cpu{cpu} {u} 0 0 9 0 0 0 {s}" for cpu, (u, s) in enumerate(rows)]
        self.machine.write("proc/stat", "\n".join(lines))
        self.machine.write("proc/uptime", f"{self.now:.2f} 0.00")
        self.machine.write("proc/loadavg", f"{self.average:.2f} 0.00 0.00 {len(self.busy) + 1}/9 9")
        for pid, (name, share, since, parent) in self.processes.items():
            used = max(0, round(share * (self.now - since) * TICKS))
            start, nice = round(since * TICKS), self.nice.get(pid, 0)
            self.machine.program(pid, name, used, start=start, parent=parent, nice=nice)

    def watched(self) -> Neighbours | None:
        return watch(self.machine.host(), Root(str(self.machine.path)), self.sleep)

    @property
    def running(self) -> int:
        return count_running(Root(str(self.machine.path)))


@pytest.fixture
def town(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Town:
    return Town(machine, 4, monkeypatch)


def test_an_idle_machine_is_watched_for_a_moment_only(town: Town) -> None:
    begin = town.now
    assert town.running == 0
    assert town.watched() is None
    assert town.now - begin < 0.05


def test_a_program_that_has_computed_for_a_second_is_a_neighbour(town: Town) -> None:
    seen = town.spins(7, "miner", town.now - 2, 0).watched()
    assert seen is not None
    assert seen.cpus == pytest.approx(1, abs=0.1)
    assert seen.programs == ("miner",)
    assert town.running == 1


def test_a_program_that_has_just_started_is_none(town: Town) -> None:
    assert town.spins(7, "prompt", town.now - 0.2, 0).watched() is None


def test_a_program_that_seldom_computes_is_none(town: Town) -> None:
    """It has used 3 s of CPU time in an hour, and computes just now."""
    town.busy[0] = lambda now: now
    town.processes[7] = ("browser", 0.0, 1.0, 1)
    town.sleep(0)
    town.machine.program(7, "browser", 300, start=100)
    assert town.watched() is None


def test_short_programs_of_a_long_build_are_neighbours(town: Town) -> None:
    town.machine.program(6, "make", 2, family=3000, start=round((town.now - 40) * TICKS))
    seen = town.spins(7, "cc1", town.now - 0.2, 0, parent=6).watched()
    assert seen is not None
    assert seen.cpus == pytest.approx(1, abs=0.3)


def test_what_init_has_waited_for_says_nothing(town: Town) -> None:
    """Orphans end as its children, and so does the work of every service that was stopped."""
    town.machine.program(1, "init", 2, family=round(town.now * TICKS), parent=0)
    assert town.spins(7, "prompt", town.now - 0.2, 0).watched() is None


def test_a_load_that_nobody_can_see_counts_if_it_lasts(town: Town) -> None:
    """In a container the other programs of the host are not listed."""
    town.busy[0] = town.busy[1] = lambda now: now
    town.sleep(0)
    assert town.watched() is None
    town.average = 1.9
    seen = town.watched()
    assert seen is not None
    assert (round(seen.cpus, 1), seen.programs) == (2.0, ())


def test_cpus_that_this_process_may_not_use_do_not_count(town: Town) -> None:
    town.spins(7, "miner", town.now - 9, 3)
    town.machine.affinity("0-2")
    assert town.watched() is None
    town.machine.affinity("2-3")
    assert town.watched() is not None


@pytest.mark.parametrize(
    ("enabled", "group", "yields"),
    [
        ("0", "/autogroup-1 nice 0", True),
        ("1", "/autogroup-1 nice 0", True),
        ("1", "/autogroup-2 nice 0", False),
        ("1", "/autogroup-2 nice 19", True),
        ("1", "x", False),
    ],
)
def test_a_program_that_yields_is_no_neighbour(
    town: Town, enabled: str, group: str, yields: bool
) -> None:
    """Niceness counts within a session, and between sessions if the group has it."""
    town.nice[7] = 19
    town.machine.program(os.getpid(), "me").write("proc/self/stat", "1 (me) R 1" + " 0" * 20)
    town.spins(7, "miner", town.now - 9, 0)
    town.machine.write("proc/sys/kernel/sched_autogroup_enabled", enabled)
    town.machine.write("proc/self/autogroup", "/autogroup-1 nice 0")
    town.machine.write("proc/7/autogroup", group)
    assert (town.watched() is None) is yields


def test_a_program_that_is_as_nice_as_this_one_does_not_yield(town: Town) -> None:
    town.nice[7] = 19
    town.machine.write("proc/self/stat", "1 (me) R 1" + " 0" * 14 + " 19" + " 0" * 5)
    assert town.spins(7, "miner", town.now - 9, 0).watched() is not None


def test_stolen_time_counts_as_busy(town: Town) -> None:
    town.stolen = 0.25
    town.sleep(0)
    seen = town.watched()
    assert seen is not None
    assert seen.cpus == pytest.approx(1.0, abs=0.2)
    assert town.running == 1


@pytest.mark.parametrize("version", [1, 2])
def test_the_group_s_own_use_of_its_quota_counts(town: Town, version: int) -> None:
    if version == 2:
        town.machine.cgroup2("/", {"cpu.max": "200000 100000"})
    else:
        files = {"cpu.cfs_quota_us": 200000, "cpu.cfs_period_us": 100000}
        town.machine.cgroup1("cpu,cpuacct", files=files)
    folder = next(
        path.parent for path in town.machine.path.rglob("cpu.*us" if version == 1 else "cpu.max")
    )
    plain = town.sleep

    def sleep(seconds: float) -> None:
        plain(seconds)
        if version == 2:
            (folder / "cpu.stat").write_text(f"usage_usec {round(town.now * 1e6)}\n")
        else:
            (folder / "cpuacct.usage").write_text(f"{round(town.now * 1e9)}\n")

    town.average, town.sleep = 1.0, sleep  # type: ignore[method-assign]
    town.busy[0] = lambda now: now
    town.sleep(0)
    seen = town.watched()
    assert seen is not None
    assert seen.group == pytest.approx(1.0, abs=0.1)


def test_unreadable_counters_say_nothing(town: Town) -> None:
    town.spins(7, "miner", town.now - 9, 0)
    for name in ("stat", "loadavg", "uptime", "7/stat"):
        town.machine.write(f"proc/{name}", "x")
    assert watch(town.machine.host(), Root(str(town.machine.path)), lambda _: None) is None
    assert town.running == 0


@pytest.mark.parametrize("content", ["abc x x 5/3 1", "0,50 0,4 0,3 5/100 1", ""])
def test_a_strange_load_average_counts_as_none(town: Town, content: str) -> None:
    plain = town.sleep

    def sleep(seconds: float) -> None:
        plain(seconds)
        town.machine.write("proc/loadavg", content)

    town.sleep = sleep  # type: ignore[method-assign]
    assert town.spins(7, "miner", town.now - 9, 0).watched() is not None


def test_processes_that_are_each_other_s_parents_end_the_search(town: Town) -> None:
    town.spins(7, "x", town.now - 0.2, 0, parent=8).spins(8, "y", town.now - 0.2, 1, parent=7)
    assert town.watched() is None


# The plan


def planned(
    machine: Machine,
    seen: Neighbours | None,
    request: Request = HELLO,
    environ: dict[str, str] | None = None,
    setting: Setting | None = None,
) -> Plan:
    host = machine.host()
    saved = profile_samples.profile(host, ENGINE, setting) if setting else None
    facts = Facts(host, ENGINE, MODEL, "named with -m", environ or {}, profile=saved)
    return make_plan(request, facts._replace(neighbours=seen))


@pytest.mark.parametrize(
    ("cores", "seen", "threads"),
    [
        (2, 0.4, 2),
        (2, 0.7, 2),
        (2, 0.8, 1),
        (2, 1.0, 1),
        (2, 2.0, 1),
        (4, 1.1, 3),
        (8, 2.9, 5),
        (8, 1.3, 7),
        (64, 10.0, 12),
        (64, 60.0, 4),
        (4, 9.0, 1),
    ],
)
def test_threads_are_left_for_other_programs(
    machine: Machine, cores: int, seen: float, threads: int
) -> None:
    machine.cores([[cpu] for cpu in range(cores)])
    plan = planned(machine, Neighbours(seen))
    assert plan.setting.threads == threads
    assert plan.setting.threads_batch <= max(threads, cores - int(seen))


def test_with_smt_a_core_s_second_cpu_is_better_than_few_cores(machine: Machine) -> None:
    machine.cores([[cpu, cpu + 4] for cpu in range(4)])
    assert planned(machine, Neighbours(1.0)).setting.threads == 3
    assert planned(machine, Neighbours(3.0)).setting.threads == 4
    assert planned(machine, Neighbours(7.0)).setting.threads == 1


def test_the_group_s_use_is_taken_off_the_quota(machine: Machine) -> None:
    machine.cores([[cpu] for cpu in range(8)]).cgroup2("/", {"cpu.max": "300000 100000"})
    assert planned(machine, Neighbours(1.0, 0.0)).setting.threads == 3
    assert planned(machine, Neighbours(1.0, 1.0)).setting.threads == 2


def test_the_plan_says_who_is_busy_and_what_that_costs(machine: Machine) -> None:
    machine.cores([[0], [1]])
    idle = planned(machine, None)
    plan = planned(machine, Neighbours(1.0, programs=("cc1plus", "make")))
    assert idle.setting.variables["OMP_PROC_BIND"] == "true"
    assert plan.reasons["threads"].startswith(
        "1: 1 of 2 CPUs is busy with other programs (cc1plus, make); else 2: "
    )
    assert plan.warnings[-1] == (
        "1 of 2 CPUs is busy with other programs (cc1plus, make): using 1 thread instead of 2 "
        "(-t 2 insists)"
    )
    assert (plan.setting.threads, plan.setting.threads_batch) == (1, 1)
    assert plan.setting.variables["OMP_NUM_THREADS"] == "1"
    assert "OMP_PROC_BIND" not in plan.setting.variables
    assert "; but for 1 thread, not bound: a core may be busy" in plan.reasons["env"]
    assert plan.command[plan.command.index("-t") + 1] == "1"


@pytest.mark.parametrize(
    ("request_", "environ"),
    [
        (Request(prompt="x", threads=2), {}),
        (Request(prompt="x"), {"BITNET_THREADS": "2"}),
        (Request(prompt="x"), {"OMP_NUM_THREADS": "2"}),
    ],
)
def test_a_thread_count_of_the_user_is_obeyed(
    machine: Machine, request_: Request, environ: dict[str, str]
) -> None:
    machine.cores([[0], [1]])
    plan = planned(machine, Neighbours(2.0), request_, environ)
    assert (plan.setting.threads, plan.setting.threads_batch) == (2, 2)
    assert plan.setting.variables["OMP_PROC_BIND"] == "true"
    assert plan.warnings[-1].endswith("some of the 2 threads that you set hold up the others")


@pytest.mark.parametrize("letters", ["\x1b[2J", "a)b"])
def test_names_cannot_act_on_the_terminal(town: Town, letters: str) -> None:
    town.spins(8, "memfd:sealed-91", town.now - 9, 0)  # is no name
    seen = town.spins(7, letters, town.now - 9, 0).watched()
    assert seen is not None
    assert seen.programs == (letters.replace("\x1b", "?"),)


def test_prompt_threads_of_the_user_are_obeyed(machine: Machine) -> None:
    machine.cores([[0], [1]])
    setting = planned(machine, Neighbours(1.0), Request(prompt="x", threads_batch=2)).setting
    assert (setting.threads, setting.threads_batch) == (1, 2)


def test_nothing_is_said_where_no_thread_is_lost(machine: Machine) -> None:
    machine.cores([[0], [1]])
    idle = planned(machine, None, Request(prompt="hello", max_threads=1))
    plan = planned(machine, Neighbours(1.0), Request(prompt="hello", max_threads=1))
    assert (plan.setting.threads, plan.setting.threads_batch) == (1, 1)
    assert (plan.warnings, plan.reasons["threads"]) == (idle.warnings, idle.reasons["threads"])


def test_a_profile_s_count_is_an_upper_bound(machine: Machine) -> None:
    machine.cores([[cpu] for cpu in range(4)])
    setting = planned(machine, Neighbours(1.0), setting=Setting(2, 4)).setting
    assert (setting.threads, setting.threads_batch) == (2, 3)


# Real programs


def spinning(cpu: int, variables: dict[str, str]) -> subprocess.Popen[bytes]:
    code = f"import os; os.sched_setaffinity(0, {{{cpu}}})\nwhile True: pass"
    return subprocess.Popen([sys.executable, "-S", "-c", code], env={**os.environ, **variables})


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs affinity masks")
def test_a_run_leaves_busy_cpus_to_other_programs(tmp_path: Path) -> None:
    cpus = sorted(os.sched_getaffinity(0))[:2]
    if len(cpus) < 2:
        pytest.skip("a single CPU")
    fake = FakeEngine(tmp_path / "checkout")
    script = (
        f"import os, runpy, sys; os.sched_setaffinity(0, {set(cpus)}); sys.argv = sys.argv[1:]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", script, str(SCRIPTS / "run_inference.py"), "--dry-run"]
    command += ["--json", "--engine", str(fake.cli), "-m", str(MODEL_FILE), "-p", "x"]
    with marked(str(tmp_path)):
        programs = [spinning(cpu, {}) for cpu in cpus]
        until(lambda: all(psutil.Process(each.pid).cpu_times().user > 1.1 for each in programs))
        environment = {name: text for name, text in os.environ.items() if name != IGNORE}
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        ignored = subprocess.run(
            command, env={**environment, IGNORE: "1"}, capture_output=True, check=True, text=True
        )
        for each in programs:
            each.kill()
            each.wait()
    plan = json.loads(done.stdout)
    assert plan["threads"] == plan["threads_batch"] == 1
    if json.loads(ignored.stdout)["threads"] > 1:  # the CPUs belong to two cores
        assert "busy with other programs" in plan["reasons"]["threads"]
        assert "instead of 2" in done.stderr
    assert "busy" not in ignored.stderr
