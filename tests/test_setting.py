"""Settings: how they are changed, described, and stored in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_tuning.machine.root import format_list
from bitnet_tuning.plan.openmp import TUNABLE
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting, apply, describe
from bitnet_tuning.store.codec import DamagedError, from_json, to_json

COUNTED = (("MKL_NUM_THREADS", "4"), ("OMP_NUM_THREADS", "4"), ("OMP_PLACES", "cores"))
FOUR = Setting(4, 8, COUNTED)

texts = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=12)
any_settings = st.builds(
    Setting,
    threads=st.integers(1, 512),
    threads_batch=st.integers(1, 512),
    env=st.dictionaries(st.sampled_from(sorted(TUNABLE)), texts, max_size=4).map(
        lambda env: tuple(sorted(env.items()))
    ),
    cpus=st.none() | st.frozensets(st.integers(0, 300), min_size=1, max_size=20),
    mmap=st.none() | st.booleans(),
    flash=st.none() | st.booleans(),
    ubatch=st.none() | st.integers(1, 4096),
    poll=st.none() | st.integers(0, 100),
    numa=st.none() | st.sampled_from(("distribute", "isolate", "numactl")),
    mlock=st.booleans(),
    nice=st.integers(-20, 0),
    node=st.none() | st.sampled_from((0, 8, 1023)),
    interleave=st.none() | st.frozensets(st.integers(0, 8), min_size=1, max_size=4),
    embedding=st.none() | st.sampled_from(("f16", "q6_k")),
)


def test_thread_counts_in_the_environment_follow_the_threads() -> None:
    made = apply(Change("3 threads", (("threads", 3), ("threads_batch", 3))), FOUR)
    assert (made.threads, made.threads_batch) == (3, 3)
    assert dict(made.env) == {
        "MKL_NUM_THREADS": "3",
        "OMP_NUM_THREADS": "3",
        "OMP_PLACES": "cores",
    }


def test_a_change_sets_and_unsets_variables_and_fields() -> None:
    change = Change(
        "x", (("mmap", False),), (("A", "1"), ("OMP_NUM_THREADS", "9")), ("OMP_PLACES",)
    )
    made = apply(change, FOUR)
    assert made.mmap is False
    assert made.env == (("A", "1"), ("MKL_NUM_THREADS", "4"), ("OMP_NUM_THREADS", "4"))
    assert made._replace(mmap=None, env=COUNTED) == FOUR


def test_a_setting_without_thread_counts_gets_none() -> None:
    assert apply(Change("6", (("threads", 6), ("threads_batch", 6))), UPSTREAM) == Setting(6, 6)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (UPSTREAM, "2 threads"),
        (Setting(1, 1), "1 thread"),
        (FOUR, "4 threads, 8 for prompts, OMP_PLACES=cores"),
        (
            Setting(2, 2, (), frozenset((0, 1, 4)), mmap=False, flash=True, ubatch=64),
            "2 threads, on CPUs 0-1,4, no mmap, flash attention, micro-batch 64",
        ),
        (
            Setting(2, 2, mmap=True, flash=False, poll=0, numa="isolate", mlock=True, nice=-5),
            "2 threads, mmap, no flash attention, poll 0, numa isolate, model locked, niceness -5",
        ),
    ],
)
def test_a_setting_is_described(setting: Setting, words: str) -> None:
    assert describe(setting) == words


@given(any_settings)
@settings(max_examples=30, deadline=None, database=None)
def test_a_setting_comes_back_from_a_file(setting: Setting) -> None:
    assert from_json(Setting, json.loads(json.dumps(to_json(setting)))) == setting


def test_the_format_in_a_file() -> None:
    facts = to_json(FOUR._replace(cpus=frozenset((0, 1, 2, 8))))
    assert facts["env"] == dict(COUNTED)
    assert facts["cpus"] == format_list((0, 1, 2, 8)) == "0-2,8"
    assert set(facts) == set(Setting._fields)


def test_a_file_without_the_later_fields_is_read() -> None:
    facts = to_json(FOUR)
    del facts["node"], facts["interleave"], facts["embedding"]
    assert from_json(Setting, facts) == FOUR


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 0},
        {"threads": True},
        {"threads": "4"},
        {"threads_batch": 1.5},
        {"env": [["A", "1"]]},
        {"env": {"OMP_PLACES": 1}},
        {"env": {"LD_PRELOAD": "/tmp/x.so"}},
        {"cpus": [0, 1]},
        {"cpus": "0-"},
        {"mmap": 1},
        {"flash": "on"},
        {"ubatch": True},
        {"ubatch": 0},
        {"numa": 1},
        {"mlock": None},
        {"nice": None},
        {"nice": 20},
        {"nice": -21},
        {"node": "0"},
        {"node": True},
        {"node": 1024},
        {"interleave": [0, 1]},
        {"more": 1},
    ],
)
def test_an_invalid_field_is_refused_by_its_name(change: Mapping[str, Any]) -> None:
    with pytest.raises(DamagedError, match=f"^{next(iter(change))}[:.[]"):
        from_json(Setting, {**to_json(FOUR), **change})


@pytest.mark.parametrize("facts", [{}, [], None, {"threads": 2}])
def test_what_is_not_a_setting_is_refused(facts: Any) -> None:
    with pytest.raises(DamagedError, match=r"missing|not an object"):
        from_json(Setting, facts)
