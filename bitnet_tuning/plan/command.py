"""The argument list of an engine, from a plan; pure. No shell sees it."""

from __future__ import annotations

from bitnet_tuning.launch.program import FEED
from bitnet_tuning.machine.root import format_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
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
"""Fields of a setting, with the flags of which a program must list one to obey them."""


def obeys(field: str, flags: frozenset[str]) -> bool:
    """Return whether a program whose help lists ``flags`` obeys this field of a setting."""
    return not flags.isdisjoint(KNOB_FLAGS[field])


def build_command(plan: Plan, request: Request, facts: Facts) -> tuple[str, ...]:
    """Return upstream's flags in upstream's order, then what the plan and the user add.

    A flag that not every generation has is passed only where the engine lists it.
    """
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
    """Return what stands before the engine's argv so that its memory comes from these nodes.
    numactl becomes the engine, and asks for what other nodes may give where one is full: nothing
    is killed for it."""
    if interleave is not None:
        return ("numactl", f"--interleave={format_list(interleave)}", "--")
    return () if node is None else ("numactl", f"--preferred={node}", "--")


def batch_flags(plan: Plan) -> tuple[str, ...]:
    """Return the batch sizes that somebody chose."""
    return (*_pair("-b", plan.batch), *_pair("-ub", plan.setting.ubatch))


def tuned_flags(setting: Setting, flags: frozenset[str], takes_value: bool) -> tuple[str, ...]:
    """Return what a setting says beyond threads and batches, for any program of an engine whose
    help lists ``flags``. ``takes_value`` as ``flash_takes_value`` has it."""
    return (
        *_loading(setting, flags),
        *(_flash(setting.flash, takes_value) if obeys("flash", flags) else ()),
        *(_pair("--poll", setting.poll) if obeys("poll", flags) else ()),
        *(_pair("--numa", setting.numa) if obeys("numa", flags) else ()),
    )


def _prompt(request: Request, flags: frozenset[str]) -> tuple[str, ...]:
    """In a chat the prompt is the system prompt. Engines that have ``-sys`` for it take
    ``-p`` for the user's first message."""
    if request.prompt_file is not None:
        flag, system = "-f", "-sysf"
        text = request.prompt_file
    elif request.prompt is not None:
        flag, system = "-p", "-sys"
        text = request.prompt
    else:
        return ()
    return (system if request.chat and system in flags else flag, text)


def _loading(setting: Setting, flags: frozenset[str]) -> tuple[str, ...]:
    """Mapped or read, locked or not. Mainline replaced the switches by one mode in 2026."""
    copied = setting.mmap is False
    if "--load-mode" in flags and (copied or setting.mlock):
        lock = "mlock" if copied else "mmap+mlock"
        return ("--load-mode", lock if setting.mlock else "none")
    wanted = (("--no-mmap", copied), ("--mlock", setting.mlock))
    return tuple(flag for flag, is_wanted in wanted if is_wanted and flag in flags)


def flash_takes_value(engine: Engine) -> bool:
    """Return whether ``-fa`` is followed by on or off: in bitnet.cpp's first generation it is a
    switch."""
    return engine.embedded or engine.completion is not None


def _flash(wanted: bool | None, takes_value: bool) -> tuple[str, ...]:
    if takes_value and wanted is not None:
        return ("-fa", "on" if wanted else "off")
    return ("-fa",) if wanted else ()


def _mode(request: Request, flags: frozenset[str], feeds_stdin: bool) -> list[str]:
    """Chat or not, and the prompt as it is: llama.cpp turns ``\\n`` in it into a newline
    unless told not to."""
    wanted = ["-cnv"] if request.chat else ["-no-cnv"]
    wanted.append("--no-escape")
    if feeds_stdin:
        wanted.append("--simple-io")
    # Current llama-cli is nothing but a chat and does not know -cnv any more.
    return [flag for flag in wanted if flag in flags or (flag == "-cnv" and not flags)]


def _pair(flag: str, value: float | str | None) -> tuple[str, ...]:
    return () if value is None else (flag, str(value))
