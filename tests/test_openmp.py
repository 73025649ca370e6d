"""Variables for each OpenMP runtime, and those of the user and of bitnet-env.sh."""

from __future__ import annotations

import pytest

from bitnet_tuning.engine.find import GOMP, LLVM, MSVC, NONE
from bitnet_tuning.plan.openmp import (
    BINDING,
    BLOCKTIME_MS,
    MARK,
    THREAD_COUNTS,
    choose_variables,
    exported,
    shell_exports,
    unbindable,
    user_binding,
    user_set,
    user_threads,
)

COUNTS = dict.fromkeys(THREAD_COUNTS, "4")
EXPORTED = {**dict.fromkeys(THREAD_COUNTS, "6"), **BINDING}
"""Variables that bitnet-env.sh exported with BITNET_ENV_BIND=1 on six cores."""


def choose(
    runtime: str | None,
    environ: dict[str, str] | None = None,
    *,
    quota_binds: bool = False,
) -> tuple[dict[str, str], str]:
    return choose_variables(runtime, 4, quota_binds, environ or {})


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (GOMP, {**COUNTS, **BINDING}),
        (LLVM, {**COUNTS, **BINDING, "KMP_BLOCKTIME": BLOCKTIME_MS}),
        (MSVC, COUNTS),
        (None, {**COUNTS, **BINDING}),
        (NONE, {}),
    ],
)
def test_each_runtime_gets_the_variables_that_it_reads(
    runtime: str | None, expected: dict[str, str]
) -> None:
    assert choose(runtime)[0] == expected
    # Spinning threads use up the quota that working ones need.
    without = {name: text for name, text in expected.items() if name != "KMP_BLOCKTIME"}
    assert choose(runtime, quota_binds=True)[0] == without


@pytest.mark.parametrize(
    ("runtime", "systems"),
    [(LLVM, {"linux", "win32"}), (GOMP, {"linux"}), (None, {"linux"}), (NONE, {"linux"})],
)
def test_a_runtime_binds_threads_on_some_systems_only(
    runtime: str | None, systems: set[str]
) -> None:
    every = ("linux", "win32", "darwin", "freebsd14")
    assert {system for system in every if unbindable(runtime, system) is None} == systems
    if runtime != NONE:
        unbound = unbindable(runtime, "darwin")
        variables, reason = choose_variables(runtime, 4, False, {}, unbound=unbound)
        assert not BINDING.keys() & variables.keys()
        assert "threads are not bound: " in reason
        assert "on this system" in reason


def test_the_reason_says_how_threads_wait() -> None:
    runtime = "the engine's OpenMP runtime, libomp, reads these variables; "
    assert choose(LLVM)[1] == (
        f"{runtime}KMP_BLOCKTIME is how many ms waiting threads spin before they sleep"
    )
    assert choose(LLVM, quota_binds=True)[1] == (
        f"{runtime}KMP_BLOCKTIME is not set: spinning threads would use up the CPU quota"
    )


@pytest.mark.parametrize(("runtime", "words"), [(None, "is unknown"), (NONE, "without OpenMP")])
def test_the_reason_says_why_few_variables_are_set(runtime: str | None, words: str) -> None:
    assert words in choose(runtime)[1]


def test_without_openmp_no_variables_are_set() -> None:
    assert choose(NONE)[0] == {}


@pytest.mark.parametrize("runtime", [GOMP, LLVM, MSVC, NONE, None])
@pytest.mark.parametrize(
    "name",
    [
        *THREAD_COUNTS,
        *BINDING,
        "KMP_BLOCKTIME",
        "KMP_AFFINITY",
        "GOMP_CPU_AFFINITY",
        "GOMP_SPINCOUNT",
    ],
)
def test_what_the_user_set_is_never_overwritten(runtime: str | None, name: str) -> None:
    chosen, reason = choose(runtime, {name: "7"})
    assert name not in chosen
    if name in choose(runtime)[0]:
        others = set(choose(runtime)[0]) - {name}
        if name not in BINDING:
            assert set(chosen) == others
            assert name in reason


@pytest.mark.parametrize(
    "name",
    ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET"],
)
@pytest.mark.parametrize("runtime", [GOMP, LLVM])
def test_a_binding_by_the_user_is_the_whole_binding(runtime: str, name: str) -> None:
    chosen = choose(runtime, {name: "0-3"})[0]
    assert not set(BINDING) & set(chosen)
    assert chosen["OMP_NUM_THREADS"] == "4"
    assert f"threads are bound as you set it: {name}" in choose(runtime, {name: "0-3"})[1]
    assert user_binding({name: "0-3"}) == name


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "KMP_LIBRARY"])
def test_how_the_user_lets_threads_wait_is_left_alone(name: str) -> None:
    """KMP_BLOCKTIME would take precedence over these variables."""
    chosen, reason = choose(LLVM, {name: "passive"})
    assert "KMP_BLOCKTIME" not in chosen
    assert f"threads wait as you set it: {name}" in reason


def test_a_value_equal_to_ours_needs_no_mention() -> None:
    chosen, reason = choose(GOMP, {"OMP_NUM_THREADS": "4"})
    assert "OMP_NUM_THREADS" not in chosen
    assert "OMP_NUM_THREADS" not in reason


# bitnet-env.sh


def test_exported_variables_are_not_the_users() -> None:
    assert exported(EXPORTED) == EXPORTED.keys()
    assert not any(user_set(EXPORTED, name) for name in EXPORTED)
    assert user_threads(EXPORTED) is None
    assert not user_binding(EXPORTED)
    assert choose(GOMP, EXPORTED)[0] == {**COUNTS, **BINDING}


