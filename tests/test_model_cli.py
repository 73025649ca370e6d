"""``python3 -m bitnet_tuning model``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitnet_tuning.__main__ import main
from tests.gguf_files import write_bitnet


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
    assert "up to ×2.4" in lines[-2]
    assert lines[-1] == f"python3 -m bitnet_tuning model slim {path}"


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


def test_show_of_a_missing_file_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["model", "show", "/none.gguf"]) == 3
    assert "no such model file: /none.gguf" in capsys.readouterr().err
