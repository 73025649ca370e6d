"""Placement of threads and memory on one NUMA node, on all of them, or on none in particular."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.plan import make_plan
from tests.machines import GIBIBYTE, NODE, Machine
from tests.profile_samples import ENGINE, MODEL

HELLO = Request(prompt="hello")
SMALL = MODEL._replace(size=GIBIBYTE, heads=20, kv_width=1280)


class Bench:
    """Plans for a machine with NUMA nodes of ``cores`` cores and ``free`` GiB of free memory."""

    def __init__(self, machine: Machine, nodes: int = 2, cores: int = 8, free: float = 16) -> None:
        self.machine = machine
        self.cores = cores
        machine.regular(nodes * cores).meminfo(64 * GIBIBYTE, 60 * GIBIBYTE)
        for node in range(nodes):
            self.node(node, range(node * cores, (node + 1) * cores), free)

    def node(self, number: int, cpus: Any = (), free: float = 16, inactive: float = 0) -> Bench:
        self.machine.node(number, cpus)
        lines = (("MemTotal", 32.0), ("MemFree", free), ("Inactive(file)", inactive))
        text = "\n".join(f"Node {number} {key}: {int(gb * 1048576)} kB" for key, gb in lines)
        self.machine.write(f"{NODE}/node{number}/meminfo", text)
        return self

    def memory_nodes(self, nodes: str, cpus: str) -> Bench:
        text = f"Cpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{nodes}\n"
        self.machine.write("proc/self/status", text.encode())
        return self

    def plan(
        self,
        request: Request = HELLO,
        *,
        engine: Engine = ENGINE,
        environ: dict[str, str] | None = None,
        numactl: bool = True,
        cached: dict[int, int] | None = None,
        size: int = GIBIBYTE,
    ) -> Plan:
        model = SMALL._replace(size=size)
        facts = Facts(self.machine.host(), engine, model, "named with -m", environ or {})
        return make_plan(request, facts._replace(numactl=numactl, cached=cached))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root")


def untouched(plan: Plan) -> bool:
    setting = plan.setting
    return (setting.cpus, setting.node, setting.interleave, setting.numa) == (None,) * 4


def test_a_machine_with_one_node_has_nothing_to_choose(machine: Machine) -> None:
    plan = Bench(machine, nodes=1).plan()
    assert untouched(plan)
    assert plan.reasons["numa"] == "nothing to choose: one NUMA node"
    assert plan.command[0] == ENGINE.path


def test_what_fits_on_one_node_stays_there(machine: Machine) -> None:
    plan = Bench(machine, cores=16).plan()
    setting = plan.setting
    assert (setting.threads, setting.threads_batch) == (12, 16)
    assert (setting.cpus, setting.node, setting.numa) == (frozenset(range(16)), 0, None)
    assert plan.command[:4] == ("numactl", "--preferred=0", "--", ENGINE.path)
    assert plan.reasons["numa"] == (
        "threads and memory fit on NUMA node 0 (16 cores, 16.0 GiB free); numactl prefers its "
        "memory"
    )
    assert plan.reasons["cpus"] == "bound to NUMA node 0"
    assert plan.reasons["threads_batch"] == "16: all usable cores of NUMA node 0"


def test_the_node_with_most_free_memory_is_chosen(machine: Machine) -> None:
    bench = Bench(machine, cores=16).node(0, range(16), free=4).node(1, range(16, 32), free=8)
    assert bench.plan().setting.node == 1
    bench.node(0, range(16), free=4, inactive=6)
    assert bench.plan().setting.node == 0, "the kernel drops unused pages of files"


def test_without_numactl_affinity_and_the_engines_own_flag(machine: Machine) -> None:
    bench = Bench(machine, cores=16)
    plan = bench.plan(numactl=False)
    setting = plan.setting
    assert (setting.cpus, setting.node, setting.numa) == (frozenset(range(16)), None, "isolate")
    assert plan.command[0] == ENGINE.path
    assert plan.command[plan.command.index("--numa") + 1] == "isolate"
    assert "OMP_PROC_BIND" not in plan.setting.variables, "the engine binds its threads itself"
    assert "the engine binds its threads to nodes itself" in plan.reasons["env"]
    assert "numactl is not installed or not permitted" in plan.reasons["numa"]
    bare = bench.plan(numactl=False, engine=ENGINE._replace(flags=frozenset({"-tb"})))
    assert (bare.setting.cpus, bare.setting.numa) == (frozenset(range(16)), None)
    assert "--numa" not in bare.command


def test_isolate_is_not_used_if_it_would_exceed_the_affinity(machine: Machine) -> None:
    bench = Bench(machine, cores=16)
    machine.affinity("0-13,16-29")
    bench.memory_nodes("0-1", "0-13,16-29")
    plan = bench.plan(Request(prompt="a", threads=14), numactl=False)
    assert (plan.setting.cpus, plan.setting.numa) == (frozenset(range(14)), None)
    assert "OMP_PROC_BIND" in plan.setting.variables


@pytest.mark.parametrize("numactl", [True, False])
def test_too_many_threads_for_a_node_are_spread(machine: Machine, numactl: bool) -> None:
    plan = Bench(machine).plan(numactl=numactl)
    setting = plan.setting
    assert (setting.threads, setting.threads_batch) == (12, 16)
    assert (setting.cpus, setting.node, setting.interleave) == (None, None, None)
    assert plan.setting.numa == "distribute"
    assert plan.command[0] == ENGINE.path
    assert "12 threads and 1.2 GiB do not fit on any of 2 NUMA nodes" in plan.reasons["numa"]


def test_a_small_model_stays_on_one_node(machine: Machine) -> None:
    """The memory of one node is fast enough for it, whatever the number of cores."""
    bench = Bench(machine)
    assert (bench.plan().setting.threads, bench.plan().setting.numa) == (12, "distribute")
    tiny = bench.plan(size=10_000_000)
    setting = tiny.setting
    assert (setting.threads, setting.threads_batch, setting.node, setting.numa) == (8, 8, 0, None)
    assert setting.cpus == frozenset(range(8))
    assert "for a model of 9.5 MiB the memory of one node is fast enough" in tiny.reasons["threads"]
    assert "-t 8 " in " ".join(tiny.command)
    asked = bench.plan(HELLO._replace(threads=12), size=10_000_000)
    assert (asked.setting.threads, asked.setting.numa) == (12, "distribute")


def test_a_small_model_that_fits_no_node_is_spread(machine: Machine) -> None:
    assert Bench(machine, free=0.01).plan(size=10_000_000).setting.numa == "distribute"


def test_too_large_a_model_for_a_node_is_spread(machine: Machine) -> None:
    bench = Bench(machine, cores=16, free=1.25)
    assert bench.plan().setting.numa == "distribute"


def test_the_users_threads_must_fit_on_the_node(machine: Machine) -> None:
    bench = Bench(machine)
    assert bench.plan(HELLO._replace(threads=8)).setting.node == 0
    assert bench.plan(HELLO._replace(threads=9)).setting.numa == "distribute"
    few = bench.plan(HELLO._replace(threads=4, threads_batch=16))
    assert few.setting.numa == "distribute"


def test_memory_only_nodes_never_get_threads(machine: Machine) -> None:
    bench = Bench(machine).node(2)
    plan = bench.plan()
    assert plan.setting.numa == "numactl"
    assert plan.setting.interleave == frozenset((0, 1))
    assert plan.command[:3] == ("numactl", "--interleave=0-1", "--")
    assert plan.setting.cpus == frozenset(range(16))
    bare = bench.plan(numactl=False)
    assert untouched(bare)
    assert bare.reasons["numa"].endswith("not installed or not permitted, so nothing is placed")


def test_only_the_memory_of_allowed_nodes_is_available(machine: Machine) -> None:
    bench = Bench(machine, free=4)
    assert machine.host().memory.available == 60 * GIBIBYTE
    bench.memory_nodes("1", "8-15")
    assert machine.host().memory.available == 4 * GIBIBYTE


def test_nodes_outside_the_cpuset_are_not_used(machine: Machine) -> None:
    bench = Bench(machine, nodes=3).memory_nodes("0-1", "0-15")
    plan = bench.plan()
    assert plan.setting.interleave == frozenset((0, 1))
    assert plan.setting.cpus == frozenset(range(16))
    for nodes, cpus, left in (("1", "0-15", 1), ("0-2", "0-7", 0)):
        plan = bench.memory_nodes(nodes, cpus).plan()
        assert untouched(plan)
        reason = f"nothing to choose: this process may use only NUMA node {left}"
        assert plan.reasons["numa"] == reason


@pytest.mark.parametrize("name", ["OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_threads_that_the_user_binds_are_not_placed(machine: Machine, name: str) -> None:
    plan = Bench(machine, cores=16).plan(environ={name: "x"})
    assert untouched(plan)
    assert plan.reasons["numa"].endswith(f"you bind the threads yourself with {name}")


def test_the_node_whose_page_cache_has_the_model_comes_first(machine: Machine) -> None:
    bench = Bench(machine, cores=16).node(1, range(16, 32), free=1)
    plan = bench.plan(cached={0: 2, 1: 98})
    assert plan.setting.node == 1, "the cached model needs no more memory"
    assert plan.warnings == ()


def test_a_model_cached_on_another_node_is_warned_about_with_a_remedy(machine: Machine) -> None:
    bench = Bench(machine, nodes=3, cores=16).memory_nodes("0,2", "0-15,32-47")
    (warning,) = bench.plan(cached={1: 40, 0: 1}).warnings
    assert "holds the model on NUMA node 0-1, not on 0" in warning
    assert f"dd if='{SMALL.path}' iflag=nocache count=0" in warning
    assert bench.plan(cached={0: 40, 1: 1}).warnings == ()
    assert bench.plan(cached={}).warnings == ()


def test_a_model_cached_on_one_of_its_nodes_is_warned_about(machine: Machine) -> None:
    bench = Bench(machine)
    (warning,) = bench.plan(cached={1: 64}).warnings
    assert "holds the model on NUMA node 1, not on 0-1" in warning
    assert bench.plan(cached={0: 30, 1: 34}).warnings == ()


def test_unknown_free_memory_does_not_prevent_placement(machine: Machine) -> None:
    machine.regular(16, packages=2, node_per_package=True)
    plan = make_plan(HELLO, Facts(machine.host(), ENGINE, SMALL, "named", {}, numactl=True))
    assert plan.setting.node == 0
    assert "free memory unknown" in plan.reasons["numa"]


def test_performance_mode_chooses_cores_of_one_node_together(machine: Machine) -> None:
    machine.cores([[0], [1], [2], [3]]).node(0, [0, 2]).node(1, [1, 3])
    without_numa = ENGINE._replace(flags=ENGINE.flags - {"--numa"})
    facts = Facts(machine.host(), without_numa, SMALL, "named", {})
    for threads, cpus in ((2, {0, 2}), (3, {0, 1, 2}), (9, {0, 1, 2, 3})):
        plan = make_plan(HELLO._replace(performance=True, threads=threads), facts)
        assert plan.setting.cpus == frozenset(cpus)


def test_performance_mode_chooses_fast_cores_first(machine: Machine) -> None:
    host = machine.hybrid(2, 4).host()
    reversed_host = host._replace(cores=tuple(reversed(host.cores)))
    for each, threads, cpus in ((host, 2, {0, 1, 2, 3}), (reversed_host, 1, {0, 1})):
        request = HELLO._replace(performance=True, threads=threads)
        plan = make_plan(request, Facts(each, ENGINE, SMALL, "named", {}))
        assert plan.setting.cpus == frozenset(cpus)


def test_half_of_the_model_on_the_right_node_is_enough(machine: Machine) -> None:
    bench = Bench(machine, cores=16)
    assert bench.plan(cached={0: 20, 1: 20}).warnings == ()


def test_a_model_cached_on_a_node_that_may_not_be_used_is_warned_about(machine: Machine) -> None:
    bench = Bench(machine).memory_nodes("0", "0-7")
    assert len(bench.plan(cached={1: 40}).warnings) == 1
    assert bench.plan(cached={0: 40}).warnings == ()


def test_without_the_engines_numa_flag_numactl_alone_interleaves(machine: Machine) -> None:
    plan = Bench(machine).node(2).plan(engine=ENGINE._replace(flags=frozenset({"-tb"})))
    assert (plan.setting.numa, plan.setting.interleave) == (None, frozenset((0, 1)))


def test_performance_cores_take_precedence_over_nodes(machine: Machine) -> None:
    machine.hybrid(8, 8).meminfo(64 * GIBIBYTE, 60 * GIBIBYTE)
    machine.node(0, range(8)).node(1, range(8, 24))
    host = machine.host()
    plan = make_plan(HELLO, Facts(host, ENGINE, SMALL, "named", {}, numactl=True))
    assert (plan.setting.cpus, plan.setting.node) == (frozenset(range(16)), None)


def test_performance_mode_chooses_only_allowed_cpus(machine: Machine) -> None:
    host = machine.regular(2, threads=2).affinity("1-3").host()
    for threads, cpus in ((1, {2}), (2, {1, 2, 3})):
        request = HELLO._replace(performance=True, threads=threads)
        plan = make_plan(request, Facts(host, ENGINE, SMALL, "named", {}))
        assert plan.setting.cpus == frozenset(cpus)


def test_distribute_is_not_used_where_it_would_leave_the_mask(machine: Machine) -> None:
    bench = Bench(machine)
    machine.affinity("0-12")
    bench.memory_nodes("0-1", "0-12")
    plan = bench.plan()
    assert plan.setting.interleave == frozenset((0, 1))
    assert (plan.setting.cpus, plan.setting.numa) == (frozenset(range(13)), "numactl")


def test_spread_prompts_get_no_more_threads_than_the_nodes_with_memory(machine: Machine) -> None:
    bench = Bench(machine, nodes=4, cores=6)
    bench.memory_nodes("1-2", "0-23")
    plan = bench.plan()
    assert (plan.setting.threads, plan.setting.threads_batch) == (12, 12)
    assert plan.setting.cpus == frozenset(range(6, 18))
    asked = bench.plan(Request(prompt="a", threads_batch=20))
    assert asked.setting.threads_batch == 20
