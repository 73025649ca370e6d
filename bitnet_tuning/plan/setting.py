"""Settings: everything about a run that can be tuned, as records, text and JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bitnet_tuning.console import counted
from bitnet_tuning.machine.root import CpuSet, format_list
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.openmp import THREAD_COUNTS, TUNABLE
from bitnet_tuning.store.codec import LATER, Annotated, Some, Text, Via

MOST_THREADS_ENGINE = 512
"""Largest number of threads; an engine aborts if given more (GGML_MAX_N_THREADS in ggml.h)."""

Threads = Annotated[int, {"minimum": 1, "maximum": MOST_THREADS_ENGINE}]
Variable = Annotated[str, {"enum": sorted(TUNABLE)}]
"""Variable that a tuning may set. Somebody else's profile must not set others (LD_PRELOAD)."""
Variables = Annotated[
    tuple[tuple[str, str], ...],
    Via(dict[Variable, Text], lambda env: tuple(sorted(env.items())), dict),
]
Tokens = Annotated[int, {"minimum": 1, "maximum": 1 << 20}]
Poll = Annotated[int, {"minimum": 0, "maximum": 100}]
Numa = Annotated[str, {"enum": ["distribute", "isolate", "numactl"]}]
Niceness = Annotated[int, {"minimum": -20, "maximum": 19}]
NodeId = Annotated[int, {"minimum": 0, "maximum": 1023}]
"""Number of a NUMA node; the kernel's MAX_NUMNODES is at most 1024."""


class Setting(NamedTuple):
    """One combination of knobs; a knob that is None is left to the engine."""

    threads: Threads
    """Threads for token generation."""
    threads_batch: Threads
    """Threads for prompt processing."""
    env: Variables = ()
    """Environment variables set for the engine, sorted by name."""
    cpus: CpuSet | None = None
    """CPUs that the engine may use; None for all that this process may use."""
    mmap: bool | None = None
    """Whether the model is mapped (True) or copied (False) into memory."""
    flash: bool | None = None
    """Whether flash attention is used."""
    ubatch: Tokens | None = None
    """Tokens of a prompt that are processed at once (the micro-batch)."""
    poll: Poll | None = None
    """How long waiting threads spin, from 0 to 100; only builds without OpenMP obey it."""
    numa: Numa | None = None
    """Value of the engine's --numa."""
    mlock: bool = False
    """Whether the model is locked in memory."""
    nice: Niceness = 0
    node: Annotated[NodeId | None, LATER] = None
    """NUMA node whose memory numactl prefers."""
    interleave: Annotated[CpuSet | None, LATER] = None
    """NUMA nodes over which numactl interleaves memory."""
    embedding: Annotated[Text | None, LATER] = None
    """Type of the embedding of the file that a benchmark compares with the model's own."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables as a dictionary."""
        return dict(self.env)

    def with_env(self, more: Mapping[str, str], without: Iterable[str] = ()) -> Setting:
        """Return the setting with the variables in ``more``, and without those in ``without``."""
        env = {name: text for name, text in self.env if name not in without} | dict(more)
        return self._replace(env=tuple(sorted(env.items())))


UPSTREAM = Setting(2, 2)
"""The setting of bitnet.cpp's own run_inference.py: 2 threads, no environment variables."""


SAVED = "the saved setting"
"""Beginning of the reasons for what a measured profile decides."""


class Change(NamedTuple):
    """A change of one knob of a setting."""

    name: str
    """Name that users see, such as ``no mmap``; unique among the changes of a search."""
    fields: Annotated[tuple[tuple[str, object], ...], Some(Setting)] = ()
    """Fields of the setting with their new values."""
    set_env: Variables = ()
    unset_env: tuple[Variable, ...] = ()


def apply(change: Change, setting: Setting) -> Setting:
    """Return the changed setting; thread counts in its environment become its new threads."""
    changed = setting._replace(**dict(change.fields))  # type: ignore[arg-type]
    changed = changed.with_env(dict(change.set_env), change.unset_env)
    counts = set(THREAD_COUNTS) & dict(changed.env).keys()
    return changed.with_env(dict.fromkeys(counts, str(changed.threads)))


def describe(setting: Setting) -> str:
    """Return the whole setting as a text such as ``4 threads, 8 for prompts, no mmap``."""
    words = [counted(setting.threads, "thread")]
    for field, text in _WORDS.items():
        value = getattr(setting, field)
        if field == "env":
            words += [f"{name}={text}" for name, text in value if name not in THREAD_COUNTS]
        elif value == (setting.threads if field == "threads_batch" else _DEFAULTS[field]):
            continue
        elif isinstance(value, bool):
            words.append(text if value else f"no {text}")
        else:
            words.append(text.format(shown(value)))
    return ", ".join(words)


def shown(value: object) -> str:
    """Return the value of a setting's field as users see it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return format_list(value) if isinstance(value, frozenset) else str(value)


_DEFAULTS = Setting._field_defaults
_WORDS = {
    "threads_batch": "{} for prompts",
    "cpus": "on CPUs {}",
    "mmap": "mmap",
    "flash": "flash attention",
    "ubatch": "micro-batch {}",
    "poll": "poll {}",
    "numa": "numa {}",
    "node": "memory of node {}",
    "env": "",
    "interleave": "memory spread over nodes {}",
    "mlock": "model locked",
    "nice": "niceness {}",
    "embedding": "{} embedding",
}
"""Texts with which ``describe`` shows each field that is not at its default."""
