"""Results of a simulated benchmark, with realistic rounds from a fixed seed. Nothing is run."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from bitnet_tuning.bench import limits, statistics
from bitnet_tuning.bench.bandwidth import Bandwidth
from bitnet_tuning.bench.comparison import CheckFacts, Round, Rounds, Run, Sizes
from bitnet_tuning.bench.knobs import Assignment, Knob, Space
from bitnet_tuning.bench.results import (
    EngineFacts,
    Kept,
    ModelFacts,
    Part,
    Program,
    Results,
    Surroundings,
)
from bitnet_tuning.bench.search import Decision
from bitnet_tuning.engine.builds import FASTER
from bitnet_tuning.machine import conditions
from bitnet_tuning.machine.cgroups import Throttling
from bitnet_tuning.machine.host import HostFacts, NodeCpus
from bitnet_tuning.machine.load import Busy
from bitnet_tuning.machine.sensors import Clock, Temperature
from bitnet_tuning.machine.topology import Hybrid
from bitnet_tuning.plan.profile import PP, TG, Objective
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting, apply
from bitnet_tuning.store.state import FileIdentity

DEFAULT = Setting(6, 12, env=(("OMP_PLACES", "cores"), ("OMP_PROC_BIND", "close")))


def with_threads(count: int) -> Change:
    """Return a change to ``count`` threads, also for prompts."""
    plural = "" if count == 1 else "s"
    return Change(f"{count} thread{plural}", (("threads", count), ("threads_batch", count)))


SETTINGS: dict[str, Setting] = {
    "default": DEFAULT,
    "upstream": UPSTREAM,
    **{
        f"{count} thread{'' if count == 1 else 's'}": apply(with_threads(count), DEFAULT)
        for count in (1, 2, 4, 8, 12)
    },
}
SETTINGS["4 threads + no mmap"] = apply(
    Change("no mmap", (("mmap", False),)), SETTINGS["4 threads"]
)
SETTINGS["4 threads + flash attention"] = apply(
    Change("flash attention", (("flash", True),)), SETTINGS["4 threads"]
)

SPACE = Space(
    DEFAULT,
    (("upstream", UPSTREAM),),
    tuple(with_threads(count) for count in (1, 2, 4, 8, 12)),
    (
        Knob("mmap", (Change("no mmap", (("mmap", False),)),)),
        Knob("flash attention", (Change("flash attention", (("flash", True),)),)),
    ),
)

SPEEDS: dict[str, tuple[float, float]] = {
    "default": (160.0, 23.0),
    "upstream": (55.0, 17.0),
    "1 thread": (28.0, 9.5),
    "2 threads": (55.0, 17.0),
    "4 threads": (104.0, 26.0),
    "8 threads": (141.0, 20.0),
    "12 threads": (161.0, 14.0),
    "4 threads + no mmap": (95.0, 30.5),
    "4 threads + flash attention": (104.0, 26.0),
}
"""True speeds of prompt processing and token generation in tokens/s."""

HOST = HostFacts(
    brand="Example Core i5-1235U",
    logical_cpus=frozenset(range(12)),
    allowed_cpus=frozenset(range(12)),
    physical_cores=10,
    packages=1,
    numa_nodes=(NodeCpus(0, frozenset(range(12))),),
    hybrid=Hybrid(2, 8, frozenset(range(4)), frozenset(range(4, 12))),
    threads_per_core=2,
    cpu_quota=None,
    usable_cores=10,
    governor="powersave",
    wsl=None,
    memory_total=16 << 30,
    memory_available=11 << 30,
    isa=("avx", "avx2", "f16c", "fma"),
    vendor="GenuineIntel",
    topology_known=True,
)

ENGINE = EngineFacts(
    path="/home/ada/BitNet/build/bin/llama-cli",
    version="3960 (5eb47b72)",
    generation="classic",
    openmp="libomp",
    isa=("AVX2", "FMA"),
    files=(
        FileIdentity("/home/ada/BitNet/build/bin/llama-cli", 2_412_344, 1_760_000_000_123_456_789),
    ),
    bench=("/home/ada/BitNet/build/bin/llama-bench",),
    git_commit="01eb415772c342d9f20dc42772f1583ae1e5b102",
)

BYTES_PER_TOKEN = 827_000_000

BANDWIDTH: dict[str, Any] = {
    "median": 34.1e9,
    "threads": 4,
    "samples": [34.1e9, 31.0e9, 35.2e9],
    "reader_limits": False,
}

MODEL = ModelFacts(
    path="/home/ada/BitNet/models/BitNet-b1.58-2B-4T/ggml-model-i2_s.gguf",
    name="BitNet b1.58 2B 4T",
    architecture="bitnet-b1.58",
    quantization="i2_s",
    size=1_187_801_280,
    bytes_per_token=BYTES_PER_TOKEN,
)


SNAPSHOT = conditions.Conditions(
    time=1_770_000_000.0,
    online_cpus=4,
    other_load_cpus=0.5,
    busiest=(Busy("firefox", 0.4),),
    busy_cpu_seconds=None,
    steal_cpu_seconds=None,
    own_cpu_seconds=2.5,
    clock=Clock(3000.0, 2900.0, 3100.0, 3500.0, None),
    governor="powersave",
    frequency_driver="intel_pstate",
    temperature=Temperature(61.0, "x86_pkg_temp"),
    throttle_events=3,
    quota_throttling=(Throttling("sys/fs/cgroup", 10, 2, 0.5),),
    memory_total=16 << 30,
    memory_available=None,
    swap_used=None,
    swap_read_back=None,
    on_battery=False,
)


class Simulator:
    """A maker of rounds with log-normal noise and some outliers."""

    def __init__(self, seed: int = 1, spread: float = 0.08, samples: int = 2) -> None:
        self._random = random.Random(seed)
        self._spread, self._samples = spread, samples
        self.rounds: list[Round] = []
        self._elapsed = 6.0

    def run(self, name: str, speeds: tuple[float, float]) -> Run:
        mood = self._random.lognormvariate(0, self._spread)
        if self._random.random() < 0.02:
            mood *= 0.2
        samples = {
            phase: tuple(
                round(speed * mood * self._random.lognormvariate(0, self._spread / 4), 3)
                for _ in range(self._samples)
            )
            for phase, speed in zip((PP, TG), speeds, strict=True)
        }
        return Run(name, samples, round(1.4 + 0.2 * self._random.random(), 3))

    def add(
        self,
        stage: str,
        names: Sequence[str],
        speeds: Mapping[str, tuple[float, float]],
        problems: Mapping[str, str] | None = None,
    ) -> None:
        """Add a round that runs ``names`` in this order; ``problems`` says which fail, and why."""
        broken = problems or {}
        runs = tuple(
            Run(name, {}, 0.4, broken[name]) if name in broken else self.run(name, speeds[name])
            for name in names
        )
        self._elapsed += sum(run.seconds for run in runs)
        number = len(self.rounds) + 1
        self.rounds.append(Round(number, stage, runs, round(self._elapsed, 3)))


def simulated_rounds(
    seed: int = 1, speeds: Mapping[str, tuple[float, float]] = SPEEDS, spread: float = 0.08
) -> tuple[Round, ...]:
    """Return the rounds of a whole search: threads, knobs, and the duel."""
    made = Simulator(seed, spread)
    threads = ["default", "default", "upstream", "1 thread", "2 threads", "4 threads", "8 threads"]
    for shift in range(8):
        names = threads[shift % 7 :] + threads[: shift % 7]
        made.add("threads", names + (["12 threads"] if shift < 2 else []), speeds)
    knobs = ["4 threads", "4 threads + no mmap", "4 threads + flash attention", "default"]
    for shift in range(6):
        made.add("knobs", knobs[shift % 4 :] + knobs[: shift % 4], speeds)
    for number in range(16):
        order = ["default", "4 threads + no mmap", "4 threads + no mmap", "default"]
        if number % 2:
            order = ["4 threads + no mmap", "default", "default", "4 threads + no mmap"]
        made.add("duel", [*order, "upstream"], speeds)
    return tuple(made.rounds)


def sample_results(
    seed: int = 1, speeds: Mapping[str, tuple[float, float]] = SPEEDS, spread: float = 0.08
) -> Results:
    """Return a finished benchmark on a laptop, on which "4 threads + no mmap" wins."""
    rounds = simulated_rounds(seed, speeds, spread)
    objective = Objective(TG)
    duel = [each for each in rounds if each.stage == "duel"]
    found = statistics.estimate(Rounds(objective, duel).ratios("4 threads + no mmap"))
    verdict = statistics.verdict(found)
    winner = "4 threads + no mmap" if verdict == FASTER else "default"
    roof = limits.roof(Bandwidth(**BANDWIDTH), BYTES_PER_TOKEN, (30.5,))
    return Results(
        created="2026-01-31T20:15:00Z",
        updated="2026-01-31T20:19:41Z",
        state="finished",
        program=Program("bitnet-tuning", "0.2.0", "5eb47b721dc4d2b2b6bb2e0f4ef1f4a1e1b2c3d4"),
        options=Assignment(300.0, "normal", objective, None, None, Sizes(64, 16, 2)),
        host=HOST,
        engine=ENGINE,
        model=MODEL,
        space=SPACE,
        settings=SETTINGS,
        rounds=rounds,
        checks=(
            CheckFacts("4 threads", None, 8),
            CheckFacts("4 threads + no mmap", None, 14),
            CheckFacts("4 threads + flash attention", "writes other words than the default", 14),
        ),
        notes=("a run takes 1.5 s",),
        warnings=("other processes use 0.4 of 12 CPUs (firefox 0.3): close them or wait",),
        conditions=Surroundings(SNAPSHOT),
        bandwidth=Part(BANDWIDTH),
        roof=Part(roof._asdict()),
        energy=Part(reason="only root may read /sys/class/powercap/intel-rapl:0/energy_uj"),
        decision=Decision(
            winner,
            verdict,
            found,
            None,
            "Confirmed by more runs, in turns with the default.",
        ),
        profile=Kept(winner != "default", "a1b2c3d4" if winner != "default" else None, "stored"),
    )
