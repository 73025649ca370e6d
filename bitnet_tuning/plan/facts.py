"""The request and the facts that a plan is made from, and the plan itself."""

from __future__ import annotations

from bitnet_tuning.launch.start import NO_INPUT
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.detect import Privileges
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.load import Neighbours
    from bitnet_tuning.machine.memory import HugePages
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.profile import Profile
    from bitnet_tuning.plan.setting import Setting


class Request(NamedTuple):
    """What the user asks of one run; a field that is None is left to the plan or the engine."""

    prompt: str | None = None
    prompt_file: str | None = None
    model: str | None = None
    engine: str | None = None
    n_predict: int = 128
    """Tokens to generate; -1: until the model ends its answer, -2: until the context is full."""
    ctx_size: int = 2048
    """Tokens of context; 0 takes the length that the model states."""
    temperature: float = 0.8
    threads: int | None = None
    """Threads for generation; 0 chooses automatically, as None does."""
    threads_batch: int | None = None
    max_threads: int | None = None
    batch: int | None = None
    ubatch: int | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    seed: int | None = None
    chat: bool = False
    performance: bool = False
    memory: str = "auto"
    """How the model is loaded: one of ``plan.memory.WAYS``."""
    profile: bool = True
    """Whether a measured profile may be used."""
    force: bool = False
    """Whether a build that is known to compute garbage may run."""
    named: tuple[tuple[str, str], ...] = ()
    """Fields that variables of llama.cpp set, with their names."""
    extra: tuple[str, ...] = ()
    """Arguments appended to the engine's command line unchanged."""

    def prompt_bytes(self, file_bytes: int | None) -> int | None:
        """Return the length of the prompt; None if it is unknown before the start, as in a chat.
        ``file_bytes`` is the length of the prompt file, if there is one."""
        if self.chat or self.prompt_file is not None:
            return None if self.chat else file_bytes
        return None if self.prompt is None else len(self.prompt.encode("utf-8", "surrogateescape"))


class Facts(NamedTuple):
    """Everything that a plan depends on, besides the request."""

    host: Host
    engine: Engine
    model: ModelFile
    model_reason: str
    """How the model was found, for the plan's reasons."""
    environ: Mapping[str, str]
    note: str | None = None
    """What the user should know about the choice of the model."""
    stdin: str = NO_INPUT
    """What the engine's standard input will be, as in ``Launch.stdin``."""
    privileges: Privileges | None = None
    """Limits on priority and locked memory; None if the run asks for neither."""
    profile: Profile | None = None
    """The saved tuning for this host, engine and model."""
    prompt_file_bytes: int | None = None
    """Length of the request's prompt file; None without one, or if it is a pipe."""
    least_tokens: int = 0
    """The fewest tokens that the prompt can have; 0 if it is not known before the start."""
    numactl: bool = False
    """Whether numactl is installed and works; looked for only on machines with several nodes."""
    cached: dict[int, int] | None = None
    """Number of (sampled) pages of the model in the page cache, by NUMA node. None if that is
    unknown or the machine has one node."""
    neighbours: Neighbours | None = None
    """What other programs take of the CPUs; None if that is next to nothing, or not to matter."""
    force: bool = False
    """As in the request."""
    huge: HugePages | None = None
    """What the system offers; None if the run does not ask for huge pages."""
    beside: ModelFile | None = None
    """The model's slim copy, or the original of one, for measurements."""


class Plan(NamedTuple):
    """The decision: a setting, a reason for every field, and warnings for the user."""

    setting: Setting
    reasons: dict[str, str]
    warnings: tuple[str, ...] = ()
    batch: int | None = None
    """Tokens of the logical batch; None leaves the size to the engine."""
    command: tuple[str, ...] = ()
    """Argument list that starts the engine; empty until everything else is decided."""

    def updated(
        self, setting: Setting, reasons: Mapping[str, str], warnings: Iterable[str] = ()
    ) -> Plan:
        """Return a plan with another setting, and with these reasons and warnings added."""
        return self._replace(
            setting=setting,
            reasons={**self.reasons, **reasons},
            warnings=(*self.warnings, *warnings),
        )
