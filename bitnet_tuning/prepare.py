"""From a request to a finished run: find, read, plan, execute. Every command calls this."""

from __future__ import annotations

import os
import sys

from bitnet_tuning.console import say
from bitnet_tuning.engine.find import EMBEDDED, Engine, locate_all, on_path
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA
from bitnet_tuning.engine.known import know, with_architecture
from bitnet_tuning.errors import MissingError, UsageError
from bitnet_tuning.launch.program import FEED, INHERIT, INTERRUPT_GRACE, NO_INPUT, Launch, Outcome
from bitnet_tuning.launch.run import run
from bitnet_tuning.machine.detect import read_host, read_privileges
from bitnet_tuning.machine.host import Host
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.find import Choice, choose_model
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.memory import HUGE, LOCKED
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.store.state import State, default_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bitnet_tuning.model.types import ModelFile


_LONGEST_ECHO = 1 << 20
"""Bytes of a prompt file that are looked for in the output."""


def prepare(request: Request, root: str = "/") -> tuple[Facts, Plan]:
    """Read the facts below ``root`` and decide. Say on stderr what the user should know; raise
    TuningError."""
    if request.prompt_file is not None:
        _check_prompt_file(request.prompt_file, request.chat)
    state = State(default_folder(os.environ))
    facts = read_facts(request, state, root)
    plan = make_plan(request, facts)
    if facts.engine.embedded and EMBEDDED not in (request.engine, os.environ.get("BITNET_ENGINE")):
        say("no compiled engine found: using the embedded one")
    say_all(facts.note, *plan.warnings, state.warning and f"warning: {state.warning}")
    return facts, plan


def read_facts(request: Request, state: State, root: str = "/") -> Facts:
    """Find engine and model, and read what a decision on the request needs. Raise TuningError."""
    host = read_host(root)
    engine, choice = find_pair(request.engine, request.model, state, host)
    profile = None
    if request.profile and state.holds("profile"):
        from bitnet_tuning.plan.profile import load  # noqa: PLC0415 (many have none)

        profile = load(state, host, engine, choice.model)
    setting = profile.setting if profile else None
    needs_privileges = request.performance or request.memory == LOCKED
    facts = Facts(
        host,
        engine,
        choice.model,
        choice.reason,
        os.environ,
        note=choice.note,
        stdin=_stdin(request, engine),
        privileges=read_privileges() if needs_privileges or (setting and setting.mlock) else None,
        profile=profile,
        prompt_file_bytes=_file_size(request.prompt_file),
    )
    return _with_nodes(_with_huge(facts, root) if request.memory == HUGE else facts, root)


def with_all_means(facts: Facts) -> Facts:
    """Return the facts with everything that a search needs, which may try anything."""
    return _with_nodes(_with_huge(facts._replace(privileges=read_privileges()), "/"), "/")


def _with_huge(facts: Facts, root: str) -> Facts:
    from bitnet_tuning.machine.memory import read_huge_pages  # noqa: PLC0415

    return facts._replace(huge=read_huge_pages(Root(root)))


def _with_nodes(facts: Facts, root: str) -> Facts:
    if len(facts.host.nodes) < 2:
        return facts
    from bitnet_tuning.machine.memory import cached_nodes  # noqa: PLC0415

    cached = cached_nodes(Root(root), facts.model.path)
    return facts._replace(numactl=_numactl_acts(facts), cached=cached)


def _numactl_acts(facts: Facts) -> bool:
    """Return whether numactl is installed and may do what it is there for: containers often
    forbid memory policies (set_mempolicy(2)), and then it would end instead of the engine."""
    if on_path(facts.environ.get("PATH", ""), "numactl") is None:
        return False
    from bitnet_tuning.launch.background import capture  # noqa: PLC0415 (few have several nodes)
    from bitnet_tuning.plan.command import memory_policy  # noqa: PLC0415

    node = min(node.id for node in facts.host.nodes)
    return capture((*memory_policy(node, None), "true"), seconds=5).code == 0


def _file_size(path: str | None) -> int | None:
    return os.path.getsize(path) if path is not None and os.path.isfile(path) else None


def find_engine(named: str | None, state: State, model_named: str | None = None) -> Engine:
    """Return the engine to use; of several builds the one for a run with this model, or with
    the model that it would find. Raise MissingError, and UnsupportedError where none of several
    builds can be used."""
    located = locate_all(named, os.environ, engine_folders())
    if len(located) == 1:
        return know(located[0], state)
    try:
        return find_pair(named, model_named, state)[0]
    except MissingError:  # the model
        return _choose(tuple(know(each, state) for each in located), None, state, None)


