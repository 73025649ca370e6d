"""A machine, an engine, a model and a profile for tests of profiles."""

from __future__ import annotations

import os
from pathlib import Path

from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.machine.host import Host, fingerprint
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.profile import (
    EngineKey,
    Estimate,
    Evidence,
    ModelKey,
    Objective,
    Profile,
    engine_key,
)
from bitnet_tuning.plan.setting import Setting
from tests.machines import Machine, x86_entries

GIBIBYTE = 1 << 30
CREATED = "2026-11-23T04:05:06Z"
CLAIM = "measured on 2026-11-23: ×1.21 (1.15–1.27) over the default"

MODEL = ModelFile(
    path="/models/m.gguf",
    size=GIBIBYTE,
    architecture="bitnet-b1.58",
    name="Some Model",
    quantization="i2_s",
    types=(),
    context_length=4096,
    layers=30,
    embedding_length=2560,
    vocabulary=128256,
    chat_template=True,
)

ENGINE = Engine(
    location=Location("/build/bin/llama-cli", "found in /build/bin"),
    version="3957 (5eb47b72)",
    flags=frozenset({"-tb", "-ub", "--mlock", "--no-mmap", "-fa", "--poll", "--numa"}),
    chat_flags=frozenset({"-tb", "-ub", "--mlock", "--no-mmap", "-cnv"}),
    openmp="libomp",
    isa=frozenset({"AVX2"}),
    i2_s=True,
    architectures={"bitnet-b1.58": True},
    files=(),
    completion=None,
)

BOUND = (("OMP_NUM_THREADS", "3"), ("OMP_PLACES", "cores"), ("OMP_PROC_BIND", "true"))
SETTING = Setting(threads=3, threads_batch=4, env=BOUND, mmap=False)

EVIDENCE = Evidence(
    objective=Objective("tg", 128, 128),
    verdict="faster",
    ratio=Estimate(1.21, 1.15, 1.27, 14),
    floor=1.03,
    against_upstream=Estimate(1.62, 1.5, 1.7, 14),
    speeds={"pp": None, "tg": 24.7},
    results="/home/x/results.json",
    budget=300,
)


def machine(folder: Path) -> Machine:
    """A machine of four cores with two CPUs each and 8 GiB."""
    return Machine(folder).regular(4, 2).cpuinfo(x86_entries(8)).meminfo(8 * GIBIBYTE, 6 * GIBIBYTE)


def engine_in(folder: Path) -> Engine:
    """An engine of two files, which are written to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    files = tuple(str(folder / name) for name in ("llama-cli", "libggml.so"))
    for path in files:
        Path(path).write_text(f"some code of {os.path.basename(path)}")
    return ENGINE._replace(location=Location(files[0], "named with --engine"), files=files)


def profile(
    host: Host,
    engine: Engine | EngineKey,
    setting: Setting | None = SETTING,
    model: ModelFile = MODEL,
    evidence: Evidence = EVIDENCE,
) -> Profile:
    key = engine if isinstance(engine, EngineKey) else engine_key(engine)
    return Profile(CREATED, fingerprint(host), key, ModelKey.of(model), setting, evidence)
