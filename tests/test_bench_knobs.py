"""Which settings are worth measuring, and which are left out because they have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import demo
from bitnet_tuning.bench import knobs
from bitnet_tuning.bench.comparison import FILES, Sizes
from bitnet_tuning.bench.knobs import FULL, QUICK, Assignment, Choices
from bitnet_tuning.engine.find import GOMP, NONE
from bitnet_tuning.machine.detect import Privileges
from bitnet_tuning.machine.memory import HugePages
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import slimmed
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.memory import need_of
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import Objective
from bitnet_tuning.plan.setting import Change, Setting, apply
from tests.machines import Machine
from tests.profile_samples import ENGINE, MODEL

BITNET_BENCH = frozenset({"-mmp", "-fa", "-ub", "--poll", "--numa", "-t", "-p", "-n"})
MAINLINE_BENCH = frozenset({"-lm", "-fa", "-ub", "--poll", "--numa", "-t", "-p", "-n"})


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root").meminfo(16 << 30, 12 << 30)


def known(machine: Machine, **changed: Any) -> Choices:
    """Return the choices on a machine; ``engine_…`` changes a field of the engine."""
    of_engine = {k[7:]: changed.pop(k) for k in list(changed) if k.startswith("engine_")}
    facts = Facts(machine.host(), ENGINE._replace(**of_engine), MODEL, "named", {})
    options = Assignment(300.0, "normal", Objective(), None, None, Sizes(512, 16, 1))
    return replaced(Choices(facts, options, BITNET_BENCH), **changed)


def replaced(choices: Choices, **changed: Any) -> Choices:
    """Return the choices with changed fields of any of their records."""
    if "n_prompt" in changed:
        changed["sizes"] = Sizes(changed.pop("n_prompt"), 16, 1)
    facts = {name: changed.pop(name) for name in Facts._fields if name in changed}
    options = {name: changed.pop(name) for name in Assignment._fields if name in changed}
    return choices._replace(
        facts=choices.facts._replace(**facts),
        options=choices.options._replace(**options),
        **changed,
    )


def default_of(choices: Choices) -> Setting:
    """Return the plan's setting without numactl, which the plan would use itself."""
    return make_plan(Request(), choices.facts._replace(numactl=False)).setting


def names(choices: Choices) -> dict[str, list[str]]:
    found = knobs.knobs(choices, default_of(choices))
    return {knob.name: [change.name for change in knob.changes] for knob in found}


def changes_to(choices: Choices, default: Setting, *counts: int) -> tuple[Change, ...]:
    return knobs.thread_changes(replaced(choices, threads=counts), default)


def counts(choices: Choices, named: tuple[int, ...] = ()) -> list[int]:
    default = default_of(choices)
    return [apply(change, default).threads for change in changes_to(choices, default, *named)]


@pytest.mark.parametrize(
    ("modes", "files"),
    [(None, ["slim file"]), (("optimized",), ["slim file"]), (("upstream", "performance"), [])],
)
def test_another_file_is_measured_with_the_defaults_other_values(
    machine: Machine, modes: tuple[str, ...] | None, files: list[str]
) -> None:
    model = read_model(demo.I2_S)
    slim = model._replace(size=model.size // 2, parts=slimmed(model.parts, "q6_k"))
    facts = known(machine.regular(4), model=model, beside=slim, modes=modes, effort=QUICK)
    default = default_of(facts)
    fixed = dict(knobs.make_space(facts, default)[0].fixed)
    assert [name for name in fixed if name in FILES] == files
    assert all(fixed[name] == default._replace(embedding="q6_k") for name in files)
    other = knobs.other_file(facts.facts._replace(model=slim, beside=model), default)
    assert other == (("original file", default._replace(embedding="f16")),)


def test_a_small_machine_tries_every_count_but_the_default(machine: Machine) -> None:
    assert counts(known(machine.regular(4))) == [1, 2, 3]


def test_a_large_machine_tries_some_counts(machine: Machine) -> None:
    assert counts(known(machine.regular(16))) == [2, 4, 8, 15, 16]


def test_quick_tries_few(machine: Machine) -> None:
    assert counts(known(machine.regular(16), effort=QUICK)) == [8, 16]


def test_full_tries_many(machine: Machine) -> None:
    assert counts(known(machine.regular(16), effort=FULL)) == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        14,
        15,
        16,
    ]


def test_smt_threads_are_tried_once(machine: Machine) -> None:
    assert counts(known(machine.regular(4, threads=2))) == [1, 2, 3, 8]


def test_named_counts_are_the_only_ones(machine: Machine) -> None:
    assert counts(known(machine.regular(8)), (1, 8, 64)) == [1, 64]


def test_a_quota_bounds_the_counts(machine: Machine) -> None:
    machine.regular(16).cgroup2("/", {"cpu.max": "400000 100000"})
    assert counts(known(machine)) == [1, 2, 3]


