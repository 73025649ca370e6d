"""What a plan rests on, what it holds, and the argument list that comes of it; pure. No shell
sees it."""

from __future__ import annotations

from bitnet_tuning.machine.root import format_list
from bitnet_tuning.plan.batch import logical
from bitnet_tuning.plan.facts import Facts, Plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.engine.find import Engine
    from bitnet_tuning.plan.request import Request
    from bitnet_tuning.plan.setting import Setting


def setting_of(plan: Plan) -> Setting:
    """The part of a plan that can be tuned."""
    from bitnet_tuning.plan.setting import Setting  # noqa: PLC0415 (a run does not need it)

    return Setting(
        threads=plan.threads,
        threads_batch=plan.threads_batch,
        env=tuple(sorted(plan.env.items())),
        cpus=plan.cpus,
        mmap=plan.mmap,
        flash=plan.flash,
        ubatch=plan.ubatch,
        poll=plan.poll,
        numa=plan.numa,
        mlock=plan.mlock,
        nice=plan.nice,
        node=plan.node,
        interleave=plan.interleave,
    )


def apply_setting(plan: Plan, setting: Setting, request: Request, facts: Facts) -> Plan:
    """The plan with all that can be tuned as ``setting`` has it, its command built anew."""
    tuned = plan._replace(**{**setting._asdict(), "env": dict(setting.env)})
    if setting.ubatch != plan.ubatch:
        tuned = tuned._replace(batch=request.batch or logical(setting.ubatch))
    command = build_command(tuned, request, facts.engine, facts.feeds_stdin)
    return tuned._replace(command=command)


def build_command(
    plan: Plan, request: Request, engine: Engine, feeds_stdin: bool
) -> tuple[str, ...]:
    """Upstream's flags in upstream's order, then what the plan and the user add.

    A flag that not every generation has is passed only where the engine lists it.
    """
    flags = engine.flags_for(request.chat)
    command = [
        *memory_policy(plan.node, plan.interleave),
        *engine.program(request.chat),
        *("-m", plan.model),
        *("-n", str(request.n_predict)),
        *("-t", str(plan.threads)),
        *_prompt(request, flags),
        *("-ngl", "0"),
        *("-c", str(request.ctx_size)),
        *("--temp", _number(request.temperature)),
        *_threads_batch(plan, flags),
        *_sampling(request),
        *batch_flags(plan),
        *tuned_flags(plan, flags, flash_takes_value(engine)),
        *_mode(request, flags, feeds_stdin),
        *request.extra,
    ]
    return tuple(command)


def memory_policy(node: int | None, interleave: frozenset[int] | None) -> tuple[str, ...]:
    """What stands before the engine's argv so that its memory comes from these nodes. numactl
    becomes the engine, and asks for what other nodes may give where one is full: nothing is
    killed for it."""
    if interleave is not None:
        return ("numactl", f"--interleave={format_list(interleave)}", "--")
    return () if node is None else ("numactl", f"--preferred={node}", "--")


def batch_flags(plan: Plan) -> tuple[str, ...]:
    """The batch sizes that somebody chose."""
    return (*_pair("-b", plan.batch), *_pair("-ub", plan.ubatch))


def tuned_flags(plan: Plan, flags: frozenset[str], takes_value: bool) -> tuple[str, ...]:
    """What a plan says beyond threads and batches, for any program of an engine whose help
    lists ``flags``. ``takes_value`` as ``flash_takes_value`` has it."""
    return (
        *_loading(plan, flags),
        *_flash(plan.flash, flags, takes_value),
        *_listed("--poll", plan.poll, flags),
        *_listed("--numa", plan.numa, flags),
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


def _threads_batch(plan: Plan, flags: frozenset[str]) -> tuple[str, ...]:
    known = "-tb" in flags or not flags
    return ("-tb", str(plan.threads_batch)) if known else ()


def _loading(plan: Plan, flags: frozenset[str]) -> tuple[str, ...]:
    """Mapped or read, locked or not. Mainline replaced the switches by one mode in 2026."""
    copied = plan.mmap is False
    if "--load-mode" in flags and (copied or plan.mlock):
        lock = "mlock" if copied else "mmap+mlock"
        return ("--load-mode", lock if plan.mlock else "none")
    wanted = (("--no-mmap", copied), ("--mlock", plan.mlock))
    return tuple(flag for flag, is_wanted in wanted if is_wanted and flag in flags)


def flash_takes_value(engine: Engine) -> bool:
    """Whether ``-fa`` is followed by on or off: in bitnet.cpp's first generation it is a
    switch."""
    return engine.embedded or engine.completion is not None


def _flash(wanted: bool | None, flags: frozenset[str], takes_value: bool) -> tuple[str, ...]:
    if wanted is None or "-fa" not in flags:
        return ()
    if takes_value:
        return ("-fa", "on" if wanted else "off")
    return ("-fa",) if wanted else ()


def _listed(flag: str, value: int | str | None, flags: frozenset[str]) -> tuple[str, ...]:
    return () if value is None or flag not in flags else (flag, str(value))


def _sampling(request: Request) -> tuple[str, ...]:
    return (
        *_pair("--top-k", request.top_k),
        *_pair("--top-p", request.top_p),
        *_pair("--min-p", request.min_p),
        *_pair("--repeat-penalty", request.repeat_penalty),
        *_pair("-s", request.seed),
    )


def _mode(request: Request, flags: frozenset[str], feeds_stdin: bool) -> list[str]:
    """Chat or not, and the prompt as it is: llama.cpp turns ``\\n`` in it into a newline
    unless told not to."""
    wanted = ["-cnv"] if request.chat else ["-no-cnv"]
    wanted.append("--no-escape")
    if feeds_stdin:
        wanted.append("--simple-io")
    # Current llama-cli is nothing but a chat and does not know -cnv any more.
    return [flag for flag in wanted if flag in flags or (flag == "-cnv" and not flags)]


def _pair(flag: str, value: float | None) -> tuple[str, ...]:
    return () if value is None else (flag, _number(value))


def _number(value: float) -> str:
    return str(value)
