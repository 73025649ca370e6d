"""Whole plans: the contract's fields, reasons, refusals, warnings, performance mode."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning.cli.show import plan_facts, shell_line, show_plan
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.errors import UnsupportedError, UsageError
from bitnet_tuning.machine.detect import Privileges
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.memory import Memory
from bitnet_tuning.machine.topology import Core, Hybrid, Node
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.openmp import BINDING, THREAD_COUNTS
from bitnet_tuning.plan.plan import make_plan
from tests import profile_samples
from tests.gguf_files import write_bitnet
from tests.profile_samples import GIBIBYTE, MODEL

CONTRACT = "command env cpus threads threads_batch batch ubatch engine model reasons"

ENGINE = profile_samples.ENGINE._replace(
    flags=frozenset({"-tb", "--mlock", "--no-escape"}),
    chat_flags=frozenset({"-tb", "--mlock", "-cnv"}),
    openmp="libgomp",
    architectures={"bitnet-b1.58": True, "llama": True, "bitnet-25": False},
)
MAINLINE = ENGINE._replace(i2_s=False, completion="/build/bin/llama-completion")
EMBEDDED = MAINLINE._replace(
    location=Location("/package/embedded.py", "none was found", embedded=True), completion=None
)

ROOT = Privileges(lowest_nice=-20, lockable=None)
HELLO = Request(prompt="hello")


def a_host(cores: int, quota: float | None = None, available: int | None = 8 * GIBIBYTE) -> Host:
    """A host of ``cores`` cores of one kind with two CPUs each."""
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
    """A host of eight performance cores with two CPUs each and four efficiency cores with one."""
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


def test_the_fields_and_their_order_are_those_of_the_contract() -> None:
    facts: Any = plan_facts(Facts(a_host(4), ENGINE, MODEL, "", {}), plan())
    assert " ".join(facts) == CONTRACT
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
    assert set(CONTRACT.split()) - {"reasons"} <= set(made.reasons)
    for field, reason in made.reasons.items():
        assert reason.strip() == reason != "", field
        assert "\n" not in reason, field


def test_reasons_name_the_flags_that_decided() -> None:
    request = HELLO._replace(threads=3, threads_batch=2, batch=64, ubatch=32)
    reasons = plan(request).reasons
    assert reasons.pop("isa")
    assert reasons == {
        "threads": "3: set by -t",
        "threads_batch": "2: set by --threads-batch",
        "cpus": "not bound to particular CPUs: they are chosen only together with the number of "
        "threads",
        "batch": "64: set by --batch-size",
        "ubatch": "32: set by --ubatch-size",
        "numa": "nothing to choose: one NUMA node",
        "env": "the engine's OpenMP runtime, libgomp, reads these variables; threads are not "
        "bound: 3 of 4 cores are used, and other programs may choose the same",
        "memory": "the model is mapped (mmap) and shares its memory with the page cache; "
        "model 1.0 GiB + KV cache 600 MiB + buffers 16.0 MiB = 1.6 GiB; available: 8.0 GiB",
        "command": "llama-cli, which completes a prompt and exits",
        "engine": "found in /build/bin",
        "model": "named with -m: bitnet-b1.58, i2_s",
    }


@pytest.mark.parametrize(
    ("embedding", "words"),
    [
        (
            "f16",
            "99 % of the 15.8 MiB that each token reads is the f16 embedding; "
            "a copy with q6_k is up to ×2.41 as fast",
        ),
        ("q6_k", "98 % of the 6.5 MiB that each token reads is the q6_k embedding"),
    ],
)
def test_the_reason_for_the_model_names_what_a_token_reads(
    embedding: str, words: str, tmp_path: Path
) -> None:
    model = read_model(str(write_bitnet(tmp_path / "m.gguf", embedding=embedding)))
    reason = plan(HELLO, model=model).reasons["model"]
    assert reason == f"named with -m: bitnet-b1.58, i2_s; {words}"


@pytest.mark.parametrize(
    ("engine", "chat", "words"),
    [
        (ENGINE, True, "llama-cli, which runs chats"),
        (MAINLINE, False, "llama-completion, since the llama-cli beside it only runs chats"),
        (EMBEDDED, False, "the embedded engine, which takes llama-cli's flags"),
    ],
)
def test_the_reason_for_the_command_names_the_program(
    engine: Engine, chat: bool, words: str
) -> None:
    request, model = HELLO._replace(chat=chat), MODEL._replace(quantization="tq2_0")
    assert plan(request, engine=engine, model=model).reasons["command"] == words


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
def test_a_pair_that_may_work_is_accepted(engine: Engine, model: dict[str, str]) -> None:
    assert plan(engine=engine, model=MODEL._replace(**model)).command  # type: ignore[arg-type]


def test_a_hybrid_host_binds_the_engine_to_its_fast_cores() -> None:
    made = plan(host=a_hybrid_host())
    assert made.setting.threads == 8
    assert made.setting.cpus == frozenset(range(16))
    assert "8 performance and 4 efficiency cores" in made.reasons["threads"]
    assert plan_facts(Facts(a_hybrid_host(), ENGINE, MODEL, "", {}), made)["cpus"] == "0-15"
    assert "taskset -c 0-15 " in shell_line(made)


@pytest.mark.parametrize(
    ("size", "available", "warned"),
    [
        (GIBIBYTE, 2 * GIBIBYTE, False),
        (GIBIBYTE, GIBIBYTE, False),
        (3 * GIBIBYTE, GIBIBYTE, True),
        (3 * GIBIBYTE, None, False),
    ],
)
def test_a_model_larger_than_the_available_memory_is_warned_about(
    size: int, available: int | None, warned: bool
) -> None:
    made = plan(host=a_host(4, available=available), model=MODEL._replace(size=size))
    expected = (
        "the model takes 3.0 GiB, but only 1.0 GiB of memory is available: parts of it are read "
        "from disk again for every token"
    )
    assert made.warnings == ((expected,) if warned else ())


@pytest.mark.parametrize("text", ["abc", "0", "-3", "2.5", "4,abc", "9" * 20])
@pytest.mark.parametrize("runtime", ["libgomp", None])
def test_an_invalid_thread_count_in_the_environment_is_warned_about(
    runtime: str | None, text: str
) -> None:
    made = plan(engine=ENGINE._replace(openmp=runtime), environ={"OMP_NUM_THREADS": text})
    (warning,) = (each for each in made.warnings if not each.startswith("your OMP_NUM_THREADS"))
    assert warning.startswith(f"OMP_NUM_THREADS is '{text}', not a positive whole number")
    assert "`unset OMP_NUM_THREADS`" in warning


@pytest.mark.parametrize("text", ["abc", "0", "-3", "2.5", "4,abc"])
def test_an_invalid_thread_count_is_refused_before_llvms_runtime_crashes(text: str) -> None:
    with pytest.raises(UsageError) as error:
        plan(engine=ENGINE._replace(openmp="libomp"), environ={"OMP_NUM_THREADS": text})
    assert f"'{text}'" in error.value.cause and error.value.remedy == "unset OMP_NUM_THREADS"


@pytest.mark.parametrize(
    ("runtime", "text"), [("libomp", "3"), ("libomp", " 4, 2"), ("libomp", ""), ("none", "abc")]
)
def test_a_thread_count_that_the_runtime_accepts_or_ignores_is_not_warned_about(
    runtime: str, text: str
) -> None:
    made = plan(engine=ENGINE._replace(openmp=runtime), environ={"OMP_NUM_THREADS": text})
    assert made.warnings == ()


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
    assert "locked" not in made.reasons["memory"]


def test_a_chat_locks_memory_only_if_its_own_program_can() -> None:
    engine = ENGINE._replace(chat_flags=ENGINE.chat_flags - {"--mlock"})
    assert plan(FAST, engine=engine, privileges=ROOT).setting.mlock
    assert not plan(FAST._replace(chat=True), engine=engine, privileges=ROOT).setting.mlock


@pytest.mark.parametrize(("lowest", "nice"), [(-20, -5), (-5, -5), (-4, 0), (0, 0), (20, 0)])
def test_priority_is_raised_only_with_the_privilege(lowest: int, nice: int) -> None:
    made = plan(FAST, privileges=Privileges(lowest, None))
    assert made.setting.nice == nice
    assert any("priority" in warning for warning in made.warnings) == (nice == 0)


@pytest.mark.parametrize(
    ("isa", "quantization", "weak"),
    [
        ({"SSSE3"}, "i2_s", True),
        ({"SSSE3", "AVX2"}, "i2_s", False),
        ({"NEON"}, "i2_s", False),
        (set(), "i2_s", False),
        ({"SSSE3"}, "tq2_0", False),
    ],
)
def test_a_build_without_the_kernels_of_i2_s_is_refused_unless_it_is_forced(
    isa: set[str], quantization: str, weak: bool
) -> None:
    host = a_host(4)
    engine = ENGINE._replace(isa=frozenset(isa), ran=True, cpu=frozenset(host.isa))
    model = MODEL._replace(quantization=quantization)
    facts = Facts(host, engine, model, "named with -m", {})
    forced = make_plan(HELLO, facts._replace(force=True))
    assert any("is built without AVX2 and NEON" in each for each in forced.warnings) == weak
    if not weak:
        assert make_plan(HELLO, facts) == forced
        return
    with pytest.raises(UnsupportedError) as caught:
        make_plan(HELLO, facts)
    assert "is built without AVX2 and NEON" in caught.value.cause
    assert "-DGGML_NATIVE=ON" in caught.value.remedy and "--force" in caught.value.remedy
    old = facts._replace(
        host=host._replace(isa=("ssse3",)), engine=engine._replace(cpu=frozenset())
    )
    with pytest.raises(UnsupportedError) as caught:
        make_plan(HELLO, old)
    assert "TQ2_0" in caught.value.remedy and "GGML_NATIVE" not in caught.value.remedy


def context_facts(least: int = 0, engine: Engine = ENGINE) -> Facts:
    return Facts(a_host(4), engine, MODEL, "named with -m", {}, least_tokens=least)


@pytest.mark.parametrize(
    ("engine", "room"),
    [(ENGINE, 512), (EMBEDDED, 512), (MAINLINE._replace(i2_s=True), 300)],
    ids=["bitnet", "embedded", "llama-completion"],
)
def test_a_prompt_that_is_surely_longer_than_the_context_is_refused(
    engine: Engine, room: int
) -> None:
    """Engines enlarge the context to a multiple of 256 tokens; llama-completion aborts before."""
    model = MODEL._replace(quantization="tq2_0") if engine is EMBEDDED else MODEL
    request = Request(prompt="word " * 500, ctx_size=300, n_predict=4)
    make_plan(request, context_facts(room, engine)._replace(model=model))
    with pytest.raises(UsageError) as caught:
        make_plan(request, context_facts(room + 1, engine)._replace(model=model))
    assert f"at least {room + 1} tokens" in caught.value.cause and "300" in caught.value.cause
    assert "-c 768," in caught.value.remedy
    make_plan(
        request._replace(extra=("-c", "9000")), context_facts(9000, engine)._replace(model=model)
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "x" * 9000}, ("about 2250 tokens", "2048", "-c 2560", "an estimate")),
        ({"prompt": "x" * 16000}, ("about 4000 tokens", "-c 4096, which should")),
        ({"prompt": "x" * 40000}, ("about 10000 tokens", "shorten it: ", "at most 4096 tokens")),
        ({"prompt": "x" * 8000}, ()),
        ({"n_predict": 2048}, ()),
        ({"n_predict": 2049}, ("-n 2049", "2048")),
        ({"n_predict": -1}, ()),
        ({"ctx_size": 4097}, ()),
        ({"ctx_size": 0}, ()),
    ],
)
def test_a_context_that_may_not_fit_is_a_warning(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    text = "\n".join(make_plan(HELLO._replace(**changes), context_facts()).warnings)
    assert [word for word in words if word not in text] == []
    assert bool(text) == bool(words)


def test_a_build_that_this_cpu_cannot_run_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        plan(engine=ENGINE._replace(isa=frozenset({"AVX2", "AVX512"})))


@pytest.mark.parametrize(
    ("host", "request_", "why"),
    [
        (a_host(4), HELLO, None),
        (a_host(4), HELLO._replace(threads=6), None),
        (a_host(4), HELLO._replace(threads=3), "3 of 4 cores are used"),
        (a_host(64), HELLO, "12 of 64 cores are used"),
        (a_host(4, quota=2), HELLO, "CPU quota"),
        (a_host(4, quota=4), HELLO, None),
        (a_host(4)._replace(topology_known=False), HELLO, "which CPUs share a core"),
        (a_hybrid_host(), HELLO, None),
    ],
)
def test_threads_are_bound_only_if_they_fill_cores_of_their_own(
    host: Host, request_: Request, why: str | None
) -> None:
    made = plan(request_, host)
    assert (set(BINDING) <= made.setting.variables.keys()) == (why is None)
    said = made.reasons["env"].partition("threads are not bound: ")[2]
    assert (why or "") in said and bool(said) == bool(why)


def test_a_binding_exported_by_our_shell_script_is_taken_back_where_it_is_unsafe() -> None:
    exported = {**dict.fromkeys(THREAD_COUNTS, "4"), **BINDING}
    made = plan(HELLO, a_host(64), environ=exported)
    assert made.setting.variables["OMP_PROC_BIND"] == "false"


def test_shown_reasons_begin_with_what_matters_and_repeat_nothing(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = {
        "threads": "6: measured: twice as fast",
        "threads_batch": "8: measured: twice as fast",
        "batch": "64: holds the prompt",
        "ubatch": "64: holds the prompt",
        "numa": "nothing to choose: one NUMA node",
        "env": "an OpenMP runtime",
        "model": "named with -m",
        "cpus": "not bound",
        "engine": "named with -m",
    }
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO()))
    show_plan(Facts(a_host(4), ENGINE, MODEL, "", {}), plan()._replace(reasons=reasons), False)
    assert capfdbinary.readouterr().err.decode().splitlines() == [
        "  threads        6, threads_batch 8: measured: twice as fast",
        "  cpus           not bound",
        "  model, engine  named with -m",
        "  batch, ubatch  64: holds the prompt",
        "  env            an OpenMP runtime",
    ]
