"""Micro-batches from the prompt's length and from memory."""

from __future__ import annotations

import pytest

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.memory import choose_batch, estimate, with_setting
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.setting import UPSTREAM
from tests.profile_samples import ENGINE, GIBIBYTE, MODEL
from tests.test_plan import a_host

SMALL = MODEL._replace(heads=20, kv_width=1280)
MEBIBYTE = 1 << 20


def chosen(
    size: int | None,
    request: Request | None = None,
    available: int | None = GIBIBYTE,
    engine: Engine = ENGINE,
) -> Plan:
    """What is chosen for a prompt file of ``size`` bytes."""
    host = a_host(4, available=available)
    facts = Facts(host, engine, SMALL, "named", {}, prompt_file_bytes=size)
    request = (request or Request())._replace(prompt_file="f")
    return choose_batch(Plan(UPSTREAM, {}), request, facts)


@pytest.mark.parametrize(
    ("size", "ubatch"),
    [
        (1, 64),
        (56, 64),
        (57, 128),
        (120, 128),
        (121, 256),
        (248, 256),
        (249, None),
        (4000, None),
        (None, None),
    ],
)
def test_a_short_prompt_gets_buffers_that_hold_it_whole(size: int | None, ubatch: int) -> None:
    """No text has more tokens than bytes, but for a few special ones."""
    batch = chosen(size)
    assert (batch.batch, batch.setting.ubatch) == (ubatch, ubatch)
    assert batch.warnings == ()


def test_the_reason_says_what_it_saves() -> None:
    assert "of 1 byte (about 1 token) fits" in chosen(1).reasons["ubatch"]
    assert "about 12 tokens" in chosen(50).reasons["ubatch"]
    assert "223 MiB smaller" in chosen(50).reasons["batch"]
    assert "about 1000 tokens" in chosen(4000).reasons["batch"]
    assert "not known" in chosen(None).reasons["batch"]
    assert estimate(0) == 1


@pytest.mark.parametrize(
    ("request_", "batch", "ubatch"),
    [(Request(batch=32), 32, None), (Request(ubatch=32), None, 32), (Request(ubatch=9), None, 9)],
)
def test_what_was_asked_for_stays(request_: Request, batch: int | None, ubatch: int | None) -> None:
    made = chosen(5, request_)
    assert (made.batch, made.setting.ubatch) == (batch, ubatch)


def test_an_engine_without_the_flag_is_not_given_it() -> None:
    made = chosen(5, engine=ENGINE._replace(flags=ENGINE.flags - {"-ub"}))
    assert (made.batch, made.setting.ubatch) == (None, None)
    assert "no flag" in made.reasons["ubatch"]


@pytest.mark.parametrize(
    ("available", "ubatch"), [(1024, None), (440, 256), (300, 128), (220, 64), (10, 64)]
)
def test_want_of_memory_makes_long_prompts_smaller(available: int, ubatch: int | None) -> None:
    """150 MiB of cache and 255 of buffers for 512; the model's own pages give way."""
    made = chosen(4000, Request(ctx_size=2048), available * MEBIBYTE)
    assert made.setting.ubatch == ubatch
    assert len(made.warnings) == (ubatch is not None)
    if ubatch:
        assert (
            "cache 150" in made.reasons["ubatch"]
            and f"available: {available} MiB" in made.reasons["ubatch"]
        )


def test_memory_that_is_not_known_changes_nothing() -> None:
    assert chosen(4000, available=None).setting.ubatch is None


def test_a_large_micro_batch_needs_a_large_batch() -> None:
    plan = Plan(UPSTREAM, {})
    made = [
        with_setting(plan, UPSTREAM._replace(ubatch=size), Request()) for size in (None, 2048, 4096)
    ]
    assert [each.batch for each in made] == [None, None, 4096]


@pytest.mark.parametrize(
    ("request_", "size", "ubatch"),
    [
        (Request(prompt="hello"), None, 64),
        (Request(prompt="\N{SMILE}" * 20), None, 128),
        (Request(prompt="hello", chat=True), None, None),
        (Request(prompt_file="f"), 100, 128),
        (Request(prompt_file="/dev/stdin"), None, None),
        (Request(), None, None),
    ],
)
def test_a_plan_knows_the_length_of_a_prompt(
    request_: Request, size: int | None, ubatch: int | None
) -> None:
    facts = Facts(a_host(4), ENGINE, SMALL, "named", {}, prompt_file_bytes=size)
    plan = make_plan(request_, facts)
    assert plan.setting.ubatch == plan.batch == ubatch
    flags = [f"{flag} {ubatch}" for flag in ("-b", "-ub")] if ubatch else []
    words = " ".join(plan.command)
    assert all(flag in words for flag in flags)
    assert ("-ub" in plan.command) == bool(ubatch)


def test_a_setting_with_the_same_micro_batch_keeps_the_batch_of_the_plan() -> None:
    plan = chosen(5)
    assert with_setting(plan, plan.setting._replace(threads=1), Request()).batch == plan.batch == 64


def test_a_large_micro_batch_leaves_the_users_batch_as_it_is() -> None:
    made = with_setting(Plan(UPSTREAM, {}), UPSTREAM._replace(ubatch=4096), Request(batch=512))
    assert made.batch == 512


def test_a_prompt_file_outranks_a_prompt() -> None:
    request = Request(prompt="hello", prompt_file="f")
    assert request.prompt_bytes(300) == 300
    assert request._replace(prompt_file=None).prompt_bytes(None) == 5
