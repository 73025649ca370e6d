"""What the files of an engine tell without being run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_tuning.engine import probe
from bitnet_tuning.engine.probe import trace_libraries

ELF = b"\x7fELF\2\1\1" + bytes(57)
GGML = b"\0ggml_init\0"
needs_gcc = pytest.mark.skipif(
    not (sys.platform.startswith("linux") and shutil.which("gcc")), reason="gcc on Linux"
)


def image(path: Path, *strings: bytes, magic: bytes = ELF) -> str:
    """Write a file that looks like compiled code of ggml with these strings in it."""
    path.write_bytes(magic + GGML + b"\0".join((b"", *strings, b"")))
    return str(path)


@pytest.mark.parametrize(
    ("content", "compiled"),
    [
        (ELF, True),
        (b"MZ\x90\0", True),
        (b"\xcf\xfa\xed\xfe\7", True),
        (b"\xca\xfe\xba\xbe\0", True),
        (b"#!/bin/sh\n", False),
        (b"", False),
    ],
)
def test_compiled_programs_are_distinguished_from_scripts(
    tmp_path: Path, content: bytes, compiled: bool
) -> None:
    path = tmp_path / "program"
    path.write_bytes(content)
    assert probe.is_executable_image(str(path)) == compiled


def test_a_missing_file_or_a_folder_is_not_a_program(tmp_path: Path) -> None:
    assert not probe.is_executable_image(str(tmp_path / "gone"))
    assert not probe.is_executable_image(str(tmp_path))
    assert not probe.contains(str(tmp_path / "gone"), [b"x"])


@pytest.mark.parametrize(
    ("strings", "runtime"),
    [
        ([b"libgomp.so.1", b"libm.so.6"], "libgomp"),
        ([b"libomp.so.5"], "libomp"),
        ([b"libomp.so"], "libomp"),
        ([b"libiomp5.so"], "libomp"),
        ([b"@rpath/libomp.dylib"], "libomp"),
        ([b"libomp140.x86_64.dll"], "libomp"),
        ([b"VCOMP140.DLL".lower()], "vcomp"),
        ([b"libm.so.6", b"libpthread.so.0"], "none"),
        # Linked statically: the program contains the variables that the runtime reads.
        ([b"GOMP_SPINCOUNT", b"OMP_PLACES"], "libgomp"),
        ([b"KMP_BLOCKTIME", b"OMP_PLACES"], "libomp"),
        # ggml sets KMP_BLOCKTIME itself with every runtime.
        ([b"KMP_BLOCKTIME", b"libgomp.so.1"], "libgomp"),
        ([b"KMP_BLOCKTIME", b"vcomp140.dll"], "vcomp"),
    ],
)
def test_the_openmp_runtime_is_recognised(
    tmp_path: Path, strings: list[bytes], runtime: str
) -> None:
    program = image(tmp_path / "llama-cli")
    library = image(tmp_path / "libggml-cpu.so", *strings)
    assert probe.openmp_runtime([program, library]) == runtime
    assert probe.openmp_runtime([library]) == runtime


def test_nothing_is_known_of_a_script_or_a_program_without_ggml(tmp_path: Path) -> None:
    script = tmp_path / "llama-cli"
    script.write_bytes(b"#!/bin/sh\n# libgomp.so.1 ggml_ i2_s\0\nexec llama-cli\n")
    starter = tmp_path / "starter"
    starter.write_bytes(ELF + b"\0libomp.so\0llama\0")
    for files in ([], [str(script)], [str(starter)]):
        assert probe.openmp_runtime(files) is None
        assert probe.knows_name(files, "llama") is None


def test_names_are_found_as_whole_c_strings(tmp_path: Path) -> None:
    files = [image(tmp_path / "a", b"i2_s", b"bitnet-b1.58"), image(tmp_path / "b", b"llama")]
    for name in ("i2_s", "bitnet-b1.58", "llama"):
        assert probe.knows_name(files, name) is True
    for name in ("bitnet", "bitnet-25", "tl1"):
        assert probe.knows_name(files, name) is False


def test_iq2_s_is_not_mistaken_for_i2_s(tmp_path: Path) -> None:
    mainline = image(tmp_path / "libggml-base.so", b"iq2_s", b"q2_K", b"quantize_row_iq2_s")
    assert probe.knows_name([mainline], "i2_s") is False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the dynamic loader's listing")
def test_an_engines_files_are_the_libraries_it_links_and_those_beside_it(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "llama-cli"
    linked = tmp_path / "lib" / "libllama.so.0.6.0"
    beside = tmp_path / "bin" / "libggml-cpu-haswell.so"
    for path in (program, linked, beside):
        path.parent.mkdir(exist_ok=True)
        image(path)
    (tmp_path / "bin" / "llama-bench").write_bytes(ELF)
    (linked.parent / "libllama.so").symlink_to(linked)

    def trace(_: str) -> str:
        return (
            "\tlinux-vdso.so.1 (0x00007ffc)\n"
            f"\tlibllama.so => {linked.parent}/libllama.so (0x00007f00)\n"
            "\tlibc.so.6 => /lib/libc.so.6 (0x00007f01)\n"
            "\tlibggml.so => not found\n"
        )

    assert probe.own_files(str(program), trace) == tuple(map(str, (program, linked, beside)))


def test_files_are_searched_beside_the_target_of_a_link(tmp_path: Path) -> None:
    program = tmp_path / "build" / "llama-cli"
    program.parent.mkdir()
    image(program)
    image(program.parent / "libggml.so")
    (tmp_path / "llama-cli").symlink_to(program)
    files = probe.own_files(str(tmp_path / "llama-cli"), lambda _: "")
    assert files == (str(program), str(program.parent / "libggml.so"))


def test_a_script_is_not_traced(tmp_path: Path) -> None:
    script = tmp_path / "llama-cli"
    script.write_text("#!/bin/sh\n")

    def trace(_: str) -> str:
        raise AssertionError("it was run")

    assert probe.own_files(str(script), trace) == (str(script),)


SOURCE = """\
#include <stdio.h>
#include <string.h>
const char * ggml_type_name(int type) { return type == 36 ? "i2_s" : "bitnet-b1.58"; }
int main(int argc, char ** argv) {
    int sum = 0;
    #pragma omp parallel for reduction(+:sum)
    for (int i = 0; i < argc; i++) { sum += i; }
    if (argc > 1) { puts("it was run"); }
    return puts(ggml_type_name(sum)) < 0;
}
"""


@needs_gcc
@pytest.mark.parametrize(("flags", "runtime"), [(["-fopenmp"], "libgomp"), ([], "none")])
@pytest.mark.parametrize("shared", [False, True])
def test_a_real_program_is_understood_without_running_it(
    tmp_path: Path, flags: list[str], runtime: str, shared: bool
) -> None:
    """If ``shared``, the code is in a libggml in another folder, found by its run path."""
    source = tmp_path / "source.c"
    source.write_text(SOURCE)
    program, library = tmp_path / "llama-cli", tmp_path / "lib" / "libggml.so"
    library.parent.mkdir()
    if shared:
        starter = tmp_path / "main.c"
        starter.write_text("const char * ggml_type_name(int);\nint main() { ggml_type_name(1); }\n")
        compiled(source, library, *flags, "-shared", "-fPIC")
        compiled(starter, program, str(library), f"-Wl,-rpath,{library.parent}")
    else:
        compiled(source, program, *flags)
    traced: list[str] = []

    def trace(path: str) -> str:
        traced.append(trace_libraries(path))
        return traced[-1]

    files = probe.own_files(str(program), trace)
    assert files == ((str(program), str(library)) if shared else (str(program),))
    assert probe.openmp_runtime(files) == runtime
    assert probe.knows_name(files, "i2_s") is True
    assert probe.knows_name(files, "qwen3") is False
    assert "it was run" not in "".join(traced)


def compiled(source: Path, target: Path, *flags: str) -> None:
    done = subprocess.run(
        ["gcc", "-o", str(target), str(source), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0 and "-fopenmp" in flags:
        pytest.skip(f"gcc without OpenMP: {done.stderr[-200:]}")
    assert done.returncode == 0, done.stderr
