"""Performance mode: how threads wait, their CPUs and their priority."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_tuning.engine.find import GOMP, LLVM, MSVC, NONE, Engine
from bitnet_tuning.machine.detect import Privileges
from bitnet_tuning.machine.host import Host
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.plan import make_plan
from tests.machines import Machine
from tests.profile_samples import ENGINE, MODEL
from tests.test_plan import a_host, a_hybrid_host

FAST = Request(prompt="hello", performance=True)
WAITING = ("KMP_BLOCKTIME", "OMP_WAIT_POLICY")


def plan(
    host: Host | None = None,
    *,
    runtime: str | None = LLVM,
    request: Request = FAST,
    environ: dict[str, str] | None = None,
    engine: Engine = ENGINE,
    lowest: int = -20,
) -> Plan:
    engine = engine._replace(openmp=runtime)
    facts = Facts(host or a_host(4), engine, MODEL, "named", environ or {})
    return make_plan(request, facts._replace(privileges=Privileges(lowest, None)))


def waits(made: Plan) -> dict[str, str]:
    return {name: text for name, text in made.setting.env if name in WAITING}


@pytest.mark.parametrize(
    ("runtime", "variables", "poll"),
    [
        (LLVM, {"KMP_BLOCKTIME": "infinite"}, None),
        (GOMP, {"OMP_WAIT_POLICY": "active"}, None),
        (NONE, {}, 100),
        (MSVC, {}, None),
        (None, {}, None),
    ],
)
def test_threads_spin_in_the_way_of_their_openmp_runtime(
    runtime: str | None, variables: dict[str, str], poll: int | None
) -> None:
    made = plan(runtime=runtime)
    assert (waits(made), made.setting.poll) == (variables, poll)
    assert ("--poll" in made.command) == (poll is not None)
    spins = "spin while they wait" in made.reasons["performance"]
    assert spins == bool(variables or poll)
    usual = plan(runtime=runtime, request=FAST._replace(performance=False))
    assert waits(usual) == ({"KMP_BLOCKTIME": "200"} if runtime == LLVM else {})
    assert usual.setting.poll is None


@pytest.mark.parametrize(
    ("runtime", "variables"),
    [(LLVM, {"KMP_BLOCKTIME": "200"}), (GOMP, {"GOMP_SPINCOUNT": "10000000"})],
)
def test_in_a_chat_threads_do_not_spin_while_the_user_types(
    runtime: str, variables: dict[str, str]
) -> None:
    made = plan(runtime=runtime, request=Request(prompt="hello", chat=True, performance=True))
    names = (*WAITING, "GOMP_SPINCOUNT")
    assert {name: text for name, text in made.setting.env if name in names} == variables
    assert "but not while you type" in made.reasons["performance"]
    own = {"OMP_WAIT_POLICY": "active"}
    chat = Request(prompt="hello", chat=True, performance=True)
    assert variables.items().isdisjoint(
        plan(runtime=runtime, request=chat, environ=own).setting.env
    )


@pytest.mark.parametrize("runtime", [LLVM, GOMP, NONE])
def test_threads_do_not_spin_under_a_quota(runtime: str) -> None:
    made = plan(a_host(4, quota=2), runtime=runtime)
    assert (waits(made), made.setting.poll, made.setting.cpus) == ({}, None, None)
    assert "quota" in made.reasons["performance"]
    assert "quota" in made.reasons["cpus"]
    ample = plan(a_host(4, quota=4), runtime=runtime)
    assert waits(ample) or ample.setting.poll
    forced = plan(a_host(2, quota=3), runtime=runtime, request=FAST._replace(threads=4))
    assert (waits(forced), forced.setting.poll) == ({}, None)


def test_more_threads_than_cpus_do_not_spin() -> None:
    made = plan(request=FAST._replace(threads=9))
    assert waits(made) == {"KMP_BLOCKTIME": "200"}
    assert "more threads than CPUs" in made.reasons["performance"]


@pytest.mark.parametrize(
    "mine",
    [{"OMP_WAIT_POLICY": "passive"}, {"KMP_BLOCKTIME": "1"}, {"GOMP_SPINCOUNT": "5"}],
)
@pytest.mark.parametrize("runtime", [LLVM, GOMP, NONE])
def test_variables_that_the_user_set_are_not_overwritten(
    runtime: str, mine: dict[str, str]
) -> None:
    made = plan(runtime=runtime, environ=mine)
    assert not set(mine) & set(made.setting.variables)
    assert not {"infinite", "active"} & set(made.setting.variables.values())
    assert made.setting.poll is None


def test_the_engine_is_bound_to_the_chosen_cores() -> None:
    assert plan(a_host(16), request=FAST._replace(threads=4)).setting.cpus == frozenset(
        cpu + second for cpu in range(4) for second in (0, 16)
    )
    all_of_them = plan(a_host(4))
    assert all_of_them.setting.cpus == frozenset(range(8))
    assert "performance mode" in all_of_them.reasons["cpus"]
    assert plan(a_host(4), request=FAST._replace(performance=False)).setting.cpus is None


def test_on_a_hybrid_the_binding_of_the_usual_plan_stays() -> None:
    usual = plan(a_hybrid_host(), request=FAST._replace(performance=False))
    made = plan(a_hybrid_host())
    assert made.setting.cpus == usual.setting.cpus == frozenset(range(16))
    assert made.reasons["cpus"] == usual.reasons["cpus"]


@pytest.mark.parametrize("name", ["OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY"])
def test_an_engine_that_the_user_bound_is_not_bound_again(name: str) -> None:
    made = plan(environ={name: "x"})
    assert made.setting.cpus is None
    assert "yourself" in made.reasons["cpus"]


def test_an_engine_on_one_numa_node_is_bound_to_the_whole_node(tmp_path: Path) -> None:
    machine = Machine(tmp_path).regular(16, packages=2, node_per_package=True)
    made = plan(machine.meminfo(8 << 30, 6 << 30).host())
    assert made.setting.cpus == frozenset(range(16))
    assert made.reasons["cpus"] == "bound to NUMA node 0"


def test_a_priority_that_is_not_permitted_is_a_warning() -> None:
    made = plan(lowest=0)
    assert made.setting.nice == 0
    assert any("priority" in warning for warning in made.warnings)
    assert waits(made) and made.setting.cpus and made.setting.mlock


def test_as_many_threads_as_cpus_may_spin() -> None:
    assert waits(plan(request=FAST._replace(threads=8))) == {"KMP_BLOCKTIME": "infinite"}


def test_the_prompts_threads_get_cores_too() -> None:
    made = plan(a_host(16), request=FAST._replace(threads=2, threads_batch=6))
    assert made.setting.cpus == frozenset((*range(6), *range(16, 22)))


def test_an_engine_without_a_level_of_polling_is_given_none() -> None:
    bare = ENGINE._replace(flags=ENGINE.flags - {"--poll"})
    assert plan(runtime=NONE, engine=bare).setting.poll is None


def test_threads_that_the_engine_spreads_over_nodes_are_not_bound(tmp_path: Path) -> None:
    machine = Machine(tmp_path).regular(8, packages=2, node_per_package=True)
    made = plan(machine.meminfo(8 << 30, 6 << 30).host())
    assert (made.setting.numa, made.setting.cpus) == ("distribute", None)


def test_without_known_privileges_no_priority_is_raised() -> None:
    assert make_plan(FAST, Facts(a_host(4), ENGINE, MODEL, "named", {})).setting.nice == 0


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_no_plan_promises_chosen_cpus_off_linux(system: str) -> None:
    assert plan(a_host(4)).setting.cpus is not None
    for host in (a_host(4), a_hybrid_host()):
        made = plan(host._replace(system=system))
        assert made.setting.cpus is None
        bound = any(name == "OMP_PROC_BIND" for name, _ in made.setting.env)
        assert made.reasons["cpus"].startswith("all (OpenMP binds" if bound else "not bound")
        assert "Linux only" in made.reasons["cpus"]


@pytest.mark.parametrize(("system", "bound"), [("linux", True), ("win32", False)])
def test_libgomp_binds_threads_on_linux_only(system: str, bound: bool) -> None:
    made = plan(a_host(4)._replace(system=system), runtime=GOMP)
    assert ("OMP_PROC_BIND" in made.setting.variables) == bound
