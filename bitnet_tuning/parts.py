"""The decisions of which a plan is made that most runs take as they are; pure.

Their records stand apart from what decides them, which a run on one node without performance
mode does not load.
"""

from __future__ import annotations

from bitnet_tuning.records import NamedTuple

AUTO, MAPPED, LOCKED, COPIED, HUGE = WAYS = ("auto", "mmap", "locked", "copy", "huge")
"""How a model may get into memory, as --memory has it."""

BY_DEFAULT = "mapped: its pages are shared with the page cache and can be dropped"
"""What that comes to where nothing else is asked for."""


class Placement(NamedTuple):
    """On which CPUs the threads run and on which NUMA nodes the memory lies."""

    cpus: frozenset[int] | None
    """To bind the engine to."""
    prompt_threads: int
    reason: str = ""
    node: int | None = None
    """Whose memory is taken first (numactl --preferred)."""
    interleave: frozenset[int] | None = None
    """Nodes over which memory is spread page by page (numactl --interleave)."""
    numa: str | None = None
    """The engine's own flag."""
    cpus_reason: str | None = None
    """Why these CPUs, where the nodes decide it."""
    warnings: tuple[str, ...] = ()


class Loading(NamedTuple):
    """How the model gets into memory."""

    mmap: bool | None
    """None where the engine maps the file as it does by itself."""
    mlock: bool
    env: dict[str, str]
    reason: str
    warnings: tuple[str, ...] = ()


class Boost(NamedTuple):
    """What performance mode adds."""

    nice: int
    env: dict[str, str]
    """How threads wait."""
    poll: int | None
    cpus: frozenset[int] | None
    """To bind the engine to; None where it stays as planned."""
    reason: str
    cpus_reason: str = ""
    warnings: tuple[str, ...] = ()
