"""One way to run an engine: everything that can be tuned, and its forms for people and for
files; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from bitnet_tuning.machine.root import format_list, parse_list
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.openmp import THREAD_COUNTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MOST_THREADS_ENGINE = 512
"""GGML_MAX_N_THREADS in ggml.h: an engine asserts on more."""


class Setting(NamedTuple):
    """One way to run an engine. None leaves a knob as the engine has it."""

    threads: int
    """For generation."""
    threads_batch: int
    """For prompts."""
    env: tuple[tuple[str, str], ...] = ()
    """Variables set for the engine, sorted by name."""
    cpus: frozenset[int] | None = None
    """CPUs that the engine may use; None for all that this process may."""
    mmap: bool | None = None
    flash: bool | None = None
    """Flash attention."""
    ubatch: int | None = None
    """Tokens of a prompt that are computed at once."""
    poll: int | None = None
    """How eagerly threads wait, 0 to 100; only builds without OpenMP obey it."""
    numa: str | None = None
    """``distribute``, ``isolate`` or ``numactl``."""
    mlock: bool = False
    nice: int = 0
    node: int | None = None
    """The NUMA node whose memory is taken first, by numactl."""
    interleave: frozenset[int] | None = None
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
    fields: tuple[tuple[str, object], ...] = ()
    """Fields of the setting with their new values."""
    set_env: tuple[tuple[str, str], ...] = ()
    unset_env: tuple[str, ...] = ()


def apply(change: Change, setting: Setting) -> Setting:
    """Return the setting with one change made; thread counts in its environment follow its
    threads."""
    fields: dict[str, Any] = dict(change.fields)
    changed = setting._replace(**fields).with_env(dict(change.set_env), change.unset_env)
    counts = set(THREAD_COUNTS) & dict(changed.env).keys()
    return changed.with_env(dict.fromkeys(counts, str(changed.threads)))


def describe(setting: Setting) -> str:
    """Return the whole setting in words, for people."""
    words = [f"{setting.threads} thread{'' if setting.threads == 1 else 's'}"]
    if setting.threads_batch != setting.threads:
        words.append(f"{setting.threads_batch} for prompts")
    if setting.cpus is not None:
        words.append(f"on CPUs {format_list(setting.cpus)}")
    for field, name in _NAMES.items():
        value = getattr(setting, field)
        if isinstance(value, bool):
            words.append(name if value else f"no {name}")
        elif value is not None:
            words.append(f"{name} {value}")
    words += [f"{name}={text}" for name, text in setting.env if name not in THREAD_COUNTS]
    if setting.interleave is not None:
        words.append(f"memory spread over nodes {format_list(setting.interleave)}")
    if setting.mlock:
        words.append("model locked")
    if setting.nice:
        words.append(f"niceness {setting.nice:+d}")
    return ", ".join(words)


_NAMES = {
    "mmap": "mmap",
    "flash": "flash attention",
    "ubatch": "micro-batch",
    "poll": "poll",
    "numa": "numa",
    "node": "memory of node",
}
"""Fields that ``describe`` names with their value, or with "no" where they are off."""


def as_json(setting: Setting) -> dict[str, Any]:
    """With the environment as an object, CPUs and nodes as a list like ``0-3,8``."""
    facts = setting._asdict()
    facts["env"] = dict(setting.env)
    for name in SETS:
        facts[name] = None if facts[name] is None else format_list(facts[name])
    return facts


def from_json(facts: Mapping[str, Any]) -> Setting:
    """Raises ValueError for what ``as_json`` never writes. Fields that came later may be
    missing: a file from before them has nothing to say there."""
    if not isinstance(facts, Mapping) or {*_LATER, *facts} != set(Setting._fields):
        raise ValueError("a setting has other fields")
    facts = {**dict.fromkeys(_LATER), **facts}
    for name, kinds in _KINDS.items():
        value = facts[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"{name} of a setting is {value!r}")
    if min(facts["threads"], facts["threads_batch"]) < 1:
        raise ValueError("a setting without threads")
    env = facts["env"]
    if not all(isinstance(text, str) for pair in env.items() for text in pair):
        raise ValueError("the environment of a setting holds more than texts")
    sets = {name: facts[name] if facts[name] is None else parse_list(facts[name]) for name in SETS}
    return Setting(**{**facts, "env": tuple(sorted(env.items())), **sets})


_ABSENT = type(None)
SETS = ("cpus", "interleave")
"""Fields that hold sets, which a file has as lists like ``0-3,8``."""
_LATER = ("node", "interleave")
_KINDS: dict[str, tuple[type, ...]] = {
    "threads": (int,),
    "threads_batch": (int,),
    "env": (dict,),
    "cpus": (str, _ABSENT),
    "mmap": (bool, _ABSENT),
    "flash": (bool, _ABSENT),
    "ubatch": (int, _ABSENT),
    "poll": (int, _ABSENT),
    "numa": (str, _ABSENT),
    "mlock": (bool,),
    "nice": (int,),
    "node": (int, _ABSENT),
    "interleave": (str, _ABSENT),
}
