"""What a plan holds, and the argument list that comes of it; pure. No shell sees it."""

from __future__ import annotations

from bitnet_tuning.records import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bitnet_tuning.engine import Engine
    from bitnet_tuning.request import Request


class Plan(NamedTuple):
    """A whole run, decided. ``batch`` and ``ubatch`` are None where the engine's own stay."""

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


def build_command(
    plan: Plan, request: Request, engine: Engine, feeds_stdin: bool
) -> tuple[str, ...]:
    """Upstream's flags in upstream's order, then what the plan and the user add.

    A flag that not every generation has is passed only where the engine lists it.
    """
    flags = engine.chat_flags if request.chat else engine.flags
    command = [
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
        *_pair("-b", plan.batch),
        *_pair("-ub", plan.ubatch),
        *_lock(plan, flags),
        *_mode(request, flags, feeds_stdin),
        *request.extra,
    ]
    return tuple(command)


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


def _lock(plan: Plan, flags: frozenset[str]) -> tuple[str, ...]:
    """Mainline replaced --mlock by a mode of loading in 2026."""
    if not plan.mlock:
        return ()
    return ("--mlock",) if "--mlock" in flags else ("--load-mode", "mmap+mlock")


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
