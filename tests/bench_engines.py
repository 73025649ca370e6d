"""Engines to measure: fake ones that are probed once a module, and compiled ones."""

from __future__ import annotations

import os
from pathlib import Path

from bitnet_tuning import demo
from bitnet_tuning.bench.llama_bench import Bench
from bitnet_tuning.bench.runner import find_bench
from bitnet_tuning.engine.find import locate_all
from bitnet_tuning.engine.known import know
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.facts import Facts
from bitnet_tuning.store.state import State
from tests.engines import FakeEngine
from tests.machines import Machine

FOLDERS = [name for name in os.environ.get("BITNET_TEST_ENGINES", "").split(os.pathsep) if name]
"""Folders of compiled engines."""


def facts_of(engine: str, folder: Path, model: str = demo.TQ2_0) -> Facts:
    """Return the facts for an engine on a machine with four cores; ``folder`` takes their files."""
    known = know(locate_all(engine, {}, ())[0], State(str(folder / "state")))
    host = Machine(folder / "host").regular(4).host()
    return Facts(host, known, read_model(model), "named", os.environ)


def compiled(engine: str, folder: Path) -> tuple[Facts, Bench]:
    """Return the facts for a compiled engine with a model that it can run, and its llama-bench."""
    facts = facts_of(engine, folder)
    bench = find_bench(facts.engine)
    assert bench is not None
    model = demo.TQ2_0 if facts.engine.i2_s is False else demo.I2_S
    # A build without the right kernels can be measured all the same.
    return facts._replace(model=read_model(model), force=True), bench


class Engines:
    """Fake engines of each kind, made and probed when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, bool], tuple[FakeEngine, Facts, Bench | None]] = {}

    def get(
        self, generation: str = "bitnet", bench: bool = False
    ) -> tuple[FakeEngine, Facts, Bench | None]:
        """Return an engine without a curve or a log, its facts and its llama-bench."""
        if (generation, bench) not in self._made:
            folder = self._folder / f"{generation} {bench}"
            fake = FakeEngine(folder / "checkout", generation, bench)
            facts = facts_of(str(fake.cli), folder)
            self._made[generation, bench] = fake, facts, find_bench(facts.engine)
        fake, facts, found = self._made[generation, bench]
        for path in (fake.log, fake.bin / "lost"):
            path.unlink(missing_ok=True)
        fake.curve()
        return fake, facts, found
