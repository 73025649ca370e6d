"""What an engine receives of a plan for NUMA nodes, memory, batches and performance mode: its
arguments, environment and affinity, and what the kernel makes of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.launch.background import capture
from bitnet_tuning.machine.detect import read_privileges
from bitnet_tuning.machine.memory import read_huge_pages
from bitnet_tuning.machine.root import Root
from bitnet_tuning.plan.command import memory_policy
from bitnet_tuning.plan.memory import FIRST_GLIBC, HUGE_PAGES
from tests.conftest import REPOSITORY
from tests.engines import FakeEngine
from tests.machines import NODE, Machine

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc and numactl")

DRIVER = """\
import sys
sys.path.insert(0, {repo!r})
from bitnet_tuning.cli.run import main
sys.exit(main(sys.argv[2:], root=sys.argv[1]))
"""
NUMACTL = (
    '#!/bin/sh\necho "$*" >> "$0.log"\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
)


class Bench:
    """A fake engine, and a fake machine of two NUMA nodes with one of this process's CPUs each."""

    def __init__(self, folder: Path) -> None:
        self.fake = FakeEngine(folder / "checkout")
        self.tools = folder / "tools"
        self.tools.mkdir()
        mine = sorted(os.sched_getaffinity(0))[:2]
        self.nodes = [mine[:-1], mine[-1:]]
        self.machine = Machine(folder / "root").cores([[cpu] for cpu in mine])
        self.machine.meminfo(32 << 30, 30 << 30)
        for node, cpus in enumerate(self.nodes):
            self.machine.node(node, cpus)
            text = f"Node {node} MemFree: {8 << 20} kB"
            self.machine.write(f"{NODE}/node{node}/meminfo", text)

    def with_numactl(self, program: str = NUMACTL) -> None:
        path = self.tools / "numactl"
        path.write_text(program)
        path.chmod(0o755)
        (self.tools / "true").symlink_to(shutil.which("true") or "/bin/true")

    def numactl(self) -> str:
        """Return the arguments of the last start of numactl."""
        return (self.tools / "numactl.log").read_text().splitlines()[-1]

    def run(self, *flags: str) -> dict[str, Any]:
        """Run the launcher with these flags and return what the engine was started with."""
        named = ("--engine", str(self.fake.cli), "-m", demo.I2_S, "-p", "hello")
        code = DRIVER.format(repo=str(REPOSITORY))
        done = subprocess.run(
            [sys.executable, "-c", code, str(self.machine.path), *named, *flags],
            env={**os.environ, "PATH": str(self.tools)},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "hello and more text\n"
        return self.fake.prompts()[-1]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def value(run: dict[str, Any], flag: str) -> str | None:
    argv = run["argv"]
    return argv[argv.index(flag) + 1] if flag in argv else None


two_cpus = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="two nodes need two CPUs",
)


@two_cpus
def test_an_engine_on_one_node_through_numactl(bench: Bench) -> None:
    bench.with_numactl()
    run = bench.run("-t", "1")
    assert run["cpus"] == bench.nodes[0]
    assert bench.numactl().startswith(f"--preferred=0 -- {bench.fake.cli} -m")
    assert value(run, "--numa") is None
    assert run["argv"][0] == str(bench.fake.cli)


@two_cpus
def test_an_engine_on_one_node_without_numactl(bench: Bench) -> None:
    run = bench.run("-t", "1")
    assert run["cpus"] == bench.nodes[0]
    assert value(run, "--numa") == "isolate"
    assert "OMP_PROC_BIND" not in run["env"]


@two_cpus
def test_a_numactl_that_a_container_forbids_is_not_used(bench: Bench) -> None:
    bench.with_numactl('#!/bin/sh\necho "set_mempolicy: Operation not permitted" >&2\nexit 1\n')
    run = bench.run("-t", "1")
    assert run["cpus"] == bench.nodes[0]
    assert value(run, "--numa") == "isolate"


