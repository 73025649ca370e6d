"""Tokens per joule, from fake energy counters."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitnet_tuning.bench.bandwidth import AbsentError
from bitnet_tuning.bench.limits import LONG, SHORT, tokens_per_joule
from bitnet_tuning.errors import TuningError
from bitnet_tuning.machine.root import Root
from bitnet_tuning.machine.sensors import Domain, read_domains
from tests.machines import Machine

SPAN = 262_143_328_850
COUNTER = "sys/class/powercap/intel-rapl:0/energy_uj"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def root(machine: Machine) -> Root:
    return Root(str(machine.path))


def test_only_whole_packages_count(machine: Machine, root: Root) -> None:
    machine.rapl("intel-rapl:0", 5, SPAN).rapl("intel-rapl:1", 6, None, "package-1")
    machine.rapl("intel-rapl:2", 7, SPAN, "psys").rapl("intel-rapl:0:0", 8, SPAN, "core")
    machine.rapl("intel-rapl-mmio:0", 9, SPAN)
    folder = "sys/class/powercap/intel-rapl"
    assert read_domains(root) == tuple(
        Domain(f"{folder}:{at}/energy_uj", span) for at, span in ((0, SPAN), (1, None))
    )


def no_run(_: int) -> None:
    raise AssertionError("the engine must not run without counters")


def test_machines_without_counters_show_no_energy(root: Root) -> None:
    # Virtual machines, WSL and most ARM boards have none.
    with pytest.raises(AbsentError, match=r"this machine shows no energy counters \(RAPL\)"):
        tokens_per_joule(no_run, root)


def test_counters_that_only_root_may_read(
    machine: Machine, root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.rapl("intel-rapl:0", 1, SPAN).rapl("intel-rapl:1", 1, SPAN, "package-1")
    read = Root.read

    def denied(self: Root, name: str, limit: int = 1 << 16) -> str | None:
        return None if name == COUNTER else read(self, name, limit)

    monkeypatch.setattr(Root, "read", denied)
    with pytest.raises(AbsentError) as absent:
        tokens_per_joule(no_run, root)
    assert str(absent.value) == (
        f"only root may read the energy counters; allow it: sudo chmod a+r /{COUNTER}"
    )


class Engine:
    """An engine that takes 20 J to load and, in each pair of runs, the next of ``per_token``. Its
    two packages share the energy."""

    def __init__(self, machine: Machine, *per_token: float, span: int | None = SPAN) -> None:
        self.machine, self.span = machine, span
        self.per_token = list(per_token)
        self.asked: list[int] = []
        self.total = SPAN - 50_000_000
        self._show()

    def _show(self) -> None:
        self.machine.rapl("intel-rapl:0", self.total % SPAN, self.span)
        self.machine.rapl("intel-rapl:1", self.total % SPAN, self.span, "package-1")

    def run(self, tokens: int) -> None:
        self.asked.append(tokens)
        self.total += round(5e5 * (20 + tokens * self.per_token[(len(self.asked) - 1) // 2]))
        self._show()


def test_loading_cancels_out_and_counters_wrap_around(machine: Machine, root: Root) -> None:
    engine = Engine(machine, 0.5, 0.25, 1.0)
    energy = tokens_per_joule(engine.run, root)
    assert engine.asked == [SHORT, LONG] * 3
    assert energy.samples == pytest.approx((2.0, 4.0, 1.0))
    assert energy.median == pytest.approx(2.0)
    assert energy.tokens == LONG - SHORT
    assert energy.words.startswith("2 tokens per joule (1–4); energy of the whole processor")


def test_other_load_may_hide_the_energy(machine: Machine, root: Root) -> None:
    with pytest.raises(AbsentError, match="could not be told from"):
        tokens_per_joule(Engine(machine, 0.5, -0.25, 1.0).run, root)


def test_a_failed_run_is_the_reason(machine: Machine, root: Root) -> None:
    machine.rapl("intel-rapl:0", 1, SPAN)

    def fails(_: int) -> None:
        raise TuningError("the engine crashed", "rebuild it")

    with pytest.raises(AbsentError, match="energy could not be measured: the engine crashed"):
        tokens_per_joule(fails, root)


@pytest.mark.parametrize("span", [None, 5])
def test_a_counter_that_wraps_around_at_an_unknown_value_tells_nothing(
    machine: Machine, root: Root, span: int | None
) -> None:
    with pytest.raises(AbsentError, match="can no longer be read"):
        tokens_per_joule(Engine(machine, 2.0, 2.0, 2.0, span=span).run, root)


@pytest.mark.parametrize("content", ["", "x", "-5"])
def test_counters_that_vanish_meanwhile(machine: Machine, root: Root, content: str) -> None:
    machine.rapl("intel-rapl:0", 1, SPAN)

    def vanish(_: int) -> None:
        machine.write(COUNTER, content)

    with pytest.raises(AbsentError, match="can no longer be read"):
        tokens_per_joule(vanish, root)
