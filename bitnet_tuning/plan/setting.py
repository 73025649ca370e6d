"""One way to run an engine: everything that can be tuned, and its forms for people and for
files; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bitnet_tuning.console import counted
from bitnet_tuning.machine.root import CpuSet, format_list
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.openmp import THREAD_COUNTS, TUNABLE
from bitnet_tuning.store.codec import LATER, Annotated, Some, Text, Via

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_THREADS_ENGINE = 512
"""GGML_MAX_N_THREADS in ggml.h: an engine asserts on more."""

Threads = Annotated[int, {"minimum": 1, "maximum": MOST_THREADS_ENGINE}]
Variable = Annotated[str, {"enum": sorted(TUNABLE)}]
"""A file may come from anybody: LD_PRELOAD, say, is nothing that a search sets."""
Variables = Annotated[
    tuple[tuple[str, str], ...],
    Via(dict[Variable, Text], lambda env: tuple(sorted(env.items())), dict),
]
Tokens = Annotated[int, {"minimum": 1, "maximum": 1 << 20}]
Poll = Annotated[int, {"minimum": 0, "maximum": 100}]
Numa = Annotated[str, {"enum": ["distribute", "isolate", "numactl"]}]
Niceness = Annotated[int, {"minimum": -20, "maximum": 19}]
NodeId = Annotated[int, {"minimum": 0, "maximum": 1023}]
"""The kernel's MAX_NUMNODES is 1024 at most."""


class Setting(NamedTuple):
    """One way to run an engine. None leaves a knob as the engine has it."""

    threads: Threads
    """For generation."""
    threads_batch: Threads
    """For prompts."""
    env: Variables = ()
    """Variables set for the engine, sorted by name."""
    cpus: CpuSet | None = None
    """CPUs that the engine may use; None for all that this process may."""
    mmap: bool | None = None
    flash: bool | None = None
    """Flash attention."""
    ubatch: Tokens | None = None
    """Tokens of a prompt that are computed at once."""
    poll: Poll | None = None
    """How eagerly threads wait, 0 to 100; only builds without OpenMP obey it."""
    numa: Numa | None = None
    mlock: bool = False
    nice: Niceness = 0
    node: Annotated[NodeId | None, LATER] = None
    """The NUMA node whose memory is taken first, by numactl."""
    interleave: Annotated[CpuSet | None, LATER] = None
    """NUMA nodes over which numactl spreads memory."""

    @property
    def variables(self) -> dict[str, str]:
        """The environment as a dictionary."""
        return dict(self.env)

    def with_env(self, more: Mapping[str, str], without: Iterable[str] = ()) -> Setting:
        """Return the setting with variables added, and those named in ``without`` removed."""
        env = {name: text for name, text in self.env if name not in without} | dict(more)
        return self._replace(env=tuple(sorted(env.items())))


UPSTREAM = Setting(2, 2)
"""What bitnet.cpp's own run_inference.py does: 2 threads, nothing in the environment."""


class Change(NamedTuple):
    """Another value for one knob of a setting."""

    name: str
    """For people, such as ``no mmap``; unique among the changes of a search."""
    fields: Annotated[tuple[tuple[str, object], ...], Some(Setting)] = ()
    """Fields of the setting with their new values."""
    set_env: Variables = ()
    unset_env: tuple[Variable, ...] = ()


def apply(change: Change, setting: Setting) -> Setting:
    """Return the setting with one change made; thread counts in its environment follow its
    threads."""
    fields: dict[str, Any] = dict(change.fields)
    changed = setting._replace(**fields).with_env(dict(change.set_env), change.unset_env)
    counts = set(THREAD_COUNTS) & dict(changed.env).keys()
    return changed.with_env(dict.fromkeys(counts, str(changed.threads)))


def describe(setting: Setting) -> str:
    """Return the whole setting in words, for people."""
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
    """Return the value of a setting's field, for people."""
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
}
"""How ``describe`` names each field that is not at its default."""
