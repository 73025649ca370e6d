"""What the user asked for, after the command line was checked."""

from __future__ import annotations

from bitnet_tuning.namedtuple import NamedTuple


class Request(NamedTuple):
    """One run. ``None`` means "not said": the plan or the engine decides."""

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
    memory: str | None = None
    """How the model gets into memory, as ``loading.WAYS`` has it."""
    profile: bool = True
    """Whether a measured profile may decide."""
    extra: tuple[str, ...] = ()
    """Passed to the engine untouched, last."""
