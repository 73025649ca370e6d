"""Take a request to a finished run: find engine and model, read facts, plan, execute."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from bitnet_tuning.console import at_terminal, printable, say, tell
from bitnet_tuning.engine.find import EMBEDDED, Engine, Location, checkout_of, locate_all, on_path
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA
from bitnet_tuning.engine.known import check_start, know, know_crowding, with_architecture
from bitnet_tuning.errors import MissingError, TuningError
from bitnet_tuning.launch.run import run
from bitnet_tuning.launch.start import FEED, INHERIT, INTERRUPT_GRACE, NO_INPUT, Launch, Outcome
from bitnet_tuning.machine.cgroups import mount_holding, read_mounts, read_task_limits
from bitnet_tuning.machine.detect import count_running, read_host, read_privileges
from bitnet_tuning.machine.host import Crowding, Host
from bitnet_tuning.machine.memory import cached_nodes, read_huge_pages
from bitnet_tuning.machine.root import Root
from bitnet_tuning.model.find import Choice, choose_model, slim_hint
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.command import memory_policy
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.memory import HUGE, LOCKED, least_tokens
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.threads import asked_threads, choose_threads
from bitnet_tuning.store.state import State

LONGEST_PROMPT = 1 << 24
"""Largest prompt file, in bytes, that is read."""


def prepare(request: Request, root: str = "/", state: State | None = None) -> tuple[Facts, Plan]:
    """Return the facts below the folder ``root`` and the plan for a request. Print warnings to
    stderr. Raise TuningError if the request cannot be run."""
    state, system = state or State(), Root(root)
    facts = read_facts(request, state, root)
    plan = make_plan(request, facts)
    # Other programs matter if their tasks and the plan's threads are too many for all cores.
    cores, threads = facts.host.cores_in(None), plan.setting.threads
    may_wait = system.live and cores > 1 and not _ignores_load()
    if may_wait and threads + count_running(system) > cores:
        from bitnet_tuning.machine.load import watch  # noqa: PLC0415 (on a busy machine)

        facts = facts._replace(neighbours=watch(facts.host, system))
        plan = make_plan(request, facts) if facts.neighbours else plan
    if facts.engine.embedded and EMBEDDED not in (request.engine, os.environ.get("BITNET_ENGINE")):
        say("no compiled engine found: using the embedded one")
    slow = slow_drive(facts.model.path, system, bool(facts.host.wsl))
    warnings = tuple(each for each in (*plan.warnings, slow, state.warning) if each)
    say(facts.note, *(f"warning: {each}" for each in warnings))
    return facts, plan._replace(warnings=warnings)


def slow_drive(path: str, root: Root, wsl: bool = False) -> str | None:
    """Return a warning if a model lies on a Windows drive or on another machine's file system."""
    path = os.path.realpath(path)
    # Outside WSL, these have no device and the major number 0 (Linux: admin-guide/devices.txt), so
    # most runs need not read the table of mounts.
    if root.live and not wsl and (os.name == "nt" or os.major(os.stat(path).st_dev)):
        return None
    mount = mount_holding(path, read_mounts(root))
    slow = mount and mount.slow
    return f"the model lies on {slow}: copy it to a local disk" if slow else None


def _ignores_load() -> bool:
    return os.environ.get("BITNET_IGNORE_LOAD", "0") not in ("", "0")


def read_facts(request: Request, state: State, root: str = "/") -> Facts:
    """Return the facts that a plan for the request needs. Raise TuningError if any is missing."""
    host = read_host(root)
    if host.cores_hidden:
        from bitnet_tuning.machine.wsl import with_windows_cores  # noqa: PLC0415

        host = with_windows_cores(host, root, ask=True)
    engine, choice = find_pair(request.engine, request.model, state, host)
    profile = None
    if request.profile and state.holds("profile"):
        from bitnet_tuning.plan.profile import load  # noqa: PLC0415 (many users have none)

        profile = load(state, host, engine, choice.model)
    setting, file = profile.setting if profile else None, request.prompt_file
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
        prompt_file_bytes=os.path.getsize(file) if file and os.path.isfile(file) else None,
        least_tokens=least_tokens(_prompt(request) or b""),
        force=request.force,
        huge=read_huge_pages(Root(root)) if request.memory == HUGE else None,
    )
    if root == "/":
        given = setting or asked_threads(request.threads, os.environ)
        may_try = not (given or _ignores_load())
        facts = facts._replace(host=crowded_host(host, engine, state, may_try))
    if len(host.nodes) > 1:
        numactl = on_path(os.environ.get("PATH", ""), "numactl") is not None
        if numactl:  # where containers forbid set_mempolicy(2), it ends with an error
            from bitnet_tuning.launch.background import capture  # noqa: PLC0415 (few machines need it)

            command = (*memory_policy(min(node.id for node in host.nodes), None), "true")
            numactl = capture(command, seconds=5).code == 0
        cached = cached_nodes(Root(root), facts.model.path)
        facts = facts._replace(numactl=numactl, cached=cached)
    return facts


