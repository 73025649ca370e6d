"""The decision: contract, reasons, refusals, warnings, performance mode."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from bitnet_tuning.cli.show import plan_facts, shell_line
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.errors import UnsupportedError, UsageError
from bitnet_tuning.machine.detect import Privileges
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.topology import Core, Hybrid, Node
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.plan import make_plan

GIBIBYTE = 1 << 30
CONTRACT = (
    "command",
    "env",
    "cpus",
    "threads",
    "threads_batch",
    "batch",
    "ubatch",
    "engine",
    "model",
    "reasons",
)

ENGINE = Engine(
    location=Location("/build/bin/llama-cli", "found in /build/bin"),
    version="",
    flags=frozenset({"-tb", "--mlock", "--no-escape"}),
    chat_flags=frozenset({"-tb", "--mlock", "-cnv"}),
    openmp="libgomp",
    blas=(),
    isa=frozenset({"AVX2"}),
    i2_s=True,
    architectures={"bitnet-b1.58": True, "llama": True, "bitnet-25": False},
    files=(),
    completion=None,
)
MAINLINE = ENGINE._replace(i2_s=False, completion="/build/bin/llama-completion")
EMBEDDED = MAINLINE._replace(
    location=Location("/package/embedded.py", "none was found", embedded=True), completion=None
)

MODEL = ModelFile(
    path="/models/m.gguf",
    size=GIBIBYTE,
    architecture="bitnet-b1.58",
    name="m",
    quantization="i2_s",
    types=(),
    context_length=4096,
    layers=30,
    embedding_length=2560,
    vocabulary=128256,
    chat_template=True,
)
ROOT = Privileges(lowest_nice=-20, lockable=None)
HELLO = Request(prompt="hello")


def a_host(cores: int, quota: float | None = None, available: int | None = 8 * GIBIBYTE) -> Host:
    """``cores`` cores of one kind with two CPUs each."""
    each = tuple(Core(frozenset((core, core + cores)), 0) for core in range(cores))
    cpus = frozenset(range(2 * cores))
    return Host(
        online=cpus,
        allowed=cpus,
        cores=each,
        nodes=(Node(0, cpus),),
        hybrid=None,
        quota=quota,
        governor=None,
        wsl=None,
        memory=Memory(16 * GIBIBYTE, available),
        vendor="GenuineIntel",
        isa=("avx2",),
    )


def a_hybrid_host() -> Host:
    """Eight performance cores with two CPUs each, then four slow efficiency cores."""
    fast = tuple(Core(frozenset((2 * core, 2 * core + 1)), 0) for core in range(8))
    slow = tuple(Core(frozenset((16 + core,)), 0, speed=0.3) for core in range(4))
    kinds = Hybrid(8, 4, frozenset(range(16)), frozenset(range(16, 20)))
    cpus = frozenset(range(20))
    return a_host(1)._replace(online=cpus, allowed=cpus, cores=fast + slow, hybrid=kinds)


def plan(
    request: Request = HELLO,
    host: Host | None = None,
    engine: Engine = ENGINE,
    *,
    model: ModelFile = MODEL,
    environ: Mapping[str, str] | None = None,
    privileges: Privileges | None = None,
) -> Plan:
    facts = Facts(
        host or a_host(4), engine, model, "named with -m", environ or {}, privileges=privileges
    )
    return make_plan(request, facts)


def test_the_contracts_fields_in_their_order() -> None:
    facts = plan_facts(Facts(a_host(4), ENGINE, MODEL, "", {}), plan())
    assert tuple(facts) == CONTRACT
    assert facts["command"][0] == "/build/bin/llama-cli"
    assert facts["env"]["OMP_NUM_THREADS"] == "4"
    assert facts["cpus"] is None
    assert (facts["threads"], facts["threads_batch"]) == (4, 4)
    assert (facts["batch"], facts["ubatch"]) == (None, None)
    assert (facts["engine"], facts["model"]) == ("/build/bin/llama-cli", "/models/m.gguf")


@pytest.mark.parametrize("engine", [ENGINE, MAINLINE, EMBEDDED])
@pytest.mark.parametrize("host", [a_host(4), a_host(64, quota=1.5), a_hybrid_host()])
@pytest.mark.parametrize(
    "request_",
    [HELLO, Request(prompt="a", chat=True, threads=3, batch=64, ubatch=32, performance=True)],
)
def test_every_field_has_a_reason(engine: Engine, host: Host, request_: Request) -> None:
    model = MODEL._replace(quantization="tq2_0")
    made = plan(request_, host, engine, model=model, privileges=ROOT)
    assert set(CONTRACT) - {"reasons"} <= set(made.reasons)
    for field, reason in made.reasons.items():
        assert reason.strip() == reason != "", field
        assert "\n" not in reason, field


def test_reasons_name_what_was_asked_for() -> None:
    request = HELLO._replace(threads=3, threads_batch=2, batch=64, ubatch=32)
    reasons = plan(request).reasons
    assert "-t" in reasons["threads"]
    assert "--threads-batch" in reasons["threads_batch"]
    assert "--batch-size" in reasons["batch"]
    assert "--ubatch-size" in reasons["ubatch"]
    assert reasons["model"] == "named with -m: bitnet-b1.58, i2_s"
    assert reasons["engine"] == "found in /build/bin"


def test_the_command_carries_what_the_fields_say() -> None:
    made = plan(HELLO._replace(threads=3, threads_batch=2, batch=64, ubatch=32))
    words = list(made.command)
    values = {flag: words[words.index(flag) + 1] for flag in ("-t", "-tb", "-b", "-ub", "-m")}
    assert values == {"-t": "3", "-tb": "2", "-b": "64", "-ub": "32", "-m": "/models/m.gguf"}


@pytest.mark.parametrize(
    ("engine", "model", "words"),
    [
        (MAINLINE, {}, ("i2_s", "/build/bin/llama-cli", "bitnet.cpp", "TQ2_0")),
        (EMBEDDED, {}, ("i2_s", "embedded engine", "bitnet.cpp", "TQ2_0")),
        (ENGINE, {"quantization": "tl1"}, ("tl1", "i2_s", "setup_env.py")),
        (ENGINE, {"quantization": "tl2"}, ("tl2", "i2_s", "setup_env.py")),
        (ENGINE, {"architecture": "bitnet-25"}, (" bitnet-25 ", "/models/m.gguf", "--engine")),
    ],
)
def test_a_pair_that_cannot_work_is_refused_with_what_would(
    engine: Engine, model: dict[str, str], words: tuple[str, ...]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        plan(engine=engine, model=MODEL._replace(**model))  # type: ignore[arg-type]
    assert caught.value.exit_code == 4
    assert caught.value.remedy
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("engine", "model"),
    [
        (ENGINE, {}),
        (ENGINE._replace(i2_s=None), {}),  # a wrapper script: nothing is known
        (ENGINE._replace(architectures={}), {"architecture": "new"}),
        (MAINLINE, {"quantization": "tq2_0"}),
        (EMBEDDED, {"quantization": "q4_0", "architecture": "llama"}),
    ],
)
def test_a_pair_that_may_work_is_not_refused(engine: Engine, model: dict[str, str]) -> None:
    assert plan(engine=engine, model=MODEL._replace(**model)).command  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("quota", "threads"), [(None, 8), (8.0, 8), (6.5, 6), (1.5, 1), (0.5, 1), (64.0, 8)]
)
def test_threads_stay_within_the_quota(quota: float | None, threads: int) -> None:
    made = plan(host=a_host(8, quota))
    assert (made.setting.threads, made.setting.threads_batch) == (threads, threads)


def test_large_hosts_generate_with_twelve_and_read_prompts_with_all() -> None:
    made = plan(host=a_host(64))
    assert (made.setting.threads, made.setting.threads_batch) == (12, 64)
    assert "--max-threads" in made.reasons["threads"]
    assert plan(HELLO._replace(max_threads=20), a_host(64)).setting.threads == 20


def test_a_hybrid_host_is_decided_by_cores_with_its_reason() -> None:
    made = plan(host=a_hybrid_host())
    assert made.setting.threads == 8
    assert made.setting.cpus == frozenset(range(16))
    assert "8 performance and 4 efficiency cores" in made.reasons["threads"]
    assert plan_facts(Facts(a_hybrid_host(), ENGINE, MODEL, "", {}), made)["cpus"] == "0-15"
    assert "taskset -c 0-15 " in shell_line(made)


def test_obeyed_thread_counts_are_warned_about_when_they_oversubscribe() -> None:
    made = plan(HELLO._replace(threads=6))
    assert made.setting.threads == 6
    (warning,) = made.warnings
    assert "-t asks for 6" in warning and "4 physical cores" in warning
    assert plan(HELLO._replace(threads=4)).warnings == ()


@pytest.mark.parametrize("text", ["-3", "abc", "1.5", "2,2"])
def test_a_senseless_variable_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="BITNET_THREADS"):
        plan(environ={"BITNET_THREADS": text})


@pytest.mark.parametrize(
    ("runtime", "quota", "blocktime"),
    [("libomp", None, "200"), ("libomp", 2.0, None), ("libgomp", None, None), ("none", None, None)],
)
def test_waiting_is_tuned_where_it_works_and_no_quota_binds(
    runtime: str, quota: float | None, blocktime: str | None
) -> None:
    made = plan(host=a_host(4, quota), engine=ENGINE._replace(openmp=runtime))
    assert made.setting.variables.get("KMP_BLOCKTIME") == blocktime
    assert ("OMP_PROC_BIND" in made.setting.variables) == (runtime != "none")


def test_what_the_user_set_is_not_in_the_plans_environment() -> None:
    mine = {"OMP_PROC_BIND": "spread", "KMP_BLOCKTIME": "1"}
    made = plan(engine=ENGINE._replace(openmp="libomp"), environ=mine)
    assert not set(mine) & set(made.setting.variables)
    assert "OMP_PLACES" not in made.setting.variables  # half a binding would be another one


@pytest.mark.parametrize(
    ("size", "available", "warned"),
    [
        (GIBIBYTE, 2 * GIBIBYTE, False),
        (GIBIBYTE, GIBIBYTE, False),
        (3 * GIBIBYTE, GIBIBYTE, True),
        (3 * GIBIBYTE, None, False),
    ],
)
def test_a_model_larger_than_the_free_memory_is_warned_about(
    size: int, available: int | None, warned: bool
) -> None:
    made = plan(host=a_host(4, available=available), model=MODEL._replace(size=size))
    assert [warning for warning in made.warnings if "3.0 GiB" in warning] == list(made.warnings)
    assert bool(made.warnings) == warned


FAST = HELLO._replace(performance=True)


def test_performance_mode_with_every_privilege() -> None:
    made = plan(FAST, privileges=ROOT)
    assert (made.setting.mlock, made.setting.nice, made.warnings) == (True, -5, ())
    assert "--mlock" in made.command
    assert "locked" in made.reasons["memory"] and "-5" in made.reasons["performance"]
    assert "nice -n -5 " in shell_line(made)


def test_without_performance_mode_nothing_is_raised_or_locked() -> None:
    made = plan(privileges=ROOT)
    assert (made.setting.mlock, made.setting.nice) == (False, 0)
    assert "--mlock" not in made.command
    assert "performance" not in made.reasons


@pytest.mark.parametrize(
    ("privileges", "available", "engine", "word"),
    [
        (Privileges(-20, 64 << 20), 8 * GIBIBYTE, ENGINE, "ulimit -l"),
        (Privileges(-20, None), GIBIBYTE, ENGINE, "too little"),
        (Privileges(-20, None), None, ENGINE, "too little"),
        (Privileges(-20, None), 8 * GIBIBYTE, ENGINE._replace(flags=frozenset()), "cannot"),
    ],
)
def test_memory_is_locked_only_where_that_is_allowed_and_safe(
    privileges: Privileges, available: int | None, engine: Engine, word: str
) -> None:
    made = plan(FAST, a_host(4, available=available), engine, privileges=privileges)
    assert not made.setting.mlock
    assert "--mlock" not in made.command
    (warning,) = made.warnings
    assert word in warning
    assert "unlocked" in made.reasons["memory"]


def test_a_chats_own_program_must_be_able_to_lock() -> None:
    engine = ENGINE._replace(chat_flags=ENGINE.chat_flags - {"--mlock"})
    assert plan(FAST, engine=engine, privileges=ROOT).setting.mlock
    assert not plan(FAST._replace(chat=True), engine=engine, privileges=ROOT).setting.mlock


@pytest.mark.parametrize(("lowest", "nice"), [(-20, -5), (-5, -5), (-4, 0), (0, 0), (20, 0)])
def test_priority_is_raised_only_with_the_privilege(lowest: int, nice: int) -> None:
    made = plan(FAST, privileges=Privileges(lowest, None))
    assert made.setting.nice == nice
    assert any("priority" in warning for warning in made.warnings) == (nice == 0)


@pytest.mark.parametrize(
    ("isa", "quantization", "warned"),
    [
        ({"SSSE3"}, "i2_s", True),
        ({"SSSE3", "AVX2"}, "i2_s", False),
        ({"NEON"}, "i2_s", False),
        (set(), "i2_s", False),
        ({"SSSE3"}, "tq2_0", False),
    ],
)
def test_a_build_known_to_lack_the_kernels_of_i2_s_is_warned_about(
    isa: set[str], quantization: str, warned: bool
) -> None:
    engine = ENGINE._replace(isa=frozenset(isa), ran=True, cpu=frozenset(a_host(4).isa))
    made = plan(engine=engine, model=MODEL._replace(quantization=quantization))
    assert any(engine.path in warning for warning in made.warnings) == warned


def test_a_build_that_this_cpu_cannot_run_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        plan(engine=ENGINE._replace(isa=frozenset({"AVX2", "AVX512"})))
