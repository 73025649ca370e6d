"""How the model is loaded: mapped, copied, in huge pages, locked, and what prevents it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.machine.detect import Privileges
from bitnet_tuning.machine.memory import HugePages, read_huge_pages
from bitnet_tuning.machine.root import Root
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.memory import need_of
from bitnet_tuning.plan.plan import make_plan
from tests.profile_samples import ENGINE, GIBIBYTE, MODEL
from tests.test_plan import a_host

SMALL = MODEL._replace(heads=20, kv_width=1280)
GIVEN = HugePages("madvise", (2, 36))
ANY = Privileges(0, None)
MAINLINE = ENGINE._replace(flags=frozenset({"-tb", "--load-mode"}))


def plan(
    memory: str = "auto",
    *,
    available: int | None = 8 * GIBIBYTE,
    engine: Engine = ENGINE,
    huge: HugePages | None = GIVEN,
    privileges: Privileges = ANY,
    environ: dict[str, str] | None = None,
    performance: bool = False,
) -> Plan:
    facts = Facts(a_host(4, available=available), engine, SMALL, "named", environ or {})
    request = Request(prompt="a" * 1000, memory=memory, performance=performance)
    return make_plan(request, facts._replace(huge=huge, privileges=privileges))


def loads(made: Plan) -> tuple[bool, bool, bool]:
    """Return whether the model is copied, in huge pages, and locked."""
    flags = ("--no-mmap" in made.command, "--mlock" in made.command)
    assert flags == (made.setting.mmap is False, made.setting.mlock)
    huge = made.setting.variables.get("GLIBC_TUNABLES") == "glibc.malloc.hugetlb=1"
    return flags[0], huge, flags[1]


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("auto", (False, False, False)),
        ("mmap", (False, False, False)),
        ("copy", (True, False, False)),
        ("huge", (True, True, False)),
        ("locked", (False, False, True)),
    ],
)
def test_each_way_reaches_the_engine(memory: str, expected: tuple[bool, ...]) -> None:
    made = plan(memory)
    assert loads(made) == expected
    assert made.warnings == ()


@pytest.mark.parametrize(
    ("memory", "how"),
    [
        ("auto", "mapped (mmap) and shares its memory with the page cache"),
        ("copy", "copied into memory"),
        ("huge", "copied into huge pages of memory"),
        (
            "locked",
            "mapped (mmap) and shares its memory with the page cache, and locked, so that all of "
            "it stays there",
        ),
    ],
)
def test_the_reason_says_how_the_model_is_loaded_and_the_sum(memory: str, how: str) -> None:
    total = "model 1.0 GiB + KV cache 150 MiB + buffers 256 MiB = 1.4 GiB; available: 8.0 GiB"
    assert plan(memory).reasons["memory"] == f"the model is {how}; {total}"


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("auto", (False, False, True)),
        ("copy", (True, False, True)),
        ("huge", (True, True, True)),
        ("mmap", (False, False, False)),
    ],
)
def test_performance_mode_locks_the_model_unless_asked_for_mmap(
    memory: str, expected: tuple[bool, ...]
) -> None:
    assert loads(plan(memory, performance=True)) == expected


@pytest.mark.parametrize("memory", ["copy", "huge", "locked"])
def test_nothing_is_chosen_that_could_get_the_process_killed(memory: str) -> None:
    need = need_of(SMALL, 2048, None).total
    assert any(loads(plan(memory, available=int(need / 0.8) + 1)))
    for available in (int(need / 0.8) - 1, 0, None):
        made = plan(memory, available=available)
        assert loads(made) == (False, False, False)
        assert any("too little" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("huge", "environ", "word"),
    [
        (HugePages("never", (2, 36)), {}, "transparent_hugepage"),
        (HugePages("auto", (2, 36)), {}, "transparent_hugepage"),
        (HugePages("always", (2, 34)), {}, "they need glibc 2.35 or later, this system has 2.34"),
        (HugePages("always", None), {}, "glibc"),
        (None, {}, "glibc"),
        (GIVEN, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=1"}, "you set GLIBC_TUNABLES"),
    ],
)
def test_huge_pages_need_kernel_and_library(
    huge: HugePages | None, environ: dict[str, str], word: str
) -> None:
    made = plan("huge", huge=huge, environ=environ)
    assert loads(made) == (False, False, False)
    assert "GLIBC_TUNABLES" not in made.setting.variables
    (warning,) = made.warnings
    assert word in warning


def test_a_model_above_the_limit_is_not_locked() -> None:
    assert plan("locked", privileges=Privileges(0, GIBIBYTE)).setting.mlock
    made = plan("locked", privileges=Privileges(0, GIBIBYTE // 2))
    assert not made.setting.mlock
    assert made.warnings == (
        "the model is not locked in memory: it takes 1.0 GiB, the limit (ulimit -l) is 512 MiB",
    )
    assert "locked" not in made.reasons["memory"]


def test_current_engines_have_one_flag_for_loading() -> None:
    def mode(memory: str) -> str:
        command = plan(memory, engine=MAINLINE).command
        return command[command.index("--load-mode") + 1]

    assert [mode(memory) for memory in ("copy", "huge", "locked")] == ["none", "none", "mmap+mlock"]
    assert "--load-mode" not in plan("mmap", engine=MAINLINE).command


def test_an_engine_without_flags_for_loading_is_warned_about() -> None:
    bare = ENGINE._replace(flags=frozenset({"-tb"}))
    for memory in ("copy", "huge", "locked"):
        made = plan(memory, engine=bare)
        assert loads(made) == (False, False, False)
        assert "this engine cannot" in made.warnings[0]


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("glibc 2.36", (2, 36)),
        ("glibc 2.35.9000", (2, 35)),
        ("musl 1.2", None),
        ("glibc", None),
        ("", None),
        ("glibc x.y", None),
    ],
)
def test_the_version_of_the_c_library_is_read(
    text: str, version: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "confstr", lambda _: text)
    assert read_huge_pages(Root(str(tmp_path))).glibc == version


def test_an_empty_variable_does_not_prevent_huge_pages() -> None:
    assert loads(plan("huge", environ={"GLIBC_TUNABLES": ""})) == (True, True, False)


def test_unknown_privileges_lock_nothing() -> None:
    facts = Facts(a_host(4), ENGINE, SMALL, "named", {})
    assert not make_plan(Request(prompt="hello", memory="locked"), facts).setting.mlock