def find_pair(
    engine_named: str | None, model_named: str | None, state: State, host: Host | None = None
) -> tuple[Engine, Choice]:
    """Return the engine and the model to use. ``host`` is read where it is needed and not given.
    Raise MissingError, and UnsupportedError where none of several builds can be used."""
    engines, choice = find_builds(engine_named, model_named, state)
    engine = engines[0] if len(engines) == 1 else _choose(engines, choice.model, state, host)
    return engine, choice


def find_builds(
    engine_named: str | None, model_named: str | None, state: State
) -> tuple[tuple[Engine, ...], Choice]:
    """Return every build in reach, most often one, and the model. Raise MissingError."""
    folders = engine_folders()
    located = locate_all(engine_named, os.environ, folders)
    engines = tuple(know(each, state) for each in located)
    checkout = engines[0].checkout
    if checkout and checkout not in folders:
        folders = (*folders, checkout)
    choice = choose_model(model_named, os.environ, folders, located[0].embedded, state)
    architecture = choice.model.architecture
    return tuple(with_architecture(each, architecture) for each in engines), choice


def _choose(
    engines: tuple[Engine, ...], model: ModelFile | None, state: State, host: Host | None
) -> Engine:
    """Return one of several builds."""
    from bitnet_tuning.engine.builds import choose_build, load_fastest  # noqa: PLC0415

    host = host or read_host()
    measured = load_fastest(state, host, engines, model) if model else {}
    return choose_build(engines, host, model, measured)


def execute(
    request: Request, facts: Facts, plan: Plan, quiet: bool = False, keep_log: bool = False
) -> Outcome:
    """Run the engine to its end and explain a death; the code is the program's own."""
    outcome = run(
        Launch(
            argv=plan.command,
            variables=plan.setting.variables,
            cpus=plan.setting.cpus,
            stdin=facts.stdin,
            keep_log=keep_log or quiet,
            show_log=not quiet,
            echo=_echo(request) if keep_log else None,
            interactive=request.chat,
            nice=plan.setting.nice,
        )
    )
    if quiet and outcome.code not in (0, 130) and sys.stderr is not None:
        sys.stderr.flush()
        sys.stderr.buffer.write(outcome.log)
    if outcome.gave_up:
        say(f"the engine did not end within {INTERRUPT_GRACE} s of Ctrl-C: killed")
    elif outcome.code > 128 or outcome.code < 0:
        say_all(explain_death(outcome.code, facts))
    return outcome


def explain_death(code: int, facts: Facts) -> str | None:
    """Return what probably ended an engine with this exit code; None where nothing is known."""
    from bitnet_tuning.launch.failure import explain  # noqa: PLC0415 (an engine seldom dies)

    has_kernels = bool(facts.engine.isa & KERNEL_ISA)
    return explain(code, facts.model.size, facts.host.memory.available, has_kernels)


def say_all(*lines: str | None) -> None:
    """Say each line on stderr, leaving out those that are empty."""
    for line in lines:
        if line:
            say(line)


def _echo(request: Request) -> bytes | None:
    """Return the prompt, with which an engine's output begins; None where that is not known."""
    path = request.prompt_file
    if request.chat:
        return None
    if path is None:
        return os.fsencode(request.prompt or "")
    if not os.path.isfile(path) or os.path.getsize(path) > _LONGEST_ECHO:
        return None
    with open(path, "rb") as file:
        return file.read()


def _check_prompt_file(path: str, chat: bool) -> None:
    """Raise TuningError for a prompt file that is of no use. Of a pipe, as in
    ``-f <(command)``, nothing is read: what it holds comes only once."""
    if chat and _is_stdin(path):
        raise UsageError("argument -f/--file: a chat cannot read its prompt from its own input")
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        return
    try:
        with open(path, "rb") as file:
            empty = file.read(2) in (b"", b"\n")  # the engine drops one newline at the end
    except OSError as error:
        raise MissingError(
            f"cannot read the prompt file {path}: {error.strerror}", "name another one with -f"
        ) from error
    if empty:
        raise UsageError(f"argument -f/--file: the prompt in {path} is empty")


def engine_folders() -> tuple[str, ...]:
    """Return where a build or a model may lie: beside the script, beside this package (the
    same folder but for links), in the current folder."""
    script = os.path.dirname(os.path.abspath(sys.argv[0]))
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return tuple(dict.fromkeys((script, package, os.getcwd())))


def _stdin(request: Request, engine: Engine) -> str:
    """Return what the engine's input will be: none but for a chat, or as ``-f /dev/stdin``.

    An engine that would not notice the end of its input is fed (not on Windows: there only
    Ctrl-C ends its chats).
    """
    if not request.chat:
        return INHERIT if _is_stdin(request.prompt_file) else NO_INPUT
    notices_end = engine.embedded or engine.completion is not None
    return INHERIT if notices_end or os.name == "nt" else FEED


def _is_stdin(path: str | None) -> bool:
    try:
        return path is not None and os.path.samestat(os.stat(path), os.fstat(0))
    except OSError:
        return False
