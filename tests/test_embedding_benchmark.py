"""benchmarks/embedding.py: a model's slim copies against the original, on a fake engine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks import embedding
from bitnet_tuning.model.find import slim_path
from tests.engines import FakeEngine
from tests.gguf_files import write_bitnet

pytestmark = pytest.mark.skipif(os.name == "nt", reason="fake engines are scripts")


def test_every_copy_is_compared_with_the_original(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = write_bitnet(tmp_path / "m.gguf")
    for kind in ("q6_k", "q8_0"):
        write_bitnet(slim_path(str(original), kind), embedding=kind)
    engine = FakeEngine(tmp_path / "checkout", bench=True)
    factors = {"model=m-embd-q6_k.gguf": 1.5, "model=m-embd-q8_0.gguf,threads=2": 1.2}
    engine.curve(threads={"1": 10_000, "2": 20_000}, factors=factors, noise=0.005)
    report = tmp_path / "report.json"
    argv = [
        "--engine",
        str(engine.cli),
        "-m",
        str(original),
        "--rounds",
        "6",
        "--json",
        str(report),
    ]
    assert embedding.main([*argv, "--threads", "1,2"]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")] for line in out.splitlines() if "| " in line]
    assert [(row[1], row[2]) for row in rows[2:]] == [
        (threads, kind) for threads in ("1", "2") for kind in ("f16", "q6_k", "q8_0")
    ]
    assert rows[3][6].startswith("×1.5") or rows[3][6].startswith("×1.49")
    assert [row[7] for row in rows[2:]] == [
        *("–", "faster", "equal within 2 %"),
        *("–", "faster", "faster"),
    ]
    assert embedding.main(["--show", str(report)]) == 0
    assert capsys.readouterr().out == out
    (kept,) = json.loads(report.read_text())["engines"]
    assert [len(each["rounds"]) for each in kept["compared"]] == [6, 6]


def test_a_model_without_a_copy_is_an_error(tmp_path: Path) -> None:
    original = write_bitnet(tmp_path / "m.gguf")
    engine = FakeEngine(tmp_path / "checkout", bench=True)
    with pytest.raises(SystemExit, match="has no slim copy beside it; name one with --copy"):
        embedding.main(["--engine", str(engine.cli), "-m", str(original)])
