"""Batch sizes for the length of a prompt and the available memory."""

from __future__ import annotations

import pytest

from bitnet_tuning.console import size_text
from bitnet_tuning.engine.find import Engine
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.memory import choose_batch, with_setting
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
    """Return the plan's batch sizes for a prompt file of ``size`` bytes."""
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
    """A text has at most as many tokens as bytes, apart from a few special ones."""
    batch = chosen(size)
    assert (batch.batch, batch.setting.ubatch) == (ubatch, ubatch)
    assert batch.warnings == ()


def test_the_reason_says_what_decided() -> None:
    default = "the engine's default: "
    for size, reason in (
        (
            1,
            "64: holds the whole prompt of 1 byte (about 1 token), and saves 224 MiB of buffers",
        ),
        (4000, f"{default}a prompt of about 1000 tokens needs buffers of the usual size"),
        (None, f"{default}the prompt's length is unknown before the start"),
    ):
        made = chosen(size)
        assert made.reasons["ubatch"] == made.reasons["batch"] == reason


@pytest.mark.parametrize(
    ("request_", "batch", "ubatch"),
    [(Request(batch=32), 32, None), (Request(ubatch=32), None, 32), (Request(ubatch=9), None, 9)],
)
def test_sizes_that_the_user_set_stay(
    request_: Request, batch: int | None, ubatch: int | None
) -> None:
    made = chosen(5, request_)
    assert (made.batch, made.setting.ubatch) == (batch, ubatch)


def test_an_engine_without_the_flag_is_not_given_it() -> None:
    made = chosen(5, engine=ENGINE._replace(flags=ENGINE.flags - {"-ub"}))
    assert (made.batch, made.setting.ubatch) == (None, None)
    assert made.reasons["ubatch"] == "the engine's default: it has no flag -ub"


@pytest.mark.parametrize(
    ("available", "ubatch"), [(1024, None), (440, 256), (300, 128), (220, 64), (10, 64)]
)
def test_too_little_memory_makes_the_micro_batch_smaller(
    available: int, ubatch: int | None
) -> None:
    """150 MiB of cache and 255 MiB of buffers for 512 tokens; mapped pages do not count."""
    made = chosen(4000, Request(ctx_size=2048), available * MEBIBYTE)
    assert made.setting.ubatch == ubatch
    if ubatch is None:
        assert made.warnings == ()
    else:
        reason, warning = made.reasons["ubatch"], f"micro-batch 512, using {ubatch}: long prompts"
        assert "cache 150" in reason and f"available: {size_text(available << 20)}" in reason
        assert warning in made.warnings[0]


def test_unknown_memory_changes_nothing() -> None:
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


def test_a_prompt_file_takes_precedence_over_a_prompt() -> None:
    request = Request(prompt="hello", prompt_file="f")
    assert request.prompt_bytes(300) == 300
    assert request._replace(prompt_file=None).prompt_bytes(None) == 5
