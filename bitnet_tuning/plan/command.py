"""Build the argument list that starts an engine. It never passes through a shell."""

from __future__ import annotations

from collections.abc import Mapping

from bitnet_tuning.engine.find import Engine
from bitnet_tuning.launch.start import FEED
from bitnet_tuning.machine.root import format_list
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.setting import Setting

KNOB_FLAGS = {
    "mmap": ("--no-mmap", "--load-mode"),
    "flash": ("-fa",),
    "poll": ("--poll",),
    "numa": ("--numa",),
    "mlock": ("--mlock", "--load-mode"),
    "ubatch": ("-ub",),
    "threads_batch": ("-tb",),
}
"""Flags for each field of a setting: a program obeys the field if its help lists one of them."""

_READ_BY_ENGINE = {
    "LLAMA_ARG_FLASH_ATTN": "flash",
    "LLAMA_ARG_LOAD_MODE": "mmap",
    "LLAMA_ARG_MLOCK": "mlock",
    "LLAMA_ARG_NO_MMAP": "mmap",
    "LLAMA_ARG_NUMA": "numa",
}
"""llama.cpp's own variables (set_env in its common/arg.cpp) for flags that a plan seldom passes."""


def read_by_engine(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the fields of a setting that variables of llama.cpp set, with their names."""
    return {field: name for name, field in _READ_BY_ENGINE.items() if environ.get(name)}


def obeys(field: str, flags: frozenset[str]) -> bool:
    """Return whether a program whose help lists ``flags`` obeys ``field`` of a setting."""
    return not flags.isdisjoint(KNOB_FLAGS[field])


def build_command(plan: Plan, request: Request, facts: Facts) -> tuple[str, ...]:
    """Return upstream's flags in upstream's order, then those that the plan and the user add. Flags
    that some generations of engines lack are passed only if this engine's help lists them."""
    engine, setting = facts.engine, plan.setting
    flags = engine.flags_for(request.chat)
    return (
        *memory_policy(setting.node, setting.interleave),
        *engine.program(request.chat),
        *("-m", facts.model.path),
        *("-n", str(request.n_predict)),
        *("-t", str(setting.threads)),
        *_prompt(request, flags),
        *("-ngl", "0"),
        *("-c", str(request.ctx_size)),
        *("--temp", str(request.temperature)),
        *(_pair("-tb", setting.threads_batch) if "-tb" in flags or not flags else ()),
        *_pair("--top-k", request.top_k),
        *_pair("--top-p", request.top_p),
        *_pair("--min-p", request.min_p),
        *_pair("--repeat-penalty", request.repeat_penalty),
        *_pair("-s", request.seed),
        *batch_flags(plan),
        *tuned_flags(setting, flags, flash_takes_value(engine)),
        *_mode(request, flags, facts.stdin == FEED),
        *request.extra,
    )


def memory_policy(node: int | None, interleave: frozenset[int] | None) -> tuple[str, ...]:
    """Return the words before the engine's argv that take its memory from these NUMA nodes. numactl
    replaces itself with the engine, so no extra process remains."""
    # Both policies fall back to other nodes if one is full; --membind would get the engine killed.
    if interleave is not None:
        return ("numactl", f"--interleave={format_list(interleave)}", "--")
    return () if node is None else ("numactl", f"--preferred={node}", "--")


def batch_flags(plan: Plan) -> tuple[str, ...]:
    """Return the flags for batch sizes; none for a size that is left to the engine."""
    return (*_pair("-b", plan.batch), *_pair("-ub", plan.setting.ubatch))


def tuned_flags(setting: Setting, flags: frozenset[str], takes_value: bool) -> tuple[str, ...]:
    """Return the flags of a setting, except those for threads and batches. ``flags`` are those that
    the program lists in its help, ``takes_value`` is what ``flash_takes_value`` returns."""
    flash = None if setting.flash is None else "on" if setting.flash else "off"
    switch = ("-fa",) if setting.flash else ()
    return (
        *_loading(setting, flags),
        *((_pair("-fa", flash) if takes_value else switch) if obeys("flash", flags) else ()),
        *(_pair("--poll", setting.poll) if obeys("poll", flags) else ()),
        *(_pair("--numa", setting.numa) if obeys("numa", flags) else ()),
    )


def _prompt(request: Request, flags: frozenset[str]) -> tuple[str, ...]:
    # A chat's prompt is the system prompt. Engines with -sys take -p as the user's first message.
    flag, system, text = "-p", "-sys", request.prompt
    if request.prompt_file is not None:
        flag, system, text = "-f", "-sysf", request.prompt_file
    return _pair(system if request.chat and system in flags else flag, text)


def _loading(setting: Setting, flags: frozenset[str]) -> tuple[str, ...]:
    copied = setting.mmap is False
    # Mainline llama.cpp replaced the two switches with --load-mode in 2026.
    if "--load-mode" in flags and (copied or setting.mlock):
        lock = "mlock" if copied else "mmap+mlock"
        return ("--load-mode", lock if setting.mlock else "none")
    wanted = (("--no-mmap", copied), ("--mlock", setting.mlock))
    return tuple(flag for flag, is_wanted in wanted if is_wanted and flag in flags)


def flash_takes_value(engine: Engine) -> bool:
    """Return whether ``-fa`` takes on or off; in bitnet.cpp's first generation it is a switch."""
    return engine.embedded or engine.completion is not None


def _mode(request: Request, flags: frozenset[str], feeds_stdin: bool) -> list[str]:
    # Without --no-escape llama.cpp turns a backslash and an n in a prompt into a newline.
    wanted = ["-cnv" if request.chat else "-no-cnv", "--no-escape"]
    if feeds_stdin:
        wanted.append("--simple-io")
    # Current llama-cli always chats, and has no flag -cnv any more.
    return [flag for flag in wanted if flag in flags or (flag == "-cnv" and not flags)]


def _pair(flag: str, value: float | str | None) -> tuple[str, ...]:
    return () if value is None else (flag, str(value))
