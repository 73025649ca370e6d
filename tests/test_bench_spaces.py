"""The space of a search in a file of results."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from bitnet_tuning.bench.knobs import Knob, Space
from bitnet_tuning.plan.setting import UPSTREAM, Change, Setting
from bitnet_tuning.store.codec import from_json, to_json

SPACE = Space(
    Setting(6, 8, (("OMP_NUM_THREADS", "6"),), frozenset((0, 1, 2, 3))),
    (("upstream", UPSTREAM),),
    (Change("2 threads", (("threads", 2),)), Change("8 threads", (("threads", 8), ("cpus", None)))),
    (
        Knob("mmap", (Change("no mmap", (("mmap", False),)),)),
        Knob("affinity", (Change("fast cores", (("cpus", frozenset((0, 2, 3))),)),)),
        Knob("binding", (Change("not bound", unset_env=("OMP_PLACES",)),)),
        Knob("waiting", (Change("spin", set_env=(("KMP_BLOCKTIME", "infinite"),)),)),
    ),
)


def test_a_space_is_read_as_it_was_written() -> None:
    text = json.dumps(to_json(SPACE), allow_nan=False)
    assert from_json(Space, json.loads(text)) == SPACE


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("default", "threads"), 0),
        (("default",), None),
        (("fixed",), []),
        (("fixed", "upstream", "env"), 3),
        (("fixed", "upstream", "env"), {"LD_PRELOAD": "/tmp/x.so"}),
        (("threads",), {}),
        (("threads", 0, "fields", "threads"), "2"),
        (("threads", 0, "fields", "colour"), 2),
        (("threads", 0, "name"), 7),
        (("threads", 0, "set_env"), {"A": 1}),
        (("threads", 0, "unset_env"), [1]),
        (("threads", 1, "fields", "cpus"), "0-"),
        (("knobs", "mmap"), "no"),
        (("extra",), 1),
        (("threads", 0, "set_env"), {"LD_PRELOAD": "/tmp/x.so"}),
        (("threads", 0, "unset_env"), ["PATH"]),
    ],
)
def test_a_damaged_space_is_refused(path: tuple[Any, ...], value: object) -> None:
    facts = copy.deepcopy(to_json(SPACE))
    at: Any = facts
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    with pytest.raises(ValueError):
        from_json(Space, json.loads(json.dumps(facts)))
