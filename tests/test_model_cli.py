"""``python3 -m bitnet_tuning model``."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bitnet_tuning.__main__ import main
from bitnet_tuning.cli import model
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.find import DEFAULT
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.model.types import slim_advice
from tests.gguf_files import write_bitnet, write_gguf, write_split
from tests.machines import Machine


def test_show_prints_what_a_token_reads_part_by_part(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_bitnet(tmp_path / "m.gguf")
    assert main(["model", "show", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path)
    assert lines[1].startswith("small, bitnet-b1.58, i2_s, context of 4096 tokens, ")
    assert [line.split()[:3] for line in lines[3:8]] == [
        ["part", "type", "weights"],
        ["ternary", "i2_s", "524,288"],
        ["embedding", "f16", "8,192,000"],
        ["other", "f32", "512"],
        ["all", "8,716,800", "15.8"],
    ]
    assert lines[5].endswith("15.6 MiB (99 %)")
    assert lines[9:] == [
        "99 % of the 15.8 MiB that each token reads is the f16 embedding; "
        "a copy with q6_k is up to ×2.41 as fast",
        f"make a smaller copy: python3 -m bitnet_tuning model slim {path}",
    ]


def notes(*arguments: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Return what ``model show`` prints below its table."""
    assert main(["model", "show", *arguments]) == 0
    return capsys.readouterr().out.partition("\nall ")[2].splitlines()[2:]


def test_show_of_an_f32_embedding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bitnet(tmp_path / "a model.gguf", embedding="f32")
    cost, advice = notes(str(path), capsys=capsys)
    assert cost.startswith("100 % of the 31.4 MiB that each token reads is the f32 embedding; ")
    assert cost.endswith("a copy with q6_k is up to ×4.80 as fast")
    assert advice.endswith(f"model slim '{path}'")


def test_show_of_a_model_and_of_its_slim_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_bitnet(tmp_path / "m.gguf")
    copy = write_bitnet(tmp_path / "m-embd-q6_k.gguf", embedding="q6_k")
    assert notes(str(model), capsys=capsys)[1:] == [
        f"run the copy with a smaller embedding: python3 run_inference.py -m {copy}"
    ]
    assert notes(str(copy), capsys=capsys) == [f"made from {model}: up to ×2.41 as fast as that"]
    os.utime(copy, (1, 1))
    assert notes(str(copy), capsys=capsys)[1] == (
        f"it is older than the original, so check it: python3 -m bitnet_tuning model slim {model}"
    )


def test_show_may_be_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bitnet(tmp_path / "m.gguf")
    assert main(["model", str(path)]) == 0
    assert capsys.readouterr().out.startswith(str(path))


def test_a_model_that_slim_refuses_gets_no_advice_to_make_a_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = (("token_embd.weight", (256, 512), "f16"), ("blk.0.w", (256, 256), "f16"))
    path = write_gguf(tmp_path / "f16.gguf", {"llama.embedding_length": 256}, tensors)
    assert notes(str(path), capsys=capsys) == []


def test_commands_and_names_are_safe_for_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bitnet(tmp_path / "-m.gguf")
    assert notes("./-m.gguf", capsys=capsys)[-1].endswith("model slim ./-m.gguf")
    assert slim_advice(read_model("-m.gguf"), ()).endswith("model slim ./-m.gguf")
    path = write_bitnet(tmp_path / "a\x1b[31m.gguf")
    assert main(["model", "show", str(path)]) == 0
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("embedding", "output", "expected"),
    [
        ("f16", "f16", ["99 % of the 15.8 MiB", "token embedding, one row", "make a small"]),
        ("f32", "q6_k", ["token embedding, one row", "make a smaller copy"]),
        ("q8_0", "f16", ["99 % of the 15.8 MiB", "make a smaller copy"]),
        ("q6_k", "q6_k", []),
    ],
)
def test_of_an_untied_model_the_output_matrix_costs_time_and_the_embedding_memory(
    embedding: str,
    output: str,
    expected: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write_bitnet(tmp_path / "m.gguf", embedding=embedding, output=output)
    found = notes(str(path), capsys=capsys)
    assert [line[: len(start)] for line, start in zip(found, expected, strict=True)] == expected
    saved = [line for line in found if line.startswith("token")]
    sizes = {"f16": "9.2 MiB", "f32": "24.8 MiB"}
    assert all(
        line.endswith(f"(in q6_k {sizes[embedding]} less memory, not faster)") for line in saved
    )


def test_show_looks_in_the_engines_checkout_and_needs_no_engine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    cli = tmp_path / "checkout" / "build" / "bin" / "llama-cli"
    cli.parent.mkdir(parents=True)
    cli.touch()  # it is not even asked what it can do
    path = tmp_path / "checkout" / DEFAULT
    path.parent.mkdir(parents=True)
    write_bitnet(path)
    assert main(["model", "show", "--engine", str(tmp_path / "checkout")]) == 0
    assert capsys.readouterr().out.startswith(str(path))
    assert main(["model", "show", "--engine", str(tmp_path / "none")]) == 3
    monkeypatch.setenv("BITNET_ENGINE", str(tmp_path / "none"))
    assert main(["model", "show", str(path)]) == 0
    assert main(["model", "show"]) == 3
    assert capsys.readouterr().err.count("no such engine") == 1


def test_show_warns_of_a_slow_drive(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bitnet(tmp_path / "m.gguf")
    system = Machine(tmp_path / "root").mount(os.path.realpath(tmp_path), "nfs4", "server:/models")
    monkeypatch.setattr(model, "Root", lambda: Root(str(system.path)))
    assert notes(str(path), capsys=capsys)[0] == (
        f"the model lies on a shared file system (nfs4 on {os.path.realpath(tmp_path)}), read over "
        "a network or from a virtual machine's host: copy it to a local disk"
    )


def test_show_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_bitnet(tmp_path / "m.gguf")
    assert main(["model", "show", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["bytes_per_token"] == sum(part["read"] for part in facts["parts"])
    assert facts["possible_gain"] > 2
    assert [part["name"] for part in facts["parts"]] == ["ternary", "embedding", "other"]


def test_show_without_a_file_shows_the_one_that_a_run_would_use(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_bitnet(tmp_path / "m.gguf")
    monkeypatch.setenv("BITNET_MODEL", str(path))
    assert main(["model"]) == 0
    assert capsys.readouterr().out.startswith(str(path))


@pytest.mark.parametrize("words", [("show",), ()])
def test_the_file_may_be_named_with_m_as_for_a_run(
    words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_bitnet(tmp_path / "m.gguf")
    assert main(["model", *words, "-m", str(path)]) == 0
    assert capsys.readouterr().out.startswith(str(path))
    assert main(["model", *words, f"--model={path}", str(path)]) == 2
    assert "not allowed with argument" in capsys.readouterr().err


def test_show_of_a_missing_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "show", "/none.gguf"]) == 3
    assert "no such model file: /none.gguf" in capsys.readouterr().err


def test_show_counts_the_files_of_a_split_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *_ = write_split(tmp_path / "m", (3, 1))
    assert main(["model", "show", str(first)]) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith(" in 2 files")