def test_a_fraction_of_a_quota_may_have_a_thread_of_its_own(machine: Machine) -> None:
    machine.regular(2).cgroup2("/", {"cpu.max": "140000 100000"})
    facts = known(machine)
    assert default_of(facts).threads == 1
    assert counts(facts) == [2]


def test_prompt_threads_stay_while_generation_is_tuned(machine: Machine) -> None:
    facts = known(machine.regular(16))
    default = default_of(facts)
    two = apply(changes_to(facts, default, 2)[0], default)
    assert (two.threads, two.threads_batch) == (2, 16)
    assert dict(two.env)["OMP_NUM_THREADS"] == "2"


def test_for_prompts_only_their_threads_change(machine: Machine) -> None:
    facts = known(machine.regular(16), objective=Objective("pp"))
    default = default_of(facts)
    change = changes_to(facts, default, 4)[0]
    assert change.name == "4 threads for prompts"
    assert apply(change, default)[:2] == (12, 4)


def test_for_requests_both_phases_change_and_prompts_also_alone(machine: Machine) -> None:
    facts = known(machine.regular(16), objective=Objective("request"))
    default = default_of(facts)._replace(threads_batch=12)
    assert apply(changes_to(facts, default, 4)[0], default)[:2] == (4, 4)
    offered = {knob.name: knob.changes for knob in knobs.knobs(facts, default)}
    assert [change.fields for change in offered["prompt threads"]] == [(("threads_batch", 16),)]


def test_what_a_common_engine_is_offered(machine: Machine) -> None:
    assert names(known(machine.regular(8))) == {
        "mmap": ["no mmap"],
        "binding": ["not bound"],
        "waiting": ["KMP_BLOCKTIME=infinite"],
        "flash attention": ["flash attention"],
    }


def test_quick_is_threads_and_mmap(machine: Machine) -> None:
    assert list(names(known(machine.regular(8), effort=QUICK))) == ["mmap"]


def test_mainline_is_offered_its_own_flags(machine: Machine) -> None:
    offered = names(
        known(
            machine.regular(8),
            bench_flags=MAINLINE_BENCH,
            engine_flags=frozenset({"-tb", "-ub", "--load-mode", "-fa", "--poll", "--numa"}),
            engine_completion="/build/bin/llama-completion",
            engine_openmp=GOMP,
        )
    )
    assert offered["mmap"] == ["no mmap"]
    assert offered["flash attention"] == ["no flash attention"]
    assert offered["waiting"] == ["OMP_WAIT_POLICY=active"]


def test_a_knob_is_offered_only_where_both_programs_have_it(machine: Machine) -> None:
    machine.regular(8)
    assert "mmap" not in names(known(machine, bench_flags=BITNET_BENCH - {"-mmp"}))
    assert "mmap" not in names(known(machine, engine_flags=ENGINE.flags - {"--no-mmap"}))
    assert "flash attention" not in names(known(machine, bench_flags=BITNET_BENCH - {"-fa"}))
    assert "flash attention" in names(known(machine, bench_flags=None))


def test_no_copy_of_a_model_that_hardly_fits_into_memory(machine: Machine) -> None:
    facts = known(machine.regular(8))
    available = facts.facts.host.memory.available
    assert available is not None
    beside = need_of(MODEL._replace(size=0), 2048, None).total
    room = int(available * 0.8) - beside
    assert "mmap" in names(replaced(facts, model=MODEL._replace(size=room)))
    assert "mmap" not in names(replaced(facts, model=MODEL._replace(size=room + 1)))


def test_huge_pages_need_kernel_and_c_library(machine: Machine) -> None:
    facts = known(machine.regular(8))
    both = ["no mmap", "huge pages"]
    assert names(replaced(facts, huge=HugePages("madvise", (2, 36))))["mmap"] == both
    assert names(replaced(facts, huge=HugePages("always", (2, 35))))["mmap"] == both
    for huge in (HugePages("never", (2, 36)), HugePages("madvise", (2, 34)), HugePages(None, None)):
        assert names(replaced(facts, huge=huge))["mmap"] == ["no mmap"]
    mine = replaced(
        facts,
        huge=HugePages("always", (2, 36)),
        environ={"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"},
    )
    assert names(mine)["mmap"] == ["no mmap"]
    change = knobs.knobs(replaced(facts, huge=HugePages("always", (2, 36))), default_of(facts))[0]
    setting = apply(change.changes[1], default_of(facts))
    assert setting.mmap is False
    assert dict(setting.env)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


def test_locking_needs_the_program_and_the_limit(machine: Machine) -> None:
    facts = known(machine.regular(8), effort=FULL, privileges=Privileges(0, None))
    flags = frozenset({"--load-mode", "-ub"})
    mainline = replaced(
        facts, bench_flags=MAINLINE_BENCH, engine=facts.facts.engine._replace(flags=flags)
    )
    assert names(mainline)["mmap"] == ["no mmap", "locked"]
    assert names(facts)["mmap"] == ["no mmap"], "bitnet.cpp's llama-bench cannot lock"
    assert names(replaced(facts, bench_flags=None))["mmap"] == ["no mmap", "locked"]
    small = Privileges(0, 8 << 20)
    assert names(replaced(mainline, privileges=small))["mmap"] == ["no mmap"]
    assert names(replaced(mainline, effort="normal"))["mmap"] == ["no mmap"]


