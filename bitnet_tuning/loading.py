"""How the model gets into memory: mapped or copied, in huge pages, locked; pure.

A mapped model shares its pages with the page cache and gives them back under pressure. A copy
does not: where the sum leaves no room the kernel kills the engine, so none is made there.
"""

from __future__ import annotations

from bitnet_tuning.memory_need import MEBIBYTE, Need, fits, sum_text
from bitnet_tuning.openmp import user_set
from bitnet_tuning.parts import AUTO, BY_DEFAULT, COPIED, HUGE, LOCKED, MAPPED, Loading
from bitnet_tuning.records import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bitnet_tuning.command import Facts
    from bitnet_tuning.host import Privileges
    from bitnet_tuning.host.huge import HugePages
    from bitnet_tuning.request import Request

LOCK_SHARE = 0.8
"""Of the available memory, which a run with a locked model may take."""

COPY_SHARE = 0.8
"""Of the available memory, which a run with a copied model may take."""

TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = {TUNABLES: "glibc.malloc.hugetlb=1"}
"""Makes glibc's malloc ask for transparent huge pages (its manual, Memory Allocation
Tunables). 2 would take pages from a pool that an administrator reserved."""

FIRST_GLIBC = (2, 35)
"""That knows the tunable."""


def choose_loading(
    request: Request, facts: Facts, flags: frozenset[str], need: Need, lock: bool
) -> Loading:
    """``flags`` are those of the program that will run; ``lock`` says that the model is to be
    locked where that is safe. What was asked for and cannot be had is a warning."""
    wanted = request.memory or AUTO
    available = facts.host.memory.available
    warnings: list[str] = []
    said = [BY_DEFAULT]
    copied, env = False, {}
    if wanted in (COPIED, HUGE):
        refused = no_copy(flags, need, available)
        if refused is None and wanted == HUGE:
            refused = no_huge(facts.huge, facts.environ)
        if refused:
            warnings.append(refused)
        else:
            copied, env = True, dict(HUGE_PAGES) if wanted == HUGE else {}
            said = ["copied into memory" + (" in huge pages" if env else "")]
    locked = wanted == LOCKED or (lock and wanted != MAPPED)
    if locked:
        refused = no_lock(flags, need, available, facts.privileges)
        if refused:
            warnings.append(refused)
            locked = False
        said.append("the model stays unlocked" if refused else "locked, so that none is swapped")
    reason = f"{'; '.join(said)}; {sum_text(need, available)}"
    return Loading(False if copied else None, locked, env, reason, tuple(warnings))


def no_copy(flags: frozenset[str], need: Need, available: int | None) -> str | None:
    """Why the model is not read without mmap, or None where it may be."""
    if not flags & {"--no-mmap", "--load-mode"}:
        return "the model is mapped: this engine cannot read it otherwise"
    if not fits(need, available, COPY_SHARE):
        return f"the model is mapped, not copied: too little memory ({sum_text(need, available)})"
    return None


def no_huge(huge: HugePages | None, environ: Mapping[str, str]) -> str | None:
    """Why malloc cannot be made to use huge pages, or None where it can."""
    if huge is None or huge.glibc is None:
        return "no huge pages: they are asked for through glibc, which this system has not"
    if huge.glibc < FIRST_GLIBC:
        version, first = (".".join(map(str, each)) for each in (huge.glibc, FIRST_GLIBC))
        return f"no huge pages: glibc is {version}, the first that asks for them is {first}"
    if huge.transparent not in ("always", "madvise"):
        return (
            "no huge pages: the kernel gives none; `echo madvise | sudo tee "
            "/sys/kernel/mm/transparent_hugepage/enabled` would change that"
        )
    if user_set(environ, TUNABLES):
        return f"no huge pages: you set {TUNABLES} yourself; add {HUGE_PAGES[TUNABLES]} to it"
    return None


def no_lock(
    flags: frozenset[str], need: Need, available: int | None, privileges: Privileges | None
) -> str | None:
    """Why the model is not locked in memory, or None where that is allowed and safe."""
    limit = privileges.lockable if privileges else 0
    if not flags & {"--mlock", "--load-mode"}:
        return "the model is not locked in memory: this engine cannot"
    if not fits(need, available, LOCK_SHARE):
        return (
            "the model is not locked in memory: too little is available "
            f"({sum_text(need, available)})"
        )
    if limit is not None and need.model > limit:
        return (
            f"the model is not locked in memory: the limit is {limit // MEBIBYTE} MiB "
            f"(ulimit -l), the model has {-(-need.model // MEBIBYTE)}"
        )
    return None
