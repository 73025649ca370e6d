"""``model slim``: a copy with a smaller embedding, and what is left when that fails."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bitnet_tuning.__main__ import main
from bitnet_tuning.errors import UnsupportedError, UsageError
from bitnet_tuning.model import slim
from bitnet_tuning.model.gguf import read_model, read_tensors
from bitnet_tuning.model.types import slim_type, slimmed
from tests.engines import FakeEngine
from tests.gguf_files import write_bitnet
from tests.processes import alive, until

COPY = "m-embd-q6_k.gguf"


class Bench(NamedTuple):
    """A fake engine, a model, and the right copy, which the fake llama-quantize writes."""

    engine: FakeEngine
    model: Path
    right: Path
    capture: pytest.CaptureFixture[str]

    @property
    def copy(self) -> Path:
        return self.model.with_name(COPY)

    def slim(self, *arguments: str, file: Path | None = None) -> int:
        flags = ["--engine", str(self.engine.checkout)]
        return main(["model", "slim", str(file or self.model), *flags, *arguments])

    def left(self) -> list[str]:
        """Return the files that lie beside the model."""
        return sorted(path.name for path in self.model.parent.iterdir() if path != self.model)

    def error(self) -> str:
        return self.capture.readouterr().err


@pytest.fixture
def bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Bench:
    engine = FakeEngine(tmp_path / "checkout", quantize=True)
    for folder in ("models", "right"):
        (tmp_path / folder).mkdir()
    right = write_bitnet(tmp_path / "right" / COPY, embedding="q6_k")
    monkeypatch.setenv("FAKE_COPY", str(right))
    return Bench(engine, write_bitnet(tmp_path / "models" / "m.gguf"), right, capsys)


def flip(path: Path, name: str, last: bool = False) -> None:
    """Change a byte in a tensor."""
    (info,) = (info for info in read_tensors(str(path)) if info.name == name)
    with open(path, "r+b") as file:
        file.seek(info.offset + (info.weights // 4 + 3 if last else 0))
        file.write(b"x")


def test_the_copy_lies_beside_the_model_and_is_named_for_its_embedding(bench: Bench) -> None:
    before = bench.model.read_bytes()
    assert bench.slim() == 0
    assert bench.left() == [COPY]
    assert bench.copy.read_bytes() == bench.right.read_bytes()
    assert bench.model.read_bytes() == before
    out = bench.capture.readouterr().out
    assert out.startswith(f"{bench.copy}: 6.5 MiB, the model: 15.8 MiB\n")
    assert (
        "embedding: f16 15.6 MiB, now q6_k 6.4 MiB; 6.5 MiB instead of 15.8 MiB read per token: up "
        in out
    )
    assert "the copy is good: all else is the model's, byte for byte, and its text at " in out
    assert "begins with the same 13 characters" in out
    flags = f"--engine {bench.engine.checkout} -m {bench.copy}"
    assert f"to use it: python3 run_inference.py {flags} -p" in out
    assert out.endswith(f"settings for it: python3 benchmark_optimized.py {flags}\n")
    ((*given, kind, threads),) = (run["argv"] for run in bench.engine.quantized())
    assert given[:4] == ["--allow-requantize", "--token-embedding-type", "q6_k", str(bench.model)]
    assert (kind, int(threads) > 0) == ("I2_S", True)
    assert not given[4].endswith(".gguf"), "a half-written copy is not taken for a model"
    texts = [run["argv"] for run in bench.engine.prompts()]
    assert [argv[argv.index("-m") + 1] for argv in texts] == [given[3], given[4]]


def test_the_default_model_is_used_from_the_copy_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bench.engine.checkout / "models"
    folder.mkdir()
    write_bitnet(folder / "m.gguf")
    flags = ["--engine", str(bench.engine.checkout)]
    assert main(["model", "slim", *flags]) == 0
    copy = folder / COPY
    use = f'python3 run_inference.py {" ".join(flags)} -p "Your prompt here"'
    assert f"to use it: {use}\n" in bench.capture.readouterr().out
    assert main(["model", "slim", *flags]) == 0
    assert f"{copy} is that copy already\nto use it: {use}\n" in bench.capture.readouterr().out
    monkeypatch.setenv("FAKE_COPY", str(write_bitnet(bench.right, embedding="q8_0")))
    assert main(["model", "slim", "--embedding", "Q8_0", *flags]) == 0
    assert bench.engine.quantized()[-1]["argv"][3] == str(folder / "m.gguf"), "not from the copy"


def test_a_matrix_of_its_own_is_made_smaller_and_named_for_what_it_gains(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bitnet(bench.model, embedding="f32", output="f16")
    right = write_bitnet(bench.right, embedding="q6_k", output="q6_k")
    monkeypatch.setenv("FAKE_COPY", str(right))
    assert bench.slim() == 0
    out = bench.capture.readouterr().out.splitlines()
    assert out[1] == (
        "embedding: f32 31.2 MiB, now q6_k 6.4 MiB; one row read per token: less memory and disk, "
        "not faster"
    )
    assert out[2].startswith("output: f16 15.6 MiB, now q6_k 6.4 MiB; 6.5 MiB instead of 15.8 MiB")
    argv = bench.engine.quantized()[0]["argv"]
    assert argv[1:5] == ["--token-embedding-type", "q6_k", "--output-tensor-type", "q6_k"]


def test_a_matrix_that_is_small_already_keeps_its_type(bench: Bench) -> None:
    model = read_model(str(write_bitnet(bench.model, embedding="q6_k", output="f16")))
    argv = slim.command("q", model, slimmed(model.parts, "q8_0"), "draft", 1)
    assert argv[2:6] == ("--token-embedding-type", "q6_k", "--output-tensor-type", "q8_0")
    assert os.path.isabs(argv[7]), "llama-quantize takes a relative name such as 2b for a type"


def test_nothing_to_gain_is_no_error(bench: Bench) -> None:
    write_bitnet(bench.model, embedding="q6_k")
    assert bench.slim() == 0
    assert "has a small embedding already: q6_k" in bench.capture.readouterr().out
    assert bench.left() == []


def test_a_copy_that_exists_already_is_checked_and_kept(bench: Bench) -> None:
    shutil.copyfile(bench.right, bench.copy)
    assert bench.slim() == 0
    assert f"{bench.copy} is that copy already" in bench.capture.readouterr().out
    flip(bench.copy, "blk.1.ffn_up.weight", last=True)
    assert bench.slim() == 2
    assert "exists and is not that copy: it has other bytes in blk.1" in bench.error()
    assert bench.engine.quantized() == []


def test_a_copy_that_is_right_is_made_as_new_as_the_model(bench: Bench) -> None:
    shutil.copyfile(bench.right, bench.copy)
    os.utime(bench.copy, (1, 1))
    assert bench.slim() == 0
    assert bench.copy.stat().st_mtime >= bench.model.stat().st_mtime
    bench.model.chmod(0o600)
    bench.copy.unlink()
    assert bench.slim() == 0
    assert bench.copy.stat().st_mode == bench.model.stat().st_mode


def test_a_copy_of_a_copy_without_its_original_says_so(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bench.model.with_name("m-embd-q8_0.gguf")
    write_bitnet(large, embedding="q8_0")
    bench.model.unlink()
    assert bench.slim(file=large) == 0
    assert f"{large} has a small embedding already: q8_0" in bench.capture.readouterr().out
    assert bench.slim("--embedding", "q6_k", file=large) == 0
    assert bench.left() == [COPY, large.name]
    assert "it loses more than q6_k made from the original" in bench.capture.readouterr().out


def test_the_copy_may_have_another_place(bench: Bench) -> None:
    place = bench.model.parent / "new"
    assert bench.slim("-o", f"{place}/") == 2
    assert bench.left() == []
    shutil.copyfile(bench.right, bench.copy)
    assert bench.slim("-o", str(place), file=bench.copy) == 0
    assert bench.left() == [COPY, "new"], "made although there is another copy"


@pytest.mark.parametrize("content", [b"notes", None], ids=["another file", "the model itself"])
def test_no_file_is_overwritten(bench: Bench, content: bytes | None) -> None:
    place = bench.model.with_name("notes.txt") if content else bench.model
    if content:
        place.write_bytes(content)
    before = place.read_bytes()
    assert bench.slim("-o", str(place)) == 2
    assert place.read_bytes() == before
    error = bench.error()
    assert "name another file with -o" in error
    assert ("is the model itself" in error) is (content is None)


def test_a_name_of_one_of_several_files_is_refused(bench: Bench) -> None:
    place = bench.model.parent / "x-00001-of-00003.gguf"
    assert bench.slim("-o", str(place)) == 2
    assert f"{place} is the name of one of several files" in bench.error()
    assert bench.slim("-o", str(place.with_name("x-00001-of-00001.gguf"))) == 0


def test_the_model_may_be_named_with_m(bench: Bench) -> None:
    flags = ("--engine", str(bench.engine.checkout))
    assert main(["model", "slim", "-m", str(bench.model), *flags]) == 0
    assert bench.left() == [COPY]


def test_a_state_folder_that_cannot_be_used_is_said_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = bench.model / "home"
    monkeypatch.setenv("BITNET_TUNING_HOME", str(home))
    assert bench.slim() == 0
    assert bench.error().count(f"warning: cannot read {home}") == 1


def test_a_folder_gets_the_copy_under_its_usual_name(bench: Bench) -> None:
    folder = bench.model.with_name("elsewhere")
    folder.mkdir()
    assert bench.slim("-o", str(folder)) == 0
    assert [path.name for path in folder.iterdir()] == [COPY]


def test_the_copy_of_a_linked_model_lies_beside_the_link(bench: Bench) -> None:
    cache = bench.model.parent.parent / "snapshots"
    cache.mkdir()
    link = cache / "m.gguf"
    link.symlink_to(bench.model)
    assert bench.slim(file=link) == 0
    assert (cache / COPY).is_file()
    assert bench.left() == []


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("half", "the copy cannot be used"),
        ("garbage", "is not a GGUF file"),
        ("fail", "llama-quantize failed: it ended with exit code 1: llama_model_quantize: failed"),
        ("crash", "llama-quantize failed: it was killed by SIGSEGV"),
        ("xfsz", "by SIGXFSZ: a file that it wrote reached the size that `ulimit -f` allows"),
    ],
)
def test_a_failed_copy_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str, said: str
) -> None:
    monkeypatch.setenv("FAKE_QUANTIZE", way)
    assert bench.slim() == 4
    assert said in bench.error()
    assert bench.left() == []


def test_a_llama_quantize_that_hangs_is_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_QUANTIZE", "hang")
    monkeypatch.setattr(slim, "PATIENCE", 0.5)
    monkeypatch.setattr(slim, "SECONDS_PER_GIB", 0.0)
    assert bench.slim() == 4
    assert "did not finish within 0.5 seconds" in bench.error()
    assert bench.left() == []


def test_what_llama_quantize_changes_besides_the_embedding_is_found(bench: Bench) -> None:
    model = read_model(str(bench.model))
    after = slimmed(model.parts, "q6_k")
    copy = str(bench.right)
    assert slim.problem(model, after, copy) is None
    assert "has token_embd.weight in q6_k" in str(slim.problem(model, model.parts, copy))
    flip(bench.right, "blk.0.attn_norm.weight")
    assert slim.problem(model, after, copy) == "has other bytes in blk.0.attn_norm.weight"
    write_bitnet(bench.right, embedding="q6_k", general__name="other")
    assert slim.problem(model, after, copy) == "has another value of general.name in its metadata"
    write_bitnet(bench.right, embedding="q6_k", output="q6_k")
    assert slim.problem(model, after, copy) == "has other tensors"
    write_bitnet(bench.right, "tq2_0", embedding="q6_k", general__file_type=40)
    assert str(slim.problem(model, after, copy)).startswith("has blk.0.ffn_up.weight in tq2_0")


def test_a_copy_with_which_the_engine_fails_is_not_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_EXIT", "3")
    assert bench.slim() == 4
    assert "cannot run" in bench.error()
    assert bench.left() == []


def test_a_type_that_loses_more_needs_consent(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bench.slim("--embedding", "q4_0") == 2
    assert "f16 17.109, q6_k 17.149, q4_0 17.353" in bench.error()
    monkeypatch.setenv("FAKE_COPY", str(bench.right))
    assert bench.slim("--embedding", "q4_0", "--yes") == 4, "it is refused as no q4_0 only"
    assert "the copy has token_embd.weight in q6_k" in bench.error()
    assert bench.slim("--embedding", "iq2_xs") == 2


def test_rows_that_hold_no_whole_blocks_get_another_type(bench: Bench) -> None:
    model = read_model(str(bench.model))._replace(embedding_length=3200)
    assert slim_type(model) == "q8_0"
    with pytest.raises(UsageError, match="rows of 3200 weights, and q6_k needs a multiple of 256"):
        slim.check_model(model, "q6_k")


def test_a_model_that_is_not_ternary_is_refused(bench: Bench) -> None:
    model = read_model(str(bench.model))._replace(quantization="q4_k")
    with pytest.raises(UnsupportedError, match=r"would change the layers of .*: q4_k"):
        slim.check_model(model, "q6_k")


def test_a_model_in_several_files_is_refused(bench: Bench) -> None:
    model = read_model(str(bench.model))._replace(path="m-00001-of-00002.gguf")
    with pytest.raises(UnsupportedError, match="is the first of 2 files"):
        slim.check_model(model, "q6_k")


def test_a_full_disk_and_too_little_memory_are_seen_before(bench: Bench) -> None:
    model = read_model(str(bench.model))
    after = slimmed(model.parts, "q6_k")
    f32 = model.parts[1].weights * 4 + after[1].size
    assert slim.size_of(model, after, f32) == bench.right.stat().st_size
    with pytest.raises(UnsupportedError, match=r"needs 37\.7 MiB of memory"):
        slim.size_of(model, after, f32 - 1)
    with pytest.raises(UnsupportedError, match="of disk"), slim.drafted(str(bench.copy), 1 << 60):
        pass
    assert bench.left() == []


def test_a_folder_that_cannot_be_written_is_named(bench: Bench) -> None:
    assert bench.slim("-o", str(bench.model.parent / "none" / "m.gguf")) == 4
    assert f"cannot write {bench.model.parent / 'none' / 'm.gguf'}: No such file" in bench.error()


def test_a_disk_that_fills_up_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(bench.model)
    left = iter((usage, usage._replace(free=1 << 20)))
    monkeypatch.setattr(slim, "disk_usage", lambda _: next(left))
    monkeypatch.setenv("FAKE_QUANTIZE", "half")
    assert bench.slim() == 4
    error = bench.error()
    assert "the copy cannot be used" in error
    assert "the disk is full (1.0 MiB are free); nothing was kept of the copy" in error
    assert bench.left() == []


def test_an_error_at_the_end_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert bench.slim() == 4
    assert "No space left on device" in bench.error()
    assert bench.left() == []


def test_a_missing_llama_quantize_is_built_with_one_command(bench: Bench) -> None:
    (bench.engine.bin / "llama-quantize").unlink()
    assert bench.slim() == 3
    command = f"cmake --build {bench.engine.checkout / 'build'} --target llama-quantize"
    assert command in bench.error()
    FakeEngine(bench.engine.checkout, build="build2", quantize=True)
    assert bench.slim() == 0, "another build of the checkout has one"


@pytest.fixture
def hanging(bench: Bench) -> Iterator[subprocess.Popen[bytes]]:
    """A ``model slim`` whose llama-quantize has written half of the copy."""
    argv = [sys.executable, "-m", "bitnet_tuning", "model", "slim", str(bench.model)]
    with subprocess.Popen(
        [*argv, "--engine", str(bench.engine.checkout)],
        env={**os.environ, "FAKE_QUANTIZE": "hang"},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            draft = bench.copy.with_name(COPY + slim.DRAFT)
            until(lambda: draft.exists() and draft.stat().st_size > 0)
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_the_draft(
    bench: Bench, hanging: subprocess.Popen[bytes], number: int
) -> None:
    hanging.send_signal(number)
    assert hanging.wait(60) == 128 + number
    assert bench.left() == []
    until(lambda: not alive(bench.engine.quantized()[0]["pid"]))


def test_after_a_kill_the_next_slim_removes_the_draft(
    bench: Bench, hanging: subprocess.Popen[bytes]
) -> None:
    hanging.kill()
    hanging.wait(60)
    until(lambda: not alive(bench.engine.quantized()[0]["pid"]))
    assert bench.left() == [COPY + slim.DRAFT]
    elsewhere = bench.right.with_name("elsewhere.gguf")
    assert bench.slim("-o", str(elsewhere)) == 0
    assert bench.left() == [COPY + slim.DRAFT], "another folder is left alone"
    assert bench.slim() == 0
    assert bench.left() == [COPY]


def test_a_file_whose_name_resembles_a_draft_is_left_alone(bench: Bench) -> None:
    notes = bench.model.with_name(COPY + ".draft")
    notes.write_text("mine")
    assert bench.slim() == 0
    assert notes.read_text() == "mine"


def test_two_do_not_write_the_same_copy(bench: Bench, hanging: subprocess.Popen[bytes]) -> None:
    assert bench.slim() == 4
    assert f"another process is writing {bench.copy}" in bench.error()
    assert hanging.poll() is None
    assert bench.left() == [COPY + slim.DRAFT], "the draft of a living process stays"