def test_polling_is_for_builds_without_openmp(machine: Machine) -> None:
    offered = names(known(machine.regular(8), engine_openmp=NONE))
    assert offered["waiting"] == ["poll 100", "poll 0"]
    assert "binding" not in offered


@pytest.mark.parametrize(
    ("variable", "gone"),
    [
        ("OMP_PROC_BIND", "binding"),
        ("KMP_AFFINITY", "binding"),
        ("KMP_BLOCKTIME", "waiting"),
        ("OMP_WAIT_POLICY", "waiting"),
    ],
)
def test_what_the_user_set_is_not_tried(machine: Machine, variable: str, gone: str) -> None:
    machine.regular(8)
    assert gone in names(known(machine))
    assert gone not in names(known(machine, environ={variable: "1"}))


def test_under_a_quota_passive_waiting_is_tried(machine: Machine) -> None:
    machine.regular(16).cgroup2("/", {"cpu.max": "400000 100000"})
    assert names(known(machine))["waiting"] == ["KMP_BLOCKTIME=infinite", "KMP_BLOCKTIME=0"]
    offered = names(known(machine, engine_openmp=GOMP))
    assert offered["waiting"] == ["OMP_WAIT_POLICY=active", "OMP_WAIT_POLICY=passive"]


def test_micro_batches_are_tried_if_they_split_the_prompt(machine: Machine) -> None:
    machine.regular(8)
    pp = Objective("pp")
    assert "micro-batch" not in names(known(machine))
    assert names(known(machine, objective=pp))["micro-batch"] == [
        "micro-batch 128",
        "micro-batch 256",
    ]
    assert names(known(machine, objective=pp, n_prompt=1024))["micro-batch"] == [
        "micro-batch 128",
        "micro-batch 256",
        "micro-batch 1024",
    ]
    assert "micro-batch" not in names(known(machine, objective=pp, n_prompt=100))


def test_numa_needs_nodes(machine: Machine) -> None:
    assert "numa" not in names(known(machine.regular(8)))
    machine.node(0, range(4))
    machine.node(1, range(4, 8))
    facts = known(machine)
    assert default_of(facts).numa == "distribute", "eight threads do not fit on one node"
    assert names(facts)["numa"] == ["no NUMA policy"]
    assert names(replaced(facts, effort=FULL))["numa"] == ["no NUMA policy", "numa isolate"]
    with_numactl = replaced(facts, numactl=True)
    assert names(with_numactl)["numa"] == ["no NUMA policy", "memory interleaved"]


def test_a_model_on_one_node_may_be_distributed(machine: Machine) -> None:
    machine.regular(16)
    machine.node(0, range(14)).node(1, range(14, 16))
    facts = known(machine)
    default = default_of(facts)
    assert (default.cpus, default.numa) == (frozenset(range(14)), "isolate")
    assert names(facts)["numa"] == ["no NUMA policy", "numa distribute"]
    (knob,) = [knob for knob in knobs.knobs(facts, default) if knob.name == "numa"]
    spread = apply(knob.changes[1], default)
    assert (spread.cpus, spread.numa) == (None, "distribute")


def test_nodes_without_allowed_cpus_get_no_threads(machine: Machine) -> None:
    machine.regular(8)
    machine.node(0, range(4)).node(1, range(4, 8)).node(2)
    facts = known(machine)
    assert "numa" not in names(facts), "--numa distribute would put threads on node 2"
    assert names(replaced(facts, numactl=True))["numa"] == ["memory interleaved"]


def test_hybrids_may_leave_their_fast_cores(machine: Machine) -> None:
    facts = known(machine.hybrid(6, 8))
    default = default_of(facts)
    assert default.cpus is not None
    assert names(facts)["affinity"] == ["on any CPU"]
    bound = len([core for core in facts.facts.host.cores if core.cpus & default.cpus])
    more = apply(changes_to(facts, default, bound + 1)[0], default)
    assert (more.threads, more.cpus) == (bound + 1, None)
    fewer = apply(changes_to(facts, default, 1)[0], default)
    assert fewer.cpus == default.cpus
    # Other systems start no program on chosen CPUs.
    assert "affinity" not in names(replaced(facts, host=facts.facts.host._replace(system="darwin")))


def test_every_change_has_an_effect_and_a_name_of_its_own(machine: Machine) -> None:
    for effort in (QUICK, "normal", FULL):
        facts = known(machine.regular(8), effort=effort, objective=Objective("request"))
        default = default_of(facts)
        changes = [
            *changes_to(facts, default),
            *(change for knob in knobs.knobs(facts, default) for change in knob.changes),
        ]
        assert all(apply(change, default) != default for change in changes)
        assert len({change.name for change in changes}) == len(changes)