def crowded_host(
    host: Host, engine: Engine, state: State, may_try: bool = True, again: bool = False
) -> Host:
    """Return the host with what a trial of the engine found out about a hypervisor that does not
    run all CPUs at once. Make a trial if ``may_try`` and there is none, or with ``again``."""
    attempt = None if engine.ran is False or not may_try else lambda: _try_threads(host, engine)
    try:
        return know_crowding(host, state, attempt, again)
    except TuningError:  # the engine cannot run the demo model, or it is not installed
        return host


def _try_threads(host: Host, engine: Engine) -> Crowding:
    from bitnet_tuning import demo  # noqa: PLC0415 (once on a host)
    from bitnet_tuning.engine.probe import find_limit  # noqa: PLC0415 (once on a host)
    from bitnet_tuning.launch.background import Captured, capture  # noqa: PLC0415
    from bitnet_tuning.model.gguf import read_model  # noqa: PLC0415

    model = read_model(demo.right_model(engine.i2_s))
    facts = Facts(host, engine, model, "the demo model", os.environ)
    request = Request(n_predict=1, ctx_size=512, batch=32)

    def run(threads: int, batch: int, seconds: float) -> Captured:
        prompt = "threads " * max(16, 7 * batch)
        plan = make_plan(request._replace(prompt=prompt, threads=threads, ubatch=batch), facts)
        return capture(plan.command, plan.setting.variables, seconds, cpus=plan.setting.cpus)

    return find_limit(choose_threads(Request(), host, {}).setting.threads, run)


def with_all_means(facts: Facts) -> Facts:
    """Return the facts that a tuning needs, which may try any knob."""
    return facts._replace(privileges=read_privileges(), huge=read_huge_pages(Root()))


def find_engine(named: str | None, state: State, model_named: str | None = None) -> Engine:
    """Return the engine to use; of several builds, the best one for the model of the run. Raise
    MissingError if there is no engine, UnsupportedError if none can be used."""
    located = locate_all(named, os.environ, engine_folders())
    if len(located) == 1:
        return check_start(know(located[0], state))
    try:
        return find_pair(named, model_named, state)[0]
    except MissingError:  # there is no model
        return _choose(tuple(know(each, state) for each in located), None, state, None)


def find_pair(
    engine_named: str | None, model_named: str | None, state: State, host: Host | None = None
) -> tuple[Engine, Choice]:
    """Return the engine and the model to use. Raise MissingError or UnsupportedError."""
    engines, choice = find_builds(engine_named, model_named, state)
    if len(engines) > 1:
        return _choose(engines, choice.model, state, host), choice
    return check_start(engines[0]), choice


def find_builds(
    engine_named: str | None, model_named: str | None, state: State
) -> tuple[tuple[Engine, ...], Choice]:
    """Return all builds that can be found, usually one, and the model. Raise MissingError."""
    located = locate_all(engine_named, os.environ, engine_folders())
    engines = tuple(know(each, state) for each in located)
    choice = find_model(model_named, located[0], state)
    architecture = choice.model.architecture
    return tuple(with_architecture(each, architecture) for each in engines), choice


def runs_unnamed(path: str, engine: Location | None, state: State) -> bool:
    """Return whether a run with an engine has the model in a file if it names none."""
    try:
        used = find_model(None, engine, state).model.path
    except TuningError:
        return False
    return os.path.realpath(used) == os.path.realpath(path)


def find_model(named: str | None, engine: Location | None, state: State) -> Choice:
    """Return the model of a run with an engine, also in its checkout. Raise MissingError."""
    folders = engine_folders()
    checkout = checkout_of(engine.cli) if engine else None
    if checkout and checkout not in folders:
        folders = (*folders, checkout)
    embedded = engine is not None and engine.embedded
    return choose_model(named, os.environ, folders, embedded, state)


