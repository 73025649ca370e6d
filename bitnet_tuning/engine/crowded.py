"""Find out whether a hypervisor runs all CPUs of this machine at once; known.py remembers it."""

from __future__ import annotations

import time
from collections.abc import Callable

from bitnet_tuning.console import say
from bitnet_tuning.engine.probe import parse_timings
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.machine.host import Crowding
from bitnet_tuning.machine.load import growth, own_cpu_seconds, read_cpu_times
from bitnet_tuning.machine.root import Root
from bitnet_tuning.store.state import moment

BATCH, BATCH_S = 32, 0.01
"""Most tokens of the prompt that are computed at a time, and seconds that they should take. With
single tokens of so small a model, a fast CPU would mostly wait for threads. In 10 ms it computes
about 0.2 ms between two waits, as in generating with a model of 2B parameters."""

SLOWER = 3.0
"""Factor by which the planned threads must be slower than one in all three rounds of a trial. With
two busy programs on two CPUs, two threads were up to 2.2 times slower (docs/measurements.md)."""

NOT_SLOWER = 0.8
"""Share of one thread's speed that more threads must reach to be used."""

BUSY = 0.25
"""CPUs that other programs may use on average during a trial that counts. Stolen time counts, too.
A program that shares a CPU with the engine uses about half of it."""

_FIRST_S, _SHORTEST_S = 30.0, 1.0
"""Time limits in seconds: of the first run, with one thread, and the shortest of later ones. These
may take ``SLOWER`` times as long as the first one took, with loading."""


def find_limit(planned: int, run: Callable[[int, int, float], Captured]) -> Crowding:
    """Compare the planned threads with one thread, in up to three rounds. If they are much slower
    in all of them, find how many are not by halving."""
    started, before = time.monotonic(), _others()
    limit, tokens, batch, ratios, most = _FIRST_S, 0, BATCH, list[float](), 0.0

    def rate(threads: int) -> float:
        """Return tokens/s, of a run that took too long the most that they can be; 0 if unknown."""
        nonlocal limit, tokens
        begun = time.monotonic()
        done = run(threads, batch, limit)
        prompt = parse_timings(done.stderr + done.stdout).prompt
        if not tokens and prompt:
            tokens, limit = prompt.tokens, max(_SHORTEST_S, SLOWER * (time.monotonic() - begun))
        return tokens / limit if done.code is None else (prompt and prompt.rate) or 0.0

    def outcome(threads: int, slowdown: float) -> Crowding:
        others = (growth(before, _others()) or 0.0) / (time.monotonic() - started)
        is_known = others <= BUSY or slowdown <= 1
        return Crowding(moment(), planned, threads if is_known else None, slowdown)

    batch = max(1, min(BATCH, int(rate(1) * BATCH_S)))
    is_timed, tokens, limit = tokens > 0, 0, _FIRST_S
    for order in ((1, planned), (planned, 1), (1, planned)):
        speeds = {threads: rate(threads) for threads in order if is_timed}
        if not speeds or not all(speeds.values()):
            return Crowding(moment(), planned, None)
        ratio = speeds[1] / speeds[planned]
        result = outcome(planned, ratio)
        if ratio < SLOWER or result.threads is None:
            return result
        if not ratios:
            say(f"finding out how many of {planned} threads this virtual machine runs at once")
        ratios.append(ratio)
        most = max(most, speeds[1])
    count = planned // 2
    while count > 1 and not any(rate(count) >= NOT_SLOWER * most for _ in range(2)):
        count //= 2
    return outcome(count, min(ratios))


def _others() -> float | None:
    """Return the seconds in which other programs used a CPU or the hypervisor withheld one."""
    times = read_cpu_times(Root())
    return times and times.busy + times.steal - own_cpu_seconds()
