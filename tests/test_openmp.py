"""Which variables are set for which OpenMP runtime, and whose are kept."""

from __future__ import annotations

import pytest

from bitnet_tuning.engine.find import GOMP, LLVM, MSVC, NONE
from bitnet_tuning.plan.openmp import (
    BINDING,
    BLOCKTIME_MS,
    MARK,
    THREAD_COUNTS,
    binds_itself,
    choose_variables,
    exported,
    shell_exports,
    user_set,
    user_threads,
)

COUNTS = dict.fromkeys(THREAD_COUNTS, "4")
SOURCED = {**dict.fromkeys(THREAD_COUNTS, "6"), **BINDING}
"""What bitnet-env.sh leaves in an environment."""


def choose(
    runtime: str | None,
    environ: dict[str, str] | None = None,
    *,
    quota_binds: bool = False,
    blas: tuple[str, ...] = (),
) -> tuple[dict[str, str], str]:
    return choose_variables(runtime, blas, 4, quota_binds, environ or {})


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
def test_each_runtime(runtime: str | None, expected: dict[str, str]) -> None:
    assert choose(runtime)[0] == expected


@pytest.mark.parametrize("runtime", [GOMP, LLVM, MSVC, NONE, None])
def test_a_quota_forbids_spinning(runtime: str | None) -> None:
    """Spinning threads use up the quota that working ones need."""
    assert "KMP_BLOCKTIME" not in choose(runtime, quota_binds=True)[0]


def test_what_a_binding_quota_means_is_said() -> None:
    assert "left alone" in choose(LLVM, quota_binds=True)[1]
    assert "awake" in choose(LLVM)[1]


@pytest.mark.parametrize(
    ("blas", "names"),
    [
        ((), set()),
        (("mkl",), {"MKL_NUM_THREADS"}),
        (("openblas",), {"OPENBLAS_NUM_THREADS"}),
        (("mkl", "openblas"), {"MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"}),
        (("blis",), set()),
    ],
)
def test_without_openmp_only_a_library_is_told(blas: tuple[str, ...], names: set[str]) -> None:
    chosen = choose(NONE, blas=blas)[0]
    assert chosen == dict.fromkeys(names, "4")
    assert not any(name.startswith(("OMP_", "KMP_", "GOMP_")) for name in chosen)


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
def test_what_the_user_set_is_never_set_again(runtime: str | None, name: str) -> None:
    chosen, reason = choose(runtime, {name: "7"}, blas=("mkl", "openblas"))
    assert name not in chosen
    if name in choose(runtime, blas=("mkl", "openblas"))[0]:
        others = set(choose(runtime, blas=("mkl", "openblas"))[0]) - {name}
        if name not in BINDING:
            assert set(chosen) == others
            assert name in reason and "you set" in reason


@pytest.mark.parametrize(
    "name",
    ["OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_HW_SUBSET"],
)
@pytest.mark.parametrize("runtime", [GOMP, LLVM])
def test_a_binding_by_the_user_is_the_whole_binding(runtime: str, name: str) -> None:
    chosen = choose(runtime, {name: "0-3"})[0]
    assert not set(BINDING) & set(chosen)
    assert chosen["OMP_NUM_THREADS"] == "4"
    assert binds_itself({name: "0-3"})


@pytest.mark.parametrize("name", ["OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "OMP_PLACES"])
def test_a_binding_that_is_left_out_is_said(name: str) -> None:
    assert f"threads not bound: you set {name}" in choose(GOMP, {name: "false"})[1]


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "KMP_LIBRARY"])
def test_the_users_way_to_wait_is_not_outranked(name: str) -> None:
    """KMP_BLOCKTIME would be."""
    chosen, reason = choose(LLVM, {name: "passive"})
    assert "KMP_BLOCKTIME" not in chosen
    assert f"you set {name}" in reason


def test_a_value_equal_to_ours_needs_no_mention() -> None:
    chosen, reason = choose(LLVM, {"KMP_BLOCKTIME": BLOCKTIME_MS})
    assert "KMP_BLOCKTIME" not in chosen
    assert "as you set it" not in reason


# bitnet-env.sh


def test_what_was_sourced_is_not_the_users() -> None:
    assert exported(SOURCED) == SOURCED.keys()
    assert not any(user_set(SOURCED, name) for name in SOURCED)
    assert user_threads(SOURCED) is None
    assert not binds_itself(SOURCED)
    assert choose(GOMP, SOURCED)[0] == {**COUNTS, **BINDING}