@two_cpus
def test_an_engine_over_all_nodes(bench: Bench) -> None:
    run = bench.run("-t", str(len(os.sched_getaffinity(0))))
    assert run["cpus"] == sorted(os.sched_getaffinity(0))
    assert value(run, "--numa") == "distribute"


@two_cpus
def test_an_engine_beside_a_node_without_cpus(bench: Bench) -> None:
    bench.machine.node(2)
    bench.with_numactl()
    run = bench.run("-t", str(len(os.sched_getaffinity(0))))
    assert bench.numactl().startswith("--interleave=0-1 -- ")
    assert value(run, "--numa") == "numactl"
    assert run["cpus"] == sorted(os.sched_getaffinity(0))


def test_a_short_prompts_batch(bench: Bench) -> None:
    run = bench.run()
    assert (value(run, "-b"), value(run, "-ub")) == ("64", "64")
    run = bench.run("-ub", "256")
    assert (value(run, "-b"), value(run, "-ub")) == (None, "256")


def test_ways_of_loading(bench: Bench) -> None:
    copied = bench.run("--memory", "copy")
    assert "--no-mmap" in copied["argv"]
    assert "GLIBC_TUNABLES" not in copied["env"]
    offered = read_huge_pages(Root())
    bench.machine.huge_pages("madvise")
    huge = bench.run("--memory", "huge")
    given = offered.glibc is not None and offered.glibc >= FIRST_GLIBC
    assert ("--no-mmap" in huge["argv"]) == given
    assert huge["env"].get("GLIBC_TUNABLES") == (HUGE_PAGES["GLIBC_TUNABLES"] if given else None)
    bench.machine.huge_pages("never")
    assert "--no-mmap" not in bench.run("--memory", "huge")["argv"]


def test_performance_mode(bench: Bench) -> None:
    cpu = bench.nodes[1][0]
    bench.machine.affinity(str(cpu))
    run = bench.run("--performance-mode")
    privileges = read_privileges()
    assert run["cpus"] == [cpu]
    assert run["nice"] == (max(-20, os.nice(0) - 5) if privileges.lowest_nice <= -5 else os.nice(0))
    limit = privileges.lockable
    fits = limit is None or limit >= os.path.getsize(demo.I2_S)
    assert ("--mlock" in run["argv"]) == fits


# What the kernel makes of a plan

numactl = pytest.mark.skipif(shutil.which("numactl") is None, reason="numactl is not installed")


@numactl
@pytest.mark.skipif(not os.path.exists("/proc/self/numa_maps"), reason="the kernel has no NUMA")
@pytest.mark.parametrize(
    ("node", "nodes", "policy"), [(0, None, "prefer"), (None, frozenset((0,)), "interleave:0")]
)
def test_numactl_sets_the_memory_policy(
    node: int | None, nodes: frozenset[int] | None, policy: str
) -> None:
    prefix = memory_policy(node, nodes)
    done = capture((*prefix, "cat", "/proc/self/numa_maps"))
    if done.code != 0:
        pytest.skip(f"numactl may not do this here: {done.stderr.strip()}")
    assert f" {policy}" in done.stdout
    assert f" {policy}" not in capture(("cat", "/proc/self/numa_maps")).stdout


GROW = """\
import ctypes
block = ctypes.create_string_buffer(64 << 20)
ctypes.memset(block, 1, 64 << 20)
print(open("/proc/self/smaps_rollup").read())
"""


def test_the_tunable_gives_huge_pages() -> None:
    offered = read_huge_pages(Root())
    if offered.transparent != "madvise" or (offered.glibc or (0, 0)) < FIRST_GLIBC:
        pytest.skip("the kernel gives huge pages to all or to none, or glibc is too old")

    def huge(variables: dict[str, str]) -> int:
        done = capture((sys.executable, "-c", GROW), variables)
        (line,) = [line for line in done.stdout.splitlines() if line.startswith("AnonHugePages")]
        return int(line.split()[1])

    assert huge({}) == 0
    assert huge(HUGE_PAGES) >= 32 << 10, "kB, of 64 MiB"
