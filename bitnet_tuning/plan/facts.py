"""TODO."""

from __future__ import annotations

from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.limits import Privileges
    from bitnet_tuning.machine.memory import HugePages
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.profile import Profile


class Facts(NamedTuple):
    """All that a decision rests on, besides the request."""

    host: Host
    engine: Engine
    model: ModelFile
    model_reason: str
    environ: Mapping[str, str]
    feeds_stdin: bool = False
    """Whether the engine's input will be a pipe that this program fills."""
    privileges: Privileges | None = None
    """What performance mode and locked memory may use; None where neither is asked for."""
    profile: Profile | None = None
    """What was measured for this host, engine and model."""
    prompt_file_bytes: int | None = None
    """Of the request's prompt file; None for none, and for a pipe."""
    numactl: bool = False
    """Whether it is installed and acts; only looked for on several NUMA nodes."""
    cached: dict[int, int] | None = None
    """Pages of the model's file in the page cache by NUMA node, or a sample of them; None
    where not known, and on one node."""
    huge: HugePages | None = None
    """None where huge pages are not asked for."""


class Plan(NamedTuple):
    """A whole run, decided. None stands for "as the engine has it" in ``batch``, ``ubatch``
    and from ``mmap`` on."""

    command: tuple[str, ...]
    env: dict[str, str]
    cpus: frozenset[int] | None
    threads: int
    threads_batch: int
    batch: int | None
    ubatch: int | None
    engine: str
    model: str
    reasons: dict[str, str]
    warnings: tuple[str, ...] = ()
    mlock: bool = False
    nice: int = 0
    mmap: bool | None = None
    flash: bool | None = None
    """Flash attention."""
    poll: int | None = None
    """How eagerly threads wait, 0 to 100."""
    numa: str | None = None
    """``distribute``, ``isolate`` or ``numactl``."""
    node: int | None = None
    """The NUMA node whose memory is taken first, by numactl."""
    interleave: frozenset[int] | None = None
    """NUMA nodes over which numactl spreads memory."""
