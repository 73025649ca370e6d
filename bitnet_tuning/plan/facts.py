"""What a plan is made of: the request, the facts, and the plan itself."""

from __future__ import annotations

from bitnet_tuning.launch.program import NO_INPUT
from bitnet_tuning.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.machine.detect import Privileges
    from bitnet_tuning.machine.host import Host
    from bitnet_tuning.machine.memory import HugePages
    from bitnet_tuning.model.types import ModelFile
    from bitnet_tuning.plan.profile import Profile
    from bitnet_tuning.plan.setting import Setting


class Request(NamedTuple):
    """What the user asks of one run. None leaves a field to the plan or the engine."""

    prompt: str | None = None
    prompt_file: str | None = None
    model: str | None = None
    engine: str | None = None
    n_predict: int = 128
    """Tokens to generate; -1 until the model ends, -2 until the context is full."""
    ctx_size: int = 2048
    """Tokens of context; 0 takes the model's own length."""
    temperature: float = 0.8
    threads: int | None = None
    """0 is None, as in upstream's ``-t 0``."""
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
    """How the model gets into memory: one of ``plan.memory.WAYS``."""
    profile: bool = True
    """Whether a measured profile may decide."""
    extra: tuple[str, ...] = ()
    """Arguments passed to the engine untouched, last."""

    def prompt_bytes(self, file_bytes: int | None) -> int | None:
        """Return the prompt's length; None where it is not known before the start, as in a
        chat. ``file_bytes`` is the length of the prompt file."""
        if self.chat:
            return None
        if self.prompt_file is not None:
            return file_bytes
        return None if self.prompt is None else len(self.prompt.encode("utf-8", "surrogateescape"))


class Facts(NamedTuple):
    """Everything a decision rests on, besides the request."""

    host: Host
    engine: Engine
    model: ModelFile
    model_reason: str
    environ: Mapping[str, str]
    note: str | None = None
    """What the user should know of the choice of the model."""
    stdin: str = NO_INPUT
    """What the engine's standard input will be, as ``Launch.stdin``."""
    privileges: Privileges | None = None
    """What performance mode and locked memory may use; None where neither is asked for."""
    profile: Profile | None = None
    """What was measured for this host, engine and model."""
    prompt_file_bytes: int | None = None
    """Length of the request's prompt file; None without one, and for a pipe."""
    numactl: bool = False
    """Whether it is installed and works; only looked for on several NUMA nodes."""
    cached: dict[int, int] | None = None
    """Pages of the model's file in the page cache by NUMA node, or a sample of them; None
    where not known, and on one node."""
    huge: HugePages | None = None
    """None where huge pages are not asked for."""


class Plan(NamedTuple):
    """What was decided, with a reason for every field and warnings for the user."""

    setting: Setting
    reasons: dict[str, str]
    warnings: tuple[str, ...] = ()
    batch: int | None = None
    """Tokens of the logical batch; None leaves it to the engine."""
    command: tuple[str, ...] = ()
    """The engine's argument list; empty until everything else is decided."""

    def updated(
        self, setting: Setting, reasons: Mapping[str, str], warnings: Iterable[str] = ()
    ) -> Plan:
        """Return the plan with another setting, and these reasons and warnings added."""
        return self._replace(
            setting=setting,
            reasons={**self.reasons, **reasons},
            warnings=(*self.warnings, *warnings),
        )
