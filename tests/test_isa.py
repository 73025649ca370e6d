"""Whether a CPU has the instruction sets that a build needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_tuning.engine import instruction_sets
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.engine.known import check_isa
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.host import Host
from tests.machines import Machine, x86_entries

HASWELL = "fpu pni ssse3 avx f16c fma bmi2 avx2"
SKYLAKE = f"{HASWELL} avx512f avx512dq avx512bw avx512cd avx512vl"
ICELAKE = f"{SKYLAKE} avx512vbmi avx512_vnni"
SAPPHIRE = f"{ICELAKE} avx_vnni avx512_bf16 amx_bf16 amx_tile amx_int8"
PI_4 = "fp asimd evtstrm crc32 cpuid"
GRAVITON_3 = "fp asimd asimdhp asimddp i8mm sve bf16"
AVX2 = frozenset(("SSE3", "SSSE3", "AVX", "F16C", "FMA", "AVX2"))
AVX512 = AVX2 | {"AVX512"}

ENGINE = Engine(
    location=Location("/b/build/bin/llama-cli", "found"),
    version="",
    flags=frozenset({"-tb"}),
    chat_flags=frozenset(),
    openmp=None,
    isa=AVX512,
    i2_s=True,
    architectures={},
    files=("/b/build/bin/llama-cli",),
    completion=None,
)


def host(tmp_path: Path, flags: str) -> Host:
    return Machine(tmp_path / "root").cores([[0], [1]]).cpuinfo(x86_entries(2, flags)).host()


@pytest.mark.parametrize(
    ("built", "flags", "missing"),
    [
        (AVX2, HASWELL, ()),
        (AVX512, HASWELL, ("AVX512",)),
        (AVX512, SKYLAKE, ()),
        (AVX512 | {"AVX512_VBMI", "AVX512_VNNI"}, SKYLAKE, ("AVX512_VBMI", "AVX512_VNNI")),
        (AVX512 | {"AVX512_VBMI", "AVX512_VNNI"}, ICELAKE, ()),
        ({"AVX_VNNI", "AVX512_BF16", "AMX_INT8"}, SAPPHIRE, ()),
        ({"AVX_VNNI", "AVX512_BF16", "AMX_INT8"}, ICELAKE, ("AVX_VNNI", "AVX512_BF16", "AMX_INT8")),
        (AVX2, "fpu pni ssse3 avx", ("F16C", "FMA", "AVX2")),
        ({"DOTPROD", "NEON"}, PI_4, ("DOTPROD",)),
        ({"NEON", "ARM_FMA", "DOTPROD", "MATMUL_INT8", "SVE", "FP16_VA"}, GRAVITON_3, ()),
    ],
)
def test_a_cpu_lacks_what_a_build_needs_and_its_flags_do_not_have(
    built: set[str], flags: str, missing: tuple[str, ...]
) -> None:
    assert instruction_sets.lacking(built, flags.split()) == missing


@pytest.mark.parametrize("flags", ["", "something else"])
def test_a_cpu_without_known_flags_lacks_nothing(flags: str) -> None:
    assert instruction_sets.lacking(AVX512, flags.split()) == ()


def test_a_cpu_lacks_nothing_of_a_build_for_another_family() -> None:
    """Something translates its instructions, or it does not start at all."""
    assert instruction_sets.lacking(AVX512, GRAVITON_3.split()) == ()
    assert instruction_sets.lacking({"SVE"}, HASWELL.split()) == ()


def test_a_flag_implies_the_sets_that_every_such_cpu_has() -> None:
    assert instruction_sets.lacking(AVX2, ["avx512f"]) == ()
    assert instruction_sets.lacking({"AVX", "SSE3", "SSSE3"}, ["avx2"]) == ()


def test_names_of_other_features_do_not_count() -> None:
    names = {"LLAMAFILE", "REPACK", "OPENMP", "SVE_CNT", "AVX2"}
    assert instruction_sets.lacking(names, HASWELL.split()) == ()
    assert instruction_sets.matching(names, HASWELL.split()) == ("AVX2",)


def test_flags_are_known_with_and_without_underscores() -> None:
    """The kernel writes avx512vbmi and avx512_vnni, py-cpuinfo avx512vnni."""
    wanted = {"AVX512_VBMI", "AVX512_VNNI", "AVX_VNNI"}
    assert instruction_sets.lacking(wanted, ["avx512vbmi", "avx512_vnni", "avx_vnni"]) == ()
    assert instruction_sets.lacking(wanted, ["avx512_vbmi", "avx512vnni", "avxvnni"]) == ()


# Refusing builds


def test_a_build_for_more_than_the_cpu_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check_isa(ENGINE, host(tmp_path, HASWELL))
    assert caught.value.exit_code == 4
    words = "/b/build/bin/llama-cli is built for AVX512, which this CPU lacks"
    assert caught.value.cause == words
    assert "build it on this machine" in caught.value.remedy
    assert "another build" in caught.value.remedy


@pytest.mark.parametrize("flags", [SKYLAKE, SAPPHIRE])
def test_a_build_that_the_cpu_can_run_is_not_refused(tmp_path: Path, flags: str) -> None:
    check_isa(ENGINE, host(tmp_path, flags))


def test_no_build_is_refused_on_a_machine_with_unknown_flags(tmp_path: Path) -> None:
    check_isa(ENGINE, Machine(tmp_path / "root").cores([[0]]).host())


def test_a_build_that_ran_on_this_cpu_is_not_refused_for_a_missing_flag(tmp_path: Path) -> None:
    """A virtual machine may hide flags of instructions that its CPU executes."""
    here = host(tmp_path, HASWELL)
    check_isa(ENGINE._replace(cpu=frozenset(here.isa), ran=True), here)
    with pytest.raises(UnsupportedError):
        check_isa(ENGINE._replace(cpu=frozenset(("avx512f",)), ran=True), here)


def test_a_build_that_died_on_this_cpu_is_refused_whatever_it_is_built_for(tmp_path: Path) -> None:
    here = host(tmp_path, HASWELL)
    dead = ENGINE._replace(isa=frozenset(), cpu=frozenset(here.isa), ran=False)
    with pytest.raises(UnsupportedError, match="SIGILL"):
        check_isa(dead, here)
    check_isa(dead, host(tmp_path / "other", SKYLAKE))


def test_a_build_that_chooses_its_kernels_is_not_refused(tmp_path: Path) -> None:
    library = "/b/build/bin/libggml-cpu-{}.so"
    files = tuple(library.format(name) for name in ("haswell", "icelake"))
    engine = ENGINE._replace(files=(*ENGINE.files, *files))
    check_isa(engine, host(tmp_path, HASWELL))
    assert not instruction_sets.chooses_itself(ENGINE._replace(files=("/b/libggml-cpu.so.0",)))


def test_names_that_the_engine_takes_from_the_cpu_refuse_nothing_after_a_run() -> None:
    """On ARM, bitnet.cpp prints what the CPU has, not what it is built for."""
    moved = ENGINE._replace(isa=frozenset(("NEON", "SVE", "MATMUL_INT8")), ran=True)
    assert instruction_sets.refusal(moved, PI_4.split()) is None
    built = ENGINE._replace(isa=frozenset(("NEON", "DOTPROD")), cpu=frozenset(("asimd",)))
    assert instruction_sets.refusal(built._replace(ran=False), ("asimd",)) is not None


# Reasons in a plan


def test_the_reason_says_what_avx_512_does_and_does_not_bring() -> None:
    said = instruction_sets.reason(ENGINE._replace(isa=AVX2), ICELAKE.split(), "i2_s")
    assert said.startswith("built for AVX, F16C, FMA, AVX2")
    assert "not for this CPU's AVX512, AVX512_VBMI, AVX512_VNNI" in said
    assert said.endswith("which would speed up other tensors, but not i2_s")
    assert instruction_sets.reason(ENGINE, (), "i2_s").startswith("built for")
    assert "speed up" not in instruction_sets.reason(ENGINE, (), "i2_s")
    assert "not for" not in instruction_sets.reason(ENGINE, SKYLAKE.split(), "i2_s")
    assert "gains nothing" not in instruction_sets.reason(ENGINE, SKYLAKE.split(), "q4_0")
    assert "AVX" not in instruction_sets.reason(
        ENGINE._replace(isa=frozenset(("NEON",))), GRAVITON_3.split(), "i2_s"
    )
    assert "not known" in instruction_sets.reason(ENGINE._replace(isa=frozenset()), (), "i2_s")
