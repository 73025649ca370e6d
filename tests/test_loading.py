"""Mapped, copied, in huge pages, locked: when each is chosen, and when memory forbids it."""

from __future__ import annotations

import pytest

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.machine.detect import Privileges
from bitnet_tuning.machine.memory import HugePages, parse_glibc
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
    """Copied, in huge pages, locked: as the command and the environment have it."""
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


@pytest.mark.parametrize("memory", ["auto", "mmap", "copy", "huge", "locked"])
def test_the_sum_is_in_the_reasons(memory: str) -> None:
    assert (
        "model 1024 + cache 150 + buffers 256 = 1430 MiB; available: 8192 MiB"
        in (plan(memory).reasons["memory"])
    )


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ("auto", (False, False, True)),
        ("copy", (True, False, True)),
        ("huge", (True, True, True)),
        ("mmap", (False, False, False)),
    ],
)
def test_performance_mode_locks_what_is_there(memory: str, expected: tuple[bool, ...]) -> None:
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
        (HugePages("always", (2, 34)), {}, "glibc is 2.34, the first that asks for them is 2.35"),
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


def test_the_limit_of_locked_memory_counts() -> None:
    assert plan("locked", privileges=Privileges(0, GIBIBYTE)).setting.mlock
    made = plan("locked", privileges=Privileges(0, GIBIBYTE - 1))
    assert not made.setting.mlock
    assert "the limit is 1023 MiB (ulimit -l), the model has 1024" in made.warnings[0]
    assert "unlocked" in made.reasons["memory"]


def test_current_engines_have_one_flag_for_it() -> None:
    def mode(memory: str) -> str:
        command = plan(memory, engine=MAINLINE).command
        return command[command.index("--load-mode") + 1]

    assert [mode(memory) for memory in ("copy", "huge", "locked")] == ["none", "none", "mmap+mlock"]
    assert "--load-mode" not in plan("mmap", engine=MAINLINE).command


def test_an_engine_without_the_flags_is_left_alone() -> None:
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
def test_the_c_librarys_version(text: str, version: tuple[int, int] | None) -> None:
    assert parse_glibc(text) == version


def test_an_empty_variable_keeps_nobody_from_huge_pages() -> None:
    assert loads(plan("huge", environ={"GLIBC_TUNABLES": ""})) == (True, True, False)


def test_without_known_privileges_nothing_is_locked_and_no_priority_raised() -> None:
    facts = Facts(a_host(4), ENGINE, SMALL, "named", {})
    made = make_plan(Request(prompt="hello", memory="locked", performance=True), facts)
    assert (made.setting.mlock, made.setting.nice) == (False, 0)