def _choose(
    engines: tuple[Engine, ...], model: ModelFile | None, state: State, host: Host | None
) -> Engine:
    from bitnet_tuning.engine.builds import choose_build, load_fastest  # noqa: PLC0415

    host = host or read_host()
    measured = load_fastest(state, host, engines, model) if model else None
    return choose_build(engines, host, model, measured)


def execute(
    request: Request, facts: Facts, plan: Plan, hidden: bool = False, timed: bool = False
) -> Outcome:
    """Run the engine to its end, and print what probably ended it if it was killed. Its log is
    ``hidden`` unless it fails. If ``timed``, the outcome has the log and the time of the first
    token, and a terminal shows that the model loads."""
    outcome = run(
        Launch(
            argv=plan.command,
            variables=plan.setting.variables,
            cpus=plan.setting.cpus,
            stdin=facts.stdin,
            keep_log=timed or hidden,
            show_log=not hidden,
            echo=_prompt(request) if timed else None,
            # The chat program of llama.cpp shows by itself that it loads, and writes to a terminal.
            watched=timed and at_terminal() and not (request.chat and facts.engine.completion),
            interactive=request.chat,
            nice=plan.setting.nice,
        )
    )
    if outcome.gave_up:
        say(f"the engine did not exit within {INTERRUPT_GRACE} s after Ctrl-C and was killed")
    elif outcome.code not in (0, 130):
        death = explain_death(outcome.code, facts, plan)
        if hidden and sys.stderr is not None and not sys.stderr.isatty():
            with suppress(OSError):  # a full disk
                sys.stderr.flush()
                sys.stderr.buffer.write(outcome.log)
        elif hidden and (death or outcome.code < 128):  # other signals end a run on purpose
            from bitnet_tuning.launch.failure import excerpt  # noqa: PLC0415 (seldom)

            tell(printable(excerpt(outcome.log.decode("utf-8", "replace"))))
            more = "; -c N makes room for a longer prompt" * (b"too long" in outcome.log)
            say(f"the engine failed with exit code {outcome.code}; -v shows its whole log{more}")
        say(death)
    return outcome


def finish(facts: Facts, code: int, quiet: bool = False) -> int:
    """Return the exit code. After a good run, tell a terminal of a smaller embedding's gain."""
    if not (code or quiet) and at_terminal():
        say(slim_hint(facts.model, State()))
    return code


def explain_death(code: int, facts: Facts, plan: Plan) -> str | None:
    """Return what probably ended an engine with this exit code; None if that is unknown."""
    from bitnet_tuning.launch.failure import explain, thread_shortage  # noqa: PLC0415 (seldom)

    # libgomp exits with 1 if it cannot start a thread; all others abort.
    if code in (1, 134):
        threads = max(plan.setting.threads, plan.setting.threads_batch)
        if found := thread_shortage(read_task_limits(Root()), threads):
            return found
    has_kernels = bool(facts.engine.isa & KERNEL_ISA)
    return explain(code, facts.model.size, facts.host.memory.available, has_kernels)


def _prompt(request: Request) -> bytes | None:
    """Return the prompt, with which the engine's output begins; None if it is unknown."""
    path = request.prompt_file
    if request.chat:
        return None
    if path is None:
        return os.fsencode(request.prompt or "")
    with open(path, "rb") as file:
        return file.read()


def engine_folders() -> tuple[str, ...]:
    """Return the folders in which builds and models are looked for."""
    # The script may be a symbolic link, and thus not beside this package.
    script = os.path.dirname(os.path.abspath(sys.argv[0]))
    modules = os.path.dirname(os.path.abspath(__file__))
    # With python3 -m, the script is one of the modules.
    folders = (script, os.path.dirname(modules), os.getcwd())
    return tuple(dict.fromkeys(each for each in folders if each != modules))


def _stdin(request: Request, engine: Engine) -> str:
    """Return where the engine's standard input comes from, as in ``Launch.stdin``."""
    if not request.chat:
        return INHERIT if is_stdin(request.prompt_file) else NO_INPUT
    # A chat of bitnet.cpp's first generation does not notice the end of its input, so it is fed
    # through a pipe. On Windows only Ctrl-C ends it.
    notices_end = engine.embedded or engine.completion is not None
    return INHERIT if notices_end or os.name == "nt" else FEED


def is_stdin(path: str | None) -> bool:
    """Return whether a path names this process's standard input."""
    try:
        return path is not None and os.path.samestat(os.stat(path), os.fstat(0))
    except OSError:
        return False
