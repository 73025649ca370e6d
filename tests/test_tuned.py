"""Plans with a measured profile: what it decides, what takes precedence, and the reasons."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from bitnet_tuning.engine.find import NONE, Engine
from bitnet_tuning.machine.detect import Privileges
from bitnet_tuning.machine.memory import HugePages
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.openmp import BINDING
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import EngineKey, Estimate, Evidence, Objective
from bitnet_tuning.plan.setting import Setting
from tests import profile_samples as samples
from tests.machines import Machine
from tests.profile_samples import BOUND, CLAIM, ENGINE, EVIDENCE, GIBIBYTE, MODEL, SETTING

HELLO = Request(prompt="hello " * 100, n_predict=1000)
"""A request that is long enough for the default micro-batch and for a copy of the model."""
PARTLY = "; left out in this run: "
SAVED = f"the saved setting (3 threads, 4 for prompts, no mmap) was {CLAIM}"
KEY = EngineKey(ENGINE.path, ENGINE.version, ())
EXPORTED = {
    "OMP_NUM_THREADS": "4",
    "MKL_NUM_THREADS": "4",
    "OPENBLAS_NUM_THREADS": "4",
    **BINDING,
}
"""Variables that bitnet-env.sh exported."""


class Bench:
    """Plans for a machine of four cores, with and without a profile."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def plan(
        self,
        request: Request = HELLO,
        environ: Mapping[str, str] | None = None,
        setting: Setting | None = SETTING,
        *,
        profile: bool = True,
        engine: Engine = ENGINE,
        privileges: Privileges | None = None,
        evidence: Evidence = EVIDENCE,
        huge: HugePages | None = None,
        numactl: bool = False,
    ) -> Plan:
        host = self.machine.host()
        found = samples.profile(host, KEY, setting, evidence=evidence) if profile else None
        facts = Facts(
            *(host, engine, MODEL, "named with -m", environ or {}),
            privileges=privileges,
            profile=found,
            huge=huge,
            numactl=numactl,
        )
        return make_plan(request, facts)

    def computed(self, request: Request = HELLO, environ: Mapping[str, str] | None = None) -> Plan:
        return self.plan(request, environ, profile=False)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(samples.machine(tmp_path / "root"))


def flag(plan: Plan, name: str) -> str:
    return plan.command[plan.command.index(name) + 1]


def test_a_profile_decides_every_field_with_its_reason(bench: Bench) -> None:
    made = bench.plan()
    assert made.setting == SETTING
    assert (flag(made, "-t"), flag(made, "-tb")) == ("3", "4")
    assert "--no-mmap" in made.command
    assert made.reasons["threads"] == f"3: {SAVED}"
    assert made.reasons["threads_batch"] == f"4: {SAVED}"
    assert made.reasons["mmap"] == f"off: {SAVED}"
    assert made.reasons["cpus"] == f"all (OpenMP binds each thread to a core): {SAVED}"
    assert made.reasons["env"] == f"as measured: {SAVED}"
    assert made.reasons["memory"].startswith("the model is copied into memory; model 1.0 GiB + ")
    others = bench.computed().reasons
    untouched = ("command", "batch", "ubatch", "engine", "model")
    assert {name: made.reasons[name] for name in untouched} == {
        name: others[name] for name in untouched
    }
    assert made.warnings == ()


def test_every_knob_of_a_profile_reaches_the_command(bench: Bench) -> None:
    knobs = Setting(
        threads=2,
        threads_batch=2,
        env=(("OMP_NUM_THREADS", "2"), ("KMP_BLOCKTIME", "infinite")),
        cpus=frozenset((0, 1, 4, 5)),
        mmap=False,
        flash=True,
        ubatch=128,
        poll=100,
        numa="distribute",
    )
    made = bench.plan(setting=knobs)
    assert made.setting == knobs._replace(env=tuple(sorted(knobs.env)))
    words = {"--no-mmap", "-fa", "--poll", "--numa", "-ub"}
    assert words <= set(made.command)
    named = ("ubatch", "mmap", "flash", "poll", "numa")
    assert [made.reasons[name].partition(":")[0] for name in named] == [
        "128",
        "off",
        "on",
        "100",
        "distribute",
    ]


