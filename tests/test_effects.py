"""What took effect, from what was planned and what was seen."""

from __future__ import annotations

import pytest

from bitnet_tuning.machine.limits import LockLimit
from bitnet_tuning.machine.process import Received
from bitnet_tuning.plan.facts import Plan
from bitnet_tuning.verify.effects import (
    Aim,
    Effect,
    Seen,
    asks_huge,
    asks_nodes,
    best,
    effects_of,
    missed,
    table,
)

MIB = 1 << 20
SIZE = 1000 * MIB
ENV = {"OMP_NUM_THREADS": "4", "KMP_BLOCKTIME": "200"}

PLAN = Plan(
    command=("llama-cli",),
    env=ENV,
    cpus=frozenset(range(6)),
    threads=4,
    threads_batch=4,
    batch=None,
    ubatch=None,
    engine="llama-cli",
    model="model.gguf",
    reasons={},
    mlock=True,
    nice=-5,
)
SEEN = Received(
    process=100,
    cpus=(frozenset(range(6)),) * 4,
    niceness=(-5,) * 4,
    resident=1100 * MIB,
    locked=998 * MIB,
    huge=0,
    variables={**ENV, "HOME": "/root"},
    lock_limit=LockLimit(None),
    nodes={},
)
AIM = Aim(model_size=SIZE, niceness=0)


def effect(
    name: str,
    seen: Received = SEEN,
    plan: Plan = PLAN,
    aim: Aim = AIM,
    governor: str | None = None,
) -> Effect:
    (found,) = [it for it in effects_of(plan, aim, Seen(seen, governor, 2)) if it.name == name]
    return found


def test_all_that_was_planned_acted() -> None:
    effects = effects_of(PLAN, AIM, Seen(SEEN, "powersave"))
    assert missed(effects) == ()
    assert {it.name: it.acted for it in effects} == {
        **dict.fromkeys(("CPUs", "priority", "locked memory", "wait policy", "environment"), True),
        **dict.fromkeys(("huge pages", "memory nodes", "governor")),
    }


def test_nothing_was_planned() -> None:
    plain = PLAN._replace(env={}, cpus=None, mlock=False, nice=0)
    effects = effects_of(plain, AIM, Seen(SEEN, "powersave"))
    assert {(it.wanted, it.acted) for it in effects} == {(None, None)}
    assert all("  not asked  " in line for line in table(effects))


@pytest.mark.parametrize(
    ("masks", "acted", "seen"),
    [
        ([{0}, {1}, {2}, {3}], True, "0-3 (4 threads)"),  # bound by OpenMP
        ([{0, 1, 2, 3, 4, 5}, {6}], False, "0-6 (2 threads)"),
        ([set(range(12))], False, "0-11 (1 thread)"),
        ([], None, None),
    ],
)
def test_every_thread_is_to_stay_on_the_cpus_asked_for(
    masks: list[set[int]], acted: bool | None, seen: str | None
) -> None:
    received = SEEN._replace(cpus=tuple(map(frozenset, masks)))
    assert effect("CPUs", received) == Effect("CPUs", "0-5", seen, acted)


@pytest.mark.parametrize(
    ("niceness", "launcher", "acted", "wanted"),
    [
        ((-5, -5), 0, True, -5),
        ((-5, 0), 0, False, -5),
        ((0,), 0, False, -5),
        ((5,), 10, True, 5),
        ((10,), 10, False, 5),
        ((-20,), -18, True, -20),
        ((), 0, None, -5),
    ],
)
def test_priority_is_added_to_the_launchers(
    niceness: tuple[int, ...], launcher: int, acted: bool | None, wanted: int
) -> None:
    found = effect(
        "priority", SEEN._replace(niceness=niceness), aim=AIM._replace(niceness=launcher)
    )
    assert (found.acted, found.wanted) == (acted, f"niceness {wanted}")


@pytest.mark.parametrize(
    ("locked", "resident", "acted", "words"),
    [
        (SIZE, SIZE, True, "1000 MiB"),
        (905 * MIB, SIZE, True, "905 MiB"),
        (0, 1100 * MIB, False, "0 MiB, the limit is 8 MiB (ulimit -l)"),
        (8 * MIB, 1100 * MIB, False, "8 MiB, the limit is 8 MiB (ulimit -l)"),
        (0, 500 * MIB, None, "0 MiB, maybe before the model was loaded"),
        (0, None, None, "0 MiB, maybe before the model was loaded"),
        (None, 1100 * MIB, None, None),
    ],
)
def test_the_model_is_to_be_locked(
    locked: int | None, resident: int | None, acted: bool | None, words: str | None
) -> None:
    received = SEEN._replace(locked=locked, resident=resident, lock_limit=LockLimit(8 * MIB))
    assert effect("locked memory", received) == Effect("locked memory", "1000 MiB", words, acted)


def test_variables_that_did_not_arrive() -> None:
    lost = SEEN._replace(variables={"OMP_NUM_THREADS": "8"})
    assert effect("environment", lost) == Effect(
        "environment", "OMP_NUM_THREADS=4", "OMP_NUM_THREADS=8", False
    )
    assert effect("wait policy", lost) == Effect(
        "wait policy", "KMP_BLOCKTIME=200", "nothing set", False
    )
    hidden = SEEN._replace(variables=None)
    assert effect("environment", hidden).acted is None
    assert effect("wait policy", hidden).seen is None


