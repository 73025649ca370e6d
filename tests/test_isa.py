"""What a build needs against what a CPU has, on names and on fake machines."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet_tuning.engine import instruction_sets
from bitnet_tuning.engine.binary import configured_isa
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.engine.known import check_isa
from bitnet_tuning.errors import UnsupportedError
from bitnet_tuning.machine.host import Host
from tests.engines import FakeEngine
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
    blas=(),
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
def test_what_a_cpu_lacks_of_a_build(built: set[str], flags: str, missing: tuple[str, ...]) -> None:
    assert instruction_sets.lacking(built, flags.split()) == missing


@pytest.mark.parametrize("flags", ["", "something else"])
def test_of_a_cpu_without_known_flags_nothing_is_said(flags: str) -> None:
    assert instruction_sets.lacking(AVX512, flags.split()) == ()


def test_of_another_familys_build_nothing_is_said() -> None:
    """It is run by something that translates, or not at all."""
    assert instruction_sets.lacking(AVX512, GRAVITON_3.split()) == ()
    assert instruction_sets.lacking({"SVE"}, HASWELL.split()) == ()


def test_an_excerpt_of_flags_implies_what_no_cpu_is_without() -> None:
    assert instruction_sets.lacking(AVX2, ["avx512f"]) == ()
    assert instruction_sets.lacking({"AVX", "SSE3", "SSSE3"}, ["avx2"]) == ()


def test_names_that_are_no_instruction_sets_do_not_count() -> None:
    names = {"LLAMAFILE", "REPACK", "OPENMP", "SVE_CNT", "AVX2"}
    assert instruction_sets.lacking(names, HASWELL.split()) == ()
    assert instruction_sets.matching(names, HASWELL.split()) == ("AVX2",)


def test_kernels_spelling_with_and_without_underscores() -> None:
    """avx512vbmi, but avx512_vnni; py-cpuinfo and others write avx512vnni."""
    wanted = {"AVX512_VBMI", "AVX512_VNNI", "AVX_VNNI"}
    assert instruction_sets.lacking(wanted, ["avx512vbmi", "avx512_vnni", "avx_vnni"]) == ()
    assert instruction_sets.lacking(wanted, ["avx512_vbmi", "avx512vnni", "avxvnni"]) == ()


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("-O3 -mf16c -mfma -mavx -mavx2", "F16C FMA AVX AVX2"),
        ("-mavx512f -mavx512dq -mavx512bw -mavx512vbmi -mavx512vnni",
         "AVX512 AVX512_VBMI AVX512_VNNI"),
        ("-march=x86-64-v4", "AVX AVX2 FMA F16C BMI2 AVX512"),
        ("-march=armv8.2-a+dotprod+fp16", "NEON DOTPROD FP16_VA"),
        ("/O2 /arch:AVX2", "AVX2 FMA F16C"),
        ("-march=native", ""),
        ("-march=something -DX", ""),
    ],
)  # fmt: skip
def test_what_a_compilers_flags_build_for(flags: str, names: str) -> None:
    assert instruction_sets.of_compiler(flags.split()) == set(names.split())


# Read from the folder of a build


def test_the_commands_that_compiled_the_kernels_go_before_the_options(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout").configured("AVX", "AVX2", "AVX512")
    assert configured_isa(str(fake.cli)) == {"AVX", "AVX2", "AVX512"}
    fake.configured("AVX2", flags="-mavx -mavx2 -mavx512f")
    assert configured_isa(str(fake.cli)) == {"AVX", "AVX2", "AVX512"}
    (fake.bin.parent / "compile_commands.json").write_text('[{"file": 1}, ')
    assert configured_isa(str(fake.cli)) == {"AVX2"}


def test_a_link_leads_to_the_builds_own_folder(tmp_path: Path) -> None:
    fake = FakeEngine(tmp_path / "checkout").configured("AVX512")
    link = tmp_path / "llama-cli"
    link.symlink_to(fake.cli)
    assert configured_isa(str(link)) == {"AVX512"}


@pytest.mark.parametrize("content", ["null", "{}", "[1]", '[{"file": "ggml.c"}]', "[" * 100_000])
def test_a_strange_folder_says_nothing(tmp_path: Path, content: str) -> None:
    fake = FakeEngine(tmp_path / "checkout")
    assert configured_isa(str(fake.cli)) == set()
    fake.configured()
    (fake.bin.parent / "compile_commands.json").write_text(content)
    assert configured_isa(str(fake.cli)) == set()


# The refusal


def test_a_build_for_more_than_the_cpu_has_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as caught:
        check_isa(ENGINE, host(tmp_path, HASWELL))
    assert caught.value.exit_code == 4
    words = "/b/build/bin/llama-cli is built for AVX512, which this CPU lacks"
    assert caught.value.cause == words
    assert "build it on this machine" in caught.value.remedy
    assert "another build" in caught.value.remedy


@pytest.mark.parametrize("flags", [SKYLAKE, SAPPHIRE])
def test_a_build_that_the_cpu_can_run_is_not(tmp_path: Path, flags: str) -> None:
    check_isa(ENGINE, host(tmp_path, flags))


def test_a_machine_that_says_nothing_of_its_cpu_refuses_nothing(tmp_path: Path) -> None:
    check_isa(ENGINE, Machine(tmp_path / "root").cores([[0]]).host())


def test_what_ran_on_this_very_cpu_is_not_refused_for_a_name(tmp_path: Path) -> None:
    """A virtual machine may hide what its CPU executes all the same."""
    here = host(tmp_path, HASWELL)
    check_isa(ENGINE._replace(cpu=frozenset(here.isa), ran=True), here)
    with pytest.raises(UnsupportedError):
        check_isa(ENGINE._replace(cpu=frozenset(("avx512f",)), ran=True), here)


def test_what_died_on_this_very_cpu_is_refused_without_a_name(tmp_path: Path) -> None:
    here = host(tmp_path, HASWELL)
    dead = ENGINE._replace(isa=frozenset(), cpu=frozenset(here.isa), ran=False)
    with pytest.raises(UnsupportedError, match="SIGILL"):
        check_isa(dead, here)
    check_isa(dead, host(tmp_path / "other", SKYLAKE))


def test_a_build_that_picks_its_kernels_at_its_start_is_not_refused(tmp_path: Path) -> None:
    library = "/b/build/bin/libggml-cpu-{}.so"
    files = tuple(library.format(name) for name in ("haswell", "icelake"))
    engine = ENGINE._replace(files=(*ENGINE.files, *files))
    check_isa(engine, host(tmp_path, HASWELL))
    assert not instruction_sets.chooses_itself(ENGINE._replace(files=("/b/libggml-cpu.so.0",)))


def test_names_that_come_from_the_cpu_refuse_nothing() -> None:
    """On ARM bitnet.cpp prints what the CPU has, whatever it is built for."""
    moved = ENGINE._replace(isa=frozenset(("NEON", "SVE", "MATMUL_INT8")), ran=True)
    assert instruction_sets.refusal(moved, PI_4.split()) is None
    built = ENGINE._replace(isa=frozenset(("NEON", "DOTPROD")), cpu=frozenset(("asimd",)))
    assert instruction_sets.refusal(built._replace(ran=False), ("asimd",)) is not None


# What a plan says of it


def test_the_reason_says_that_i2_s_gains_nothing_and_what_does() -> None:
    said = instruction_sets.reason(ENGINE._replace(isa=AVX2), ICELAKE.split(), "i2_s")
    assert said.startswith("built for AVX, F16C, FMA, AVX2")
    assert "not for this CPU's AVX512, AVX512_VBMI, AVX512_VNNI" in said
    assert "i2_s has kernels for AVX2 and NEON only: AVX-512 gains nothing" in said
    assert "F16 and F32" in said and "attention" in said and "output matrix" in said
    assert "not for" not in instruction_sets.reason(ENGINE, SKYLAKE.split(), "i2_s")
    assert "gains nothing" not in instruction_sets.reason(ENGINE, SKYLAKE.split(), "q4_0")
    assert "AVX" not in instruction_sets.reason(
        ENGINE._replace(isa=frozenset(("NEON",))), GRAVITON_3.split(), "i2_s"
    )
    assert "not known" in instruction_sets.reason(ENGINE._replace(isa=frozenset()), (), "i2_s")


@pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")
def test_the_sources_of_a_folder_do_not_matter_where_the_engine_speaks(tmp_path: Path) -> None:
    from bitnet_tuning.engine.known import know  # noqa: PLC0415
    from bitnet_tuning.store.state import State  # noqa: PLC0415

    fake = FakeEngine(tmp_path / "checkout").isa("AVX2").configured("AVX512")
    assert know(Location(str(fake.cli), "found"), State(str(tmp_path / "s"))).isa == {"AVX2"}