@pytest.mark.parametrize(
    ("name", "flag"),
    [
        ("LLAMA_ARG_FLASH_ATTN", "-fa"),
        ("LLAMA_ARG_NO_MMAP", "--no-mmap"),
        ("LLAMA_ARG_NUMA", "--numa"),
    ],
)
def test_a_profile_leaves_to_the_engine_what_its_own_variables_set(
    bench: Bench, name: str, flag: str
) -> None:
    knobs = Setting(threads=2, threads_batch=2, mmap=False, flash=True, numa="distribute")
    assert flag in bench.plan(setting=knobs).command
    made = bench.plan(environ={name: "1"}, setting=knobs)
    assert flag not in made.command
    assert made.setting.threads == 2


def test_in_a_chat_a_profiles_threads_do_not_spin_while_the_user_types(bench: Bench) -> None:
    knobs = Setting(threads=2, threads_batch=2, env=(("KMP_BLOCKTIME", "infinite"),))
    assert bench.plan(setting=knobs).setting.variables["KMP_BLOCKTIME"] == "infinite"
    made = bench.plan(HELLO._replace(chat=True), setting=knobs)
    assert made.setting.variables["KMP_BLOCKTIME"] == "200"


@pytest.mark.parametrize(
    ("change", "environ", "threads", "said"),
    [
        ({"threads": 2}, {}, 2, "-t"),
        ({"threads": 3}, {}, 3, "-t"),
        ({"threads_batch": 2}, {}, 4, "4 of 4 physical cores"),
        ({}, {"BITNET_THREADS": "2"}, 2, "BITNET_THREADS"),
        ({}, {"OMP_NUM_THREADS": "2"}, 2, "your OMP_NUM_THREADS"),
        ({"threads": 1}, {"BITNET_THREADS": "2", "OMP_NUM_THREADS": "3"}, 1, "-t"),
        ({"max_threads": 2}, {}, 2, "--max-threads"),
        ({}, {"LLAMA_ARG_THREADS": "2"}, 2, "LLAMA_ARG_THREADS"),
        ({}, {"OMP_THREAD_LIMIT": "2"}, 2, "OMP_THREAD_LIMIT"),
    ],
)
def test_a_profile_is_not_used_if_the_user_sets_the_threads(
    bench: Bench, change: dict[str, int], environ: dict[str, str], threads: int, said: str
) -> None:
    request = HELLO._replace(**change)  # type: ignore[arg-type]
    made, computed = bench.plan(request, environ), bench.computed(request, environ)
    assert made.setting.threads == threads
    assert made._replace(reasons=computed.reasons) == computed
    profile = "the measured profile (3 threads, 4 for prompts, no mmap"
    assert f"; {profile}" in made.reasons["threads"]
    assert "is not used: " in made.reasons["threads"]
    assert said in made.reasons["threads"]


@pytest.mark.parametrize(
    ("change", "environ"),
    [
        ({}, {"BITNET_THREADS": "0"}),
        ({}, EXPORTED),
        ({"max_threads": 3}, {}),
        ({"chat": True}, {}),
        ({"temperature": 0.0}, {"OMP_DISPLAY_ENV": "true"}),
    ],
)
def test_a_profile_is_used_if_the_threads_are_left_open(
    bench: Bench, change: dict[str, object], environ: dict[str, str]
) -> None:
    made = bench.plan(HELLO._replace(**change), environ)  # type: ignore[arg-type]
    assert made.setting == SETTING
    assert made.reasons["threads"].startswith("3: the saved setting (")
    assert made.reasons["threads"].endswith(f") was {CLAIM}")


def test_the_users_micro_batch_replaces_the_profiles(bench: Bench) -> None:
    setting = SETTING._replace(ubatch=128)
    assert flag(bench.plan(setting=setting), "-ub") == "128"
    made = bench.plan(HELLO._replace(ubatch=64, batch=64), setting=setting)
    assert (flag(made, "-ub"), flag(made, "-b"), made.setting.threads) == ("64", "64", 3)
    assert made.reasons["ubatch"] == "64: set by --ubatch-size"
    assert made.reasons["batch"] == "64: set by --batch-size"


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({"OMP_PLACES": "sockets"}, {"OMP_NUM_THREADS", "KMP_BLOCKTIME"}),
        ({"KMP_AFFINITY": "compact"}, {"OMP_NUM_THREADS", "KMP_BLOCKTIME"}),
        ({"KMP_BLOCKTIME": "1"}, {"OMP_NUM_THREADS", *BINDING}),
        ({"OMP_WAIT_POLICY": "passive"}, {"OMP_NUM_THREADS", *BINDING}),
        ({"GOMP_SPINCOUNT": "1"}, {"OMP_NUM_THREADS", "KMP_BLOCKTIME", *BINDING}),
    ],
)
def test_variables_of_the_user_are_never_overwritten(
    bench: Bench, environ: dict[str, str], kept: set[str]
) -> None:
    setting = SETTING._replace(env=(*BOUND, ("KMP_BLOCKTIME", "infinite")))
    made = bench.plan(environ=environ, setting=setting)
    assert set(made.setting.variables) == kept
    assert made.setting.threads == 3
    dropped = {name: text for name, text in setting.env if name not in kept}
    left = PARTLY + ", ".join(f"{name}={text}" for name, text in sorted(dropped.items()))
    reason = made.reasons["threads"]
    assert reason.startswith("3: the saved setting (3 threads, 4 for prompts, no mmap, ")
    assert CLAIM in reason and reason.endswith(left if dropped else CLAIM)
    assert all(name in made.reasons["env"] for name in dropped)