@pytest.mark.parametrize(
    "change",
    [
        {"OMP_NUM_THREADS": "3"},
        {"OMP_PROC_BIND": "close"},
        {"OMP_PLACES": "threads"},
        *({name: None} for name in EXPORTED),
    ],
)
def test_a_change_makes_the_exported_variables_the_users(change: dict[str, str | None]) -> None:
    environ = {**EXPORTED, **change}
    left = {name: value for name, value in environ.items() if value is not None}
    assert not exported(left)
    assert all(user_set(left, name) for name in left)
    assert not set(choose(GOMP, left)[0]) & set(left)


@pytest.mark.parametrize("name", ["MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_a_count_for_one_library_leaves_the_others_exported(name: str) -> None:
    environ = {**EXPORTED, name: "1"}
    assert exported(environ) == EXPORTED.keys() - {name}
    assert user_threads(environ) is None
    others = {**COUNTS, **BINDING}
    del others[name]
    assert choose(GOMP, environ)[0] == others


WAITING = {"KMP_BLOCKTIME": BLOCKTIME_MS}


def test_an_exported_blocktime_is_not_the_users() -> None:
    environ = {**EXPORTED, **WAITING}
    assert exported(environ) == environ.keys()
    assert choose(LLVM, environ) == choose(LLVM)
    assert "you set" not in choose(LLVM, environ, quota_binds=True)[1]


@pytest.mark.parametrize(
    ("own", "exports"),
    [
        ({"OMP_PROC_BIND": "close"}, {**dict.fromkeys(THREAD_COUNTS, "6"), **WAITING}),
        ({"GOMP_CPU_AFFINITY": "0-3"}, {**dict.fromkeys(THREAD_COUNTS, "6"), **WAITING}),
        ({"OMP_NUM_THREADS": "6"}, {**BINDING, **WAITING}),
        ({"OMP_NUM_THREADS": "6", "MKL_NUM_THREADS": "6"}, {**BINDING, **WAITING}),
        ({"KMP_BLOCKTIME": "0"}, EXPORTED),
        ({"OMP_WAIT_POLICY": "passive"}, EXPORTED),
    ],
)
def test_two_exported_groups_are_recognised(own: dict[str, str], exports: dict[str, str]) -> None:
    """The user's own variable keeps bitnet-env.sh from exporting its group, not the others."""
    environ = {**own, **exports}
    assert exported(environ) == exports.keys()
    assert all(user_set(environ, name) for name in own)
    assert choose(LLVM, environ) == choose(LLVM, own)


@pytest.mark.parametrize(
    "own",
    [
        {},
        dict.fromkeys(THREAD_COUNTS, "6"),
        dict.fromkeys(THREAD_COUNTS, ""),
        BINDING,
        WAITING,
        {**dict.fromkeys(THREAD_COUNTS, ""), **BINDING},
        {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "4", "OPENBLAS_NUM_THREADS": "4", **BINDING},
    ],
)
def test_one_group_alone_is_the_users(own: dict[str, str]) -> None:
    assert exported(own) == frozenset()
    assert all(user_set(own, name) == bool(value) for name, value in own.items())


def test_marked_counts_are_not_the_users() -> None:
    """Under a CPU quota bitnet-env.sh exports only counts, and marks them."""
    marked = {**dict.fromkeys(THREAD_COUNTS, "6"), MARK: "6"}
    assert exported(marked) == marked.keys()
    assert user_threads(marked) is None
    assert shell_exports(marked, 2, True) == {**dict.fromkeys(THREAD_COUNTS, "2"), MARK: "2"}
    for change in ({"OMP_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": ""}, {MARK: "5"}):
        assert not exported({**marked, **change})
    job = {**dict.fromkeys(THREAD_COUNTS, "1"), MARK: "6"}
    assert user_threads(job) == 1


def test_other_variables_beside_exported_ones_are_the_users() -> None:
    environ = {**EXPORTED, "KMP_BLOCKTIME": "0", "GOMP_CPU_AFFINITY": "0-3"}
    assert user_set(environ, "KMP_BLOCKTIME")
    assert user_binding(environ)
    chosen = choose(LLVM, environ)[0]
    assert "KMP_BLOCKTIME" not in chosen
    assert chosen["OMP_NUM_THREADS"] == "4"


# OMP_NUM_THREADS


@pytest.mark.parametrize(
    ("text", "threads"),
    [
        ("6", 6),
        (" 6 ", 6),
        ("6,2", 6),
        *((text, None) for text in ("", "0", "-4", "many", "9" * 5000)),
    ],
)
def test_the_users_thread_count_must_be_positive(text: str, threads: int | None) -> None:
    assert user_threads({"OMP_NUM_THREADS": text}) == threads
    assert user_threads({}) is None


# Exports to a shell


@pytest.mark.parametrize(
    ("own", "quota_binds", "expected"),
    [
        ({}, False, {**COUNTS, **WAITING}),
        ({}, True, {**COUNTS, MARK: "4"}),
        ({"BITNET_ENV_BIND": "1"}, True, {**COUNTS, **BINDING}),
        ({"BITNET_ENV_BIND": "0"}, False, {**COUNTS, **WAITING}),
        ({"OMP_NUM_THREADS": "3"}, False, {}),
        (dict.fromkeys(THREAD_COUNTS, "6"), False, {}),
        (BINDING, False, {}),
        (WAITING, True, {}),
    ],
)
def test_a_shell_gets_only_variables_that_are_recognised_afterwards(
    own: dict[str, str], quota_binds: bool, expected: dict[str, str]
) -> None:
    given = shell_exports(own, 4, quota_binds)
    assert given == expected
    assert exported({**own, **given}) == given.keys()