def test_a_wait_policy_of_the_users_own_is_shown() -> None:
    own = SEEN._replace(variables={"OMP_WAIT_POLICY": "passive", "HOME": "/"})
    found = effect("wait policy", own, PLAN._replace(env={}))
    assert found == Effect("wait policy", None, "OMP_WAIT_POLICY=passive", None)


@pytest.mark.parametrize(
    ("huge", "resident", "acted"),
    [
        (4 * MIB, SIZE, True),
        (4 * MIB, MIB, True),
        (0, SIZE, False),
        (0, MIB, None),
        (None, SIZE, None),
    ],
)
def test_huge_pages_where_glibc_is_to_ask_for_them(
    huge: int | None, resident: int, acted: bool | None
) -> None:
    tunables = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    plan = PLAN._replace(env=tunables)
    received = SEEN._replace(huge=huge, resident=resident, variables=tunables)
    assert effect("huge pages", received, plan).acted is acted
    other = {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}
    assert effect("huge pages", received, PLAN._replace(env=other)).acted is None


@pytest.mark.parametrize(
    ("wanted", "seen", "acted"),
    [
        ("performance", "performance", True),
        ("performance", "powersave,performance", False),
        ("performance", None, None),
        (None, "powersave", None),
    ],
)
def test_governor(wanted: str | None, seen: str | None, acted: bool | None) -> None:
    found = effect("governor", aim=AIM._replace(governor=wanted), governor=seen)
    assert found == Effect("governor", wanted, seen, acted)


def test_pages_are_counted_only_where_that_is_asked_for() -> None:
    assert not asks_huge(PLAN) and not asks_nodes(PLAN)
    assert asks_huge(PLAN._replace(env={"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}))
    assert asks_nodes(PLAN._replace(numa="distribute"))


def test_where_memory_lies() -> None:
    received = SEEN._replace(nodes={1: 10 * MIB, 0: 990 * MIB})
    assert effect("memory nodes", received).seen == "node 0: 990 MiB, node 1: 10 MiB"


def test_lines_are_aligned_and_those_that_did_not_act_are_told() -> None:
    seen = SEEN._replace(niceness=(0,), variables=None)
    effects = effects_of(PLAN, AIM, Seen(seen, "powersave"))
    lines = table(effects)
    states = ("acted", "did not act", "not asked", "not seen")
    starts = {line.index(state) for line in lines for state in states if f"  {state}  " in line}
    assert len(starts) == 1
    assert "priority       did not act  wanted niceness -5, seen niceness 0" in lines
    assert "wait policy    not seen     wanted KMP_BLOCKTIME=200, seen nothing" in lines
    assert "governor       not asked    powersave" in lines
    assert missed(effects) == ("priority did not act: wanted niceness -5, seen niceness 0",)


# Of several looks


def test_what_comes_once_the_model_is_loaded_is_kept() -> None:
    early = SEEN._replace(locked=0, huge=0, resident=MIB, nodes={})
    late = SEEN._replace(huge=8 * MIB, nodes={0: MIB})
    for looks in ((early, late), (late, early)):
        seen = after(*looks).received
        assert seen[3:6] == (SEEN.resident, SEEN.locked, 8 * MIB)
        assert seen.nodes == {0: MIB}
    assert after(early._replace(locked=None), late).received.locked == SEEN.locked


def after(*looks: Received) -> Seen:
    seen = None
    for look in looks:
        seen = best(seen, look, "powersave")
    assert seen is not None
    return seen


def test_the_engine_counts_not_the_script_around_it() -> None:
    script = SEEN._replace(process=90, cpus=(frozenset(range(12)),), variables={}, locked=SIZE)
    assert after(script, SEEN) == Seen(SEEN, "powersave", 0)
    assert after(SEEN, script) == Seen(SEEN, "powersave", 0)


def test_of_looks_alike_the_later_one_counts() -> None:
    """A script may become the engine by exec."""
    before = SEEN._replace(variables={}, niceness=(0,) * 4)
    assert after(before, SEEN).received == SEEN


def test_threads_that_have_ended_by_the_last_look_are_not_forgotten() -> None:
    last = SEEN._replace(cpus=(frozenset((9,)),), locked=0)
    assert after(SEEN, last).received == SEEN


def test_a_model_counts_as_loaded_once_memory_no_longer_grows() -> None:
    def sizes(*mebibytes: int) -> Seen:
        return after(*(SEEN._replace(resident=size * MIB) for size in mebibytes))

    assert sizes(10, 500, 1100, 1101, 1102).loaded(SIZE)
    assert not sizes(1100, 1100).loaded(SIZE), "that may be chance"
    assert not sizes(10, 500, 900, 1000, 1200).loaded(SIZE)
    assert not sizes(500, 500, 500).loaded(SIZE)
    assert not after(*(SEEN._replace(resident=None) for _ in range(4))).loaded(SIZE)
    effects = effects_of(PLAN, AIM, sizes(10, 1100, 1100)._replace(steady=1))
    assert missed(effects) == ()