def test_cpus_of_a_profile_give_way_to_a_binding_of_the_user(bench: Bench) -> None:
    setting = SETTING._replace(cpus=frozenset((0, 1)))
    measured = bench.plan(setting=setting)
    assert measured.setting.cpus == setting.cpus
    assert measured.reasons["cpus"].startswith("0-1: the saved setting (")
    assert "on CPUs 0-1" in measured.reasons["cpus"]
    made = bench.plan(environ={"GOMP_CPU_AFFINITY": "0-3"}, setting=setting)
    assert made.setting.cpus is None
    assert made.reasons["cpus"].endswith("you bind the threads yourself with GOMP_CPU_AFFINITY")


def test_a_profile_without_binding_undoes_what_the_shell_exported(bench: Bench) -> None:
    free = SETTING._replace(env=(("OMP_NUM_THREADS", "3"),))
    assert "OMP_PROC_BIND" not in bench.plan(setting=free).setting.variables
    made = bench.plan(environ=EXPORTED, setting=free)
    assert made.setting.variables == {"OMP_NUM_THREADS": "3", "OMP_PROC_BIND": "false"}
    assert made.reasons["env"].startswith(f"as measured: {SAVED}")
    assert made.reasons["env"].endswith("OMP_PROC_BIND=false undoes what bitnet-env.sh exported")


def test_a_profile_without_variables_says_so(bench: Bench) -> None:
    assert bench.plan(setting=SETTING._replace(env=())).reasons["env"] == f"no variables: {SAVED}"


def test_a_binding_of_the_user_beside_exported_variables_stays(bench: Bench) -> None:
    free = SETTING._replace(env=(("OMP_NUM_THREADS", "3"),))
    environ = {**EXPORTED, "OMP_PROC_BIND": "close", "KMP_BLOCKTIME": "200"}
    made = bench.plan(environ=environ, setting=free)
    assert made.setting.variables == {"OMP_NUM_THREADS": "3"}
    assert made.setting.threads == 3


def test_the_reason_says_that_nothing_faster_was_found(bench: Bench) -> None:
    made, computed = bench.plan(setting=None), bench.computed()
    over = "over the default"
    note = f"the tuning of 2026-11-23 found nothing faster, at best ×1.21 (1.15–1.27) {over}"
    assert made.reasons["threads"] == f"{computed.reasons['threads']}; {note}"
    assert made._replace(reasons=computed.reasons) == computed
    evidence = EVIDENCE._replace(ratio=Estimate(1.004, 0.99, 1.01, 14), resolution=0.02)
    said = bench.plan(setting=None, evidence=evidence).reasons["threads"]
    assert said.endswith(f"found nothing more than 2 % faster, at best ×1.00 (0.99–1.01) {over}")
    older = bench.plan(setting=None, evidence=EVIDENCE._replace(ratio=None)).reasons["threads"]
    assert older.endswith("found nothing faster")
    mine = HELLO._replace(threads=2)
    assert bench.plan(mine, setting=None) == bench.computed(mine)


@pytest.mark.parametrize(
    ("available", "copied"),
    [(6 * GIBIBYTE, True), (3 * GIBIBYTE, True), (2 * GIBIBYTE, False), (None, False)],
)
def test_a_model_is_copied_only_if_it_fits(
    bench: Bench, available: int | None, copied: bool
) -> None:
    bench.machine.meminfo(8 * GIBIBYTE, available)
    if available is None:
        bench.machine.remove("proc/meminfo")
    made = bench.plan()
    assert ("--no-mmap" in made.command) == copied
    assert ("mmap" in made.reasons) == copied
    assert (PARTLY in made.reasons["threads"]) == (not copied)
    assert made.setting.threads == 3
    mapped = "too little memory to copy the model, as in the measured profile: it is mapped"
    assert made.warnings == (() if copied else (mapped,))
    assert ("the model is copied" in made.reasons["memory"]) == copied