@pytest.mark.parametrize(
    "change",
    [
        {"OMP_NUM_THREADS": "3"},
        {"OMP_PROC_BIND": "close"},
        {"OMP_PLACES": "threads"},
        *({name: None} for name in SOURCED),
    ],
)
def test_whoever_changes_a_part_of_it_owns_it(change: dict[str, str | None]) -> None:
    environ = {**SOURCED, **change}
    left = {name: value for name, value in environ.items() if value is not None}
    assert not exported(left)
    assert all(user_set(left, name) for name in left)
    assert not set(choose(GOMP, left)[0]) & set(left)


@pytest.mark.parametrize("name", ["MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_a_librarys_own_count_leaves_the_others_sourced(name: str) -> None:
    environ = {**SOURCED, name: "1"}
    assert exported(environ) == SOURCED.keys() - {name}
    assert user_threads(environ) is None
    others = {**COUNTS, **BINDING}
    del others[name]
    assert choose(GOMP, environ)[0] == others


WAITING = {"KMP_BLOCKTIME": BLOCKTIME_MS}


def test_sourced_waiting_is_not_the_users() -> None:
    environ = {**SOURCED, **WAITING}
    assert exported(environ) == environ.keys()
    assert choose(LLVM, environ) == choose(LLVM)
    assert "you set" not in choose(LLVM, environ, quota_binds=True)[1]


@pytest.mark.parametrize(
    ("own", "sourced"),
    [
        ({"OMP_PROC_BIND": "close"}, {**dict.fromkeys(THREAD_COUNTS, "6"), **WAITING}),
        ({"GOMP_CPU_AFFINITY": "0-3"}, {**dict.fromkeys(THREAD_COUNTS, "6"), **WAITING}),
        ({"OMP_NUM_THREADS": "6"}, {**BINDING, **WAITING}),
        ({"OMP_NUM_THREADS": "6", "MKL_NUM_THREADS": "6"}, {**BINDING, **WAITING}),
        ({"KMP_BLOCKTIME": "0"}, SOURCED),
        ({"OMP_WAIT_POLICY": "passive"}, SOURCED),
    ],
)
def test_two_groups_are_enough(own: dict[str, str], sourced: dict[str, str]) -> None:
    """What the user set of one keeps the file from exporting that group, not the others."""
    environ = {**own, **sourced}
    assert exported(environ) == sourced.keys()
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
def test_one_group_may_be_the_users_own(own: dict[str, str]) -> None:
    assert exported(own) == frozenset()
    assert all(user_set(own, name) == bool(value) for name, value in own.items())


def test_marked_counts_are_not_the_users() -> None:
    """Where a quota binds, nothing else is exported."""
    marked = {**dict.fromkeys(THREAD_COUNTS, "6"), MARK: "6"}
    assert exported(marked) == marked.keys()
    assert user_threads(marked) is None
    assert shell_exports(marked, 2, True) == {**dict.fromkeys(THREAD_COUNTS, "2"), MARK: "2"}
    for change in ({"OMP_NUM_THREADS": "1"}, {"OPENBLAS_NUM_THREADS": ""}, {MARK: "5"}):
        assert not exported({**marked, **change})
    job = {**dict.fromkeys(THREAD_COUNTS, "1"), MARK: "6"}
    assert user_threads(job) == 1


def test_other_variables_beside_what_was_sourced_are_the_users() -> None:
    environ = {**SOURCED, "KMP_BLOCKTIME": "0", "GOMP_CPU_AFFINITY": "0-3"}
    assert user_set(environ, "KMP_BLOCKTIME")
    assert binds_itself(environ)
    chosen = choose(LLVM, environ)[0]
    assert "KMP_BLOCKTIME" not in chosen
    assert chosen["OMP_NUM_THREADS"] == "4"


# OMP_NUM_THREADS


@pytest.mark.parametrize(
    ("text", "threads"),
    [("6", 6), (" 6 ", 6), ("6,2", 6), ("0", None), ("-1", None), ("", None), ("many", None)],
)
def test_the_users_threads(text: str, threads: int | None) -> None:
    assert user_threads({"OMP_NUM_THREADS": text}) == threads


def test_no_threads_of_the_users() -> None:
    assert user_threads({}) is None


@pytest.mark.parametrize("text", ["", "0", "-4", "many", "9" * 5000])
def test_a_senseless_thread_count_of_the_user_is_none(text: str) -> None:
    assert user_threads({"OMP_NUM_THREADS": text}) is None


# What a shell may be given


def test_a_count_equal_to_ours_needs_no_mention() -> None:
    assert choose(GOMP, {"OMP_NUM_THREADS": "4"})[1] == choose(GOMP)[1]


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
def test_a_shell_gets_only_what_is_told_from_the_users_own_afterwards(
    own: dict[str, str], quota_binds: bool, expected: dict[str, str]
) -> None:
    given = shell_exports(own, 4, quota_binds)
    assert given == expected
    assert exported({**own, **given}) == given.keys()
