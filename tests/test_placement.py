"""Threads and memory on NUMA nodes: when on one, when on all, when left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.placement import chosen_cores
from bitnet_tuning.plan.plan import make_plan
from tests.machines import GIBIBYTE, NODE, Machine
from tests.profile_samples import ENGINE, MODEL

HELLO = Request(prompt="hello")
SMALL = MODEL._replace(size=GIBIBYTE, heads=20, kv_width=1280)


class Bench:
    """Plans for a machine of nodes with ``cores`` each, which have ``free`` GiB each."""

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
    ) -> Plan:
        facts = Facts(self.machine.host(), engine, SMALL, "named with -m", environ or {})
        return make_plan(request, facts._replace(numactl=numactl, cached=cached))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root")


def untouched(plan: Plan) -> bool:
    setting = plan.setting
    return (setting.cpus, setting.node, setting.interleave, setting.numa) == (None,) * 4


def test_on_one_node_nothing_is_done_and_said_so(machine: Machine) -> None:
    plan = Bench(machine, nodes=1).plan()
    assert untouched(plan)
    assert plan.reasons["numa"] == "one NUMA node: nothing to do"
    assert plan.command[0] == ENGINE.path


def test_what_fits_on_one_node_stays_there(machine: Machine) -> None:
    plan = Bench(machine, cores=16).plan()
    setting = plan.setting
    assert (setting.threads, setting.threads_batch) == (12, 16)
    assert (setting.cpus, setting.node, setting.numa) == (frozenset(range(16)), 0, None)
    assert plan.command[:4] == ("numactl", "--preferred=0", "--", ENGINE.path)
    assert "fit on node 0 (16 cores, 16384 MiB free)" in plan.reasons["numa"]
    assert plan.reasons["cpus"] == "bound to NUMA node 0"
    assert plan.reasons["threads_batch"].startswith("16: the cores of the node")


def test_the_node_with_most_free_memory_is_taken(machine: Machine) -> None:
    bench = Bench(machine, cores=16).node(0, range(16), free=4).node(1, range(16, 32), free=8)
    assert bench.plan().setting.node == 1
    bench.node(0, range(16), free=4, inactive=6)
    assert bench.plan().setting.node == 0, "file pages that nobody uses give way"


def test_without_numactl_affinity_and_the_engines_own_flag(machine: Machine) -> None:
    bench = Bench(machine, cores=16)
    plan = bench.plan(numactl=False)
    setting = plan.setting
    assert (setting.cpus, setting.node, setting.numa) == (frozenset(range(16)), None, "isolate")
    assert plan.command[0] == ENGINE.path
    assert plan.command[plan.command.index("--numa") + 1] == "isolate"
    assert "OMP_PROC_BIND" not in plan.setting.variables, "the engine binds its threads itself"
    assert "moves them to its nodes" in plan.reasons["env"]
    bare = bench.plan(numactl=False, engine=ENGINE._replace(flags=frozenset({"-tb"})))
    assert (bare.setting.cpus, bare.setting.numa) == (frozenset(range(16)), None)
    assert "--numa" not in bare.command


def test_isolate_is_not_used_where_it_would_leave_the_mask(machine: Machine) -> None:
    bench = Bench(machine, cores=16)
    machine.affinity("0-13,16-29")
    bench.memory_nodes("0-1", "0-13,16-29")
    plan = bench.plan(numactl=False)
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
    assert "12 threads and 1206 MiB do not fit on one of 2 nodes" in plan.reasons["numa"]


def test_too_large_a_model_for_a_node_is_spread(machine: Machine) -> None:
    bench = Bench(machine, cores=16, free=1.25)
    assert bench.plan().setting.numa == "distribute"


def test_chosen_threads_decide_as_well(machine: Machine) -> None:
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
    assert "no numactl that may act" in bare.reasons["numa"]


def test_nodes_outside_the_cpuset_are_not_used(machine: Machine) -> None:
    bench = Bench(machine, nodes=3).memory_nodes("0-1", "0-15")
    plan = bench.plan()
    assert plan.setting.interleave == frozenset((0, 1))
    assert plan.setting.cpus == frozenset(range(16))
    bench.memory_nodes("1", "0-15")
    assert untouched(bench.plan())
    assert "NUMA node 1" in bench.plan().reasons["numa"]
    bench.memory_nodes("0-2", "0-7")
    assert untouched(bench.plan())
    assert "NUMA node 0" in bench.plan().reasons["numa"]


@pytest.mark.parametrize("name", ["OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_places_that_the_user_chose_are_left_alone(machine: Machine, name: str) -> None:
    plan = Bench(machine, cores=16).plan(environ={name: "x"})
    assert untouched(plan)
    assert "you chose places" in plan.reasons["numa"]


def test_the_node_whose_page_cache_has_the_model_comes_first(machine: Machine) -> None:
    bench = Bench(machine, cores=16).node(1, range(16, 32), free=1)
    plan = bench.plan(cached={0: 2, 1: 98})
    assert plan.setting.node == 1, "what lies there takes no more room"
    assert plan.warnings == ()


def test_a_model_cached_on_the_wrong_node_is_said_with_a_remedy(machine: Machine) -> None:
    bench = Bench(machine, nodes=3, cores=16).memory_nodes("0,2", "0-15,32-47")
    (warning,) = bench.plan(cached={1: 40, 0: 1}).warnings
    assert "holds the model on NUMA node 0-1, not on 0" in warning
    assert f"dd if='{SMALL.path}' iflag=nocache count=0" in warning
    assert bench.plan(cached={0: 40, 1: 1}).warnings == ()
    assert bench.plan(cached={}).warnings == ()


def test_a_model_cached_on_one_of_the_nodes_it_is_spread_over(machine: Machine) -> None:
    bench = Bench(machine)
    (warning,) = bench.plan(cached={1: 64}).warnings
    assert "holds the model on NUMA node 1, not on 0-1" in warning
    assert bench.plan(cached={0: 30, 1: 34}).warnings == ()


def test_memory_that_is_not_told_does_not_keep_threads_apart(machine: Machine) -> None:
    machine.regular(16, packages=2, node_per_package=True)
    plan = make_plan(HELLO, Facts(machine.host(), ENGINE, SMALL, "named", {}, numactl=True))
    assert plan.setting.node == 0
    assert "memory not known" in plan.reasons["numa"]


def test_cores_of_one_node_are_chosen_together(machine: Machine) -> None:
    machine.cores([[0], [1], [2], [3]]).node(0, [0, 2]).node(1, [1, 3])
    host = machine.host()
    assert chosen_cores(host, 2) == {0, 2}
    assert chosen_cores(host, 3) == {0, 1, 2}
    assert chosen_cores(host, 9) == {0, 1, 2, 3}


def test_fast_cores_are_chosen_first(machine: Machine) -> None:
    host = machine.hybrid(2, 4).host()
    assert chosen_cores(host, 2) == {0, 1, 2, 3}
    slow_first = host._replace(cores=tuple(reversed(host.cores)))
    assert chosen_cores(slow_first, 1) == {0, 1}


def test_half_of_the_model_on_the_right_node_is_enough(machine: Machine) -> None:
    bench = Bench(machine, cores=16)
    assert bench.plan(cached={0: 20, 1: 20}).warnings == ()


def test_a_model_cached_on_a_node_that_may_not_be_used_is_warned_about(machine: Machine) -> None:
    bench = Bench(machine).memory_nodes("0", "0-7")
    assert len(bench.plan(cached={1: 40}).warnings) == 1
    assert bench.plan(cached={0: 40}).warnings == ()


def test_an_engine_without_the_flag_is_spread_by_numactl_alone(machine: Machine) -> None:
    plan = Bench(machine).node(2).plan(engine=ENGINE._replace(flags=frozenset({"-tb"})))
    assert (plan.setting.numa, plan.setting.interleave) == (None, frozenset((0, 1)))


def test_performance_cores_outrank_nodes(machine: Machine) -> None:
    machine.hybrid(8, 8).meminfo(64 * GIBIBYTE, 60 * GIBIBYTE)
    machine.node(0, range(8)).node(1, range(8, 24))
    host = machine.host()
    plan = make_plan(HELLO, Facts(host, ENGINE, SMALL, "named", {}, numactl=True))
    assert (plan.setting.cpus, plan.setting.node) == (frozenset(range(16)), None)


def test_only_allowed_cpus_of_a_core_are_chosen(machine: Machine) -> None:
    host = machine.regular(2, threads=2).affinity("1-3").host()
    assert chosen_cores(host, 1) == {2}
    assert chosen_cores(host, 2) == {1, 2, 3}