def test_a_copy_of_the_model_must_pay_for_its_loading(bench: Bench) -> None:
    """A copy of 1 GiB takes 2.1 s longer; ×1.21 at 24.7 tokens/s saves 8.5 ms a token."""
    huge = SETTING._replace(env=(*BOUND, ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")))
    for tokens, copied in ((252, False), (253, True), (-1, True), (-2, True)):
        made = bench.plan(HELLO._replace(n_predict=tokens), setting=huge)
        assert ("--no-mmap" in made.command) == copied
        assert ("GLIBC_TUNABLES" in made.setting.variables) == copied
        assert made.setting.threads == 3
        late = "on: a copy of the model was measured faster, but loads about 2.1 s longer; "
        late += "it pays off only for 253 tokens or more"
        assert (made.reasons["mmap"] == late) == (not copied)
        assert ("huge pages" in made.reasons["memory"]) == copied
    chat = bench.plan(HELLO._replace(n_predict=10, chat=True), setting=huge)
    assert "--no-mmap" in chat.command
    asked = bench.plan(HELLO._replace(n_predict=10, memory="copy"), setting=huge)
    assert "--no-mmap" in asked.command
    assert "GLIBC_TUNABLES" not in asked.setting.variables


def test_performance_mode_adds_to_the_profile(bench: Bench) -> None:
    everything = Privileges(lowest_nice=-20, lockable=None)
    made = bench.plan(HELLO._replace(performance=True), privileges=everything)
    env = tuple(sorted((*SETTING.env, ("KMP_BLOCKTIME", "infinite"))))
    cpus = frozenset(range(8))
    assert made.setting == SETTING._replace(env=env, cpus=cpus, mlock=True, nice=-5)
    assert {"--no-mmap", "--mlock"} <= set(made.command)
    assert "locked" in made.reasons["memory"]
    assert PARTLY not in made.reasons["threads"]
    assert made.reasons["cpus"] == "bound to 4 cores (performance mode)", "not measured"


def test_the_placement_of_a_profile_replaces_the_computed_reason(bench: Bench) -> None:
    bench.machine.node(0, (0, 1, 4, 5)).node(1, (2, 3, 6, 7))
    start = "the saved setting (3 threads, 4 for prompts, "
    assert bench.plan().reasons["numa"].startswith(f"nothing placed: {start}")
    spread = SETTING._replace(numa="distribute")
    assert bench.plan(setting=spread).reasons["numa"].startswith(f"distribute: {start}")


def test_a_chat_gets_the_knobs_that_its_own_program_has(bench: Bench) -> None:
    setting = SETTING._replace(flash=True)
    chat = bench.plan(HELLO._replace(chat=True), setting=setting)
    assert "--no-mmap" in chat.command
    assert "-fa" not in chat.command
    assert "flash" not in chat.reasons
    assert "-fa" in bench.plan(setting=setting).command


def test_a_given_setting_replaces_the_computed_one(bench: Bench) -> None:
    facts = Facts(bench.machine.host(), ENGINE, MODEL, "named with -m", {})
    other = SETTING._replace(threads=1, threads_batch=2, mmap=False, flash=True, ubatch=4096)
    made = make_plan(HELLO, facts, other)
    assert (made.setting, made.batch) == (other, 4096)
    assert (flag(made, "-t"), flag(made, "-tb")) == ("1", "2")
    assert {"--no-mmap", "-fa"} <= set(made.command)
    plan = make_plan(HELLO, facts)
    assert make_plan(HELLO, facts, plan.setting) == plan


def test_a_given_setting_takes_precedence_over_a_profile(bench: Bench) -> None:
    host = bench.machine.host()
    facts = Facts(host, ENGINE, MODEL, "named", {}, profile=samples.profile(host, KEY))
    other = SETTING._replace(threads=1)
    assert make_plan(HELLO, facts, other).setting == other


def test_an_engine_without_a_flag_for_prompt_threads_gets_the_rest_of_a_profile(
    bench: Bench,
) -> None:
    bare = ENGINE._replace(flags=ENGINE.flags - {"-tb"})
    assert bench.plan(engine=bare).setting == SETTING


def test_memory_of_nodes_needs_numactl(bench: Bench) -> None:
    setting = SETTING._replace(node=0, interleave=None)
    assert bench.plan(setting=setting, numactl=True).setting.node == 0
    assert bench.plan(setting=setting).setting.node is None
    spread = SETTING._replace(interleave=frozenset((0, 1)))
    assert bench.plan(setting=spread, numactl=True).setting.interleave == spread.interleave
    assert bench.plan(setting=spread).setting.interleave is None


@pytest.mark.parametrize(
    ("memory", "lockable", "locked"),
    [("auto", None, True), ("auto", GIBIBYTE, True), ("auto", 1, False), ("mmap", None, False)],
)
def test_a_profile_locks_the_model_only_where_user_and_system_let_it(
    bench: Bench, memory: str, lockable: int | None, locked: bool
) -> None:
    request = HELLO._replace(memory=memory)
    setting = SETTING._replace(mlock=True)
    made = bench.plan(request, setting=setting, privileges=Privileges(0, lockable))
    assert ("--mlock" in made.command) == made.setting.mlock == locked


@pytest.mark.parametrize(("memory", "copied"), [("mmap", False), ("copy", True), ("huge", True)])
def test_how_the_model_is_loaded_stays_as_the_user_said(
    bench: Bench, memory: str, copied: bool
) -> None:
    huge = HugePages("madvise", (2, 36))
    made = bench.plan(HELLO._replace(memory=memory), huge=huge)
    assert ("--no-mmap" in made.command) == copied
    assert ("GLIBC_TUNABLES" in made.setting.variables) == (memory == "huge")


def test_a_mapped_model_needs_no_room(bench: Bench) -> None:
    bench.machine.meminfo(8 * GIBIBYTE, GIBIBYTE)
    assert bench.plan(setting=SETTING._replace(mmap=None)).warnings == bench.computed().warnings


def test_a_large_micro_batch_of_a_profile_gets_a_batch_that_holds_it(bench: Bench) -> None:
    made = bench.plan(setting=SETTING._replace(ubatch=4096))
    assert (flag(made, "-ub"), flag(made, "-b")) == ("4096", "4096")


def test_a_short_prompt_keeps_its_small_micro_batch(bench: Bench) -> None:
    short = HELLO._replace(prompt="hello")
    assert flag(bench.plan(short, setting=SETTING._replace(ubatch=256)), "-ub") == "64"


def test_a_micro_batch_that_the_user_chose_too_is_the_users(bench: Bench) -> None:
    request = HELLO._replace(ubatch=128)
    made = bench.plan(request, setting=SETTING._replace(ubatch=128))
    assert made.reasons["ubatch"] == bench.computed(request).reasons["ubatch"]


def test_a_run_that_generates_nothing_is_too_short_for_a_copy(bench: Bench) -> None:
    assert "--no-mmap" not in bench.plan(HELLO._replace(n_predict=0)).command


def test_a_copy_that_was_measured_for_prompts_must_pay_by_the_prompt(bench: Bench) -> None:
    """2.1 s at the start; of ×1.21 at 100 tokens/s a token saves 2.1 ms: 1022 tokens."""
    evidence = EVIDENCE._replace(objective=Objective("pp"), speeds={"pp": 100.0, "tg": 1.0})
    for size, copied in ((4000, False), (4200, True)):
        request = HELLO._replace(prompt="a" * size, n_predict=1)
        assert ("--no-mmap" in bench.plan(request, evidence=evidence).command) == copied


def test_performance_mode_leaves_a_measured_poll_and_more_threads_unbound(bench: Bench) -> None:
    fast = HELLO._replace(performance=True)
    bare = ENGINE._replace(openmp=NONE)
    assert bench.plan(fast, engine=bare).setting.poll == 100
    assert bench.plan(fast, setting=SETTING._replace(poll=50), engine=bare).setting.poll == 50
    assert bench.plan(fast).setting.cpus is not None
    more = SETTING._replace(threads=8, threads_batch=8)
    assert bench.plan(fast, setting=more).setting.cpus is None


def test_a_copy_of_which_no_gain_is_known_is_used_as_it_was_found(bench: Bench) -> None:
    made = bench.plan(HELLO._replace(n_predict=1), evidence=EVIDENCE._replace(ratio=None))
    assert "--no-mmap" in made.command
