"""``--prompts``: many prompts, the model loaded once."""

from __future__ import annotations

import os
import sys

from bitnet_tuning.cli.prompts_progress import progress, stats_line, summary
from bitnet_tuning.cli.prompts_slots import Choice, Subject, choose, choose_unmeasured
from bitnet_tuning.cli.show import shown
from bitnet_tuning.console import say
from bitnet_tuning.engine.instruction_sets import KERNEL_ISA
from bitnet_tuning.errors import MissingError, UsageError
from bitnet_tuning.launch.death import explain
from bitnet_tuning.launch.stop import Stop, Stopped
from bitnet_tuning.prepare import Prepared, prepare
from bitnet_tuning.prompts import sink
from bitnet_tuning.prompts.asks import Ask, parse
from bitnet_tuning.prompts.command import Seats, Server, context_of, server_command
from bitnet_tuning.prompts.journal import Journal, Run, identify, journal_of
from bitnet_tuning.prompts.server import GoneError, Running, know_server, running
from bitnet_tuning.prompts.session import Output, Total, ask_all
from bitnet_tuning.store.state import State, default_folder

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from contextlib import AbstractContextManager

    from bitnet_tuning.plan.request import Request
    from bitnet_tuning.prompts.answers import Answer


SHOWN_PORT = 8080
"""In a plan, where no port is looked for: llama-server's own default."""


def run_prompts(request: Request, options: argparse.Namespace, root: str = "/") -> int:
    """Answers all prompts of a file; 1 where the engine refused some. Raises TuningError."""
    asks = parse(_content(options.prompts), request)
    prepared = prepare(request, root)
    state = State(default_folder(os.environ))
    server = know_server(prepared.engine, state)
    job = _Job(asks, prepared, server, state, options=options)
    if options.dry_run:
        return job.show_plan()
    return job.run()


def _content(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read() if sys.stdin else b""
        with open(name, "rb") as file:
            return file.read()
    except OSError as error:
        raise MissingError(
            f"cannot read the prompts in {name}: {error.strerror}",
            "name another file with --prompts, or - for standard input",
        ) from error


class _Job:
    """One call of the program."""

    def __init__(
        self,
        asks: tuple[Ask, ...],
        prepared: Prepared,
        server: Server,
        state: State,
        *,
        options: argparse.Namespace,
    ) -> None:
        self.asks = asks
        self.prepared = prepared
        self.server = server
        self.state = state
        self.options = options
        self.context = context_of(prepared.request, prepared.choice.model)
        self.stop = Stop()

    def show_plan(self) -> int:
        choice = choose_unmeasured(self.options.slots, self.asks, self._subject())
        plan = self.prepared.plan
        where = "standard input" if self.options.prompts == "-" else self.options.prompts
        reasons = {
            **plan.reasons,
            "command": "the engine's server answers all prompts, the model loaded once; "
            "its port is any that is free, a key for it is in the environment",
            "slots": choice.reason,
            "prompts": f"{len(self.asks)} in {where}",
        }
        command = self._command(Seats(choice.slots, self.context), SHOWN_PORT)
        shown(plan._replace(command=command, reasons=reasons), self.options)
        return 0

    def run(self) -> int:
        if sys.stdout is None:
            raise UsageError("standard output is closed: the answers go there")
        run = identify(self.asks, self.prepared.request, self.prepared.plan.model, self.context)
        with journal_of(self.state, run) as journal, self.stop:
            try:
                return self._resumed(run, journal)
            except Stopped as stopped:
                say(f"ended by {stopped}: {_so_far(journal)}")
                return 128 + stopped.number
            except GoneError as gone:
                self._explain(gone)
                say(_so_far(journal))
                return gone.exit_code
            finally:
                _say_notes(journal)

    def _resumed(self, run: Run, journal: Journal) -> int:
        journal.open(self.options.resume)
        _say_notes(journal)
        first = begin(run, journal, self.options.resume)
        output = Output(first, self.stop.interruptible)
        output.show(journal.answers.values())
        todo = [ask for ask in self.asks if ask.place not in journal.answers]
        if self.options.resume and not self.options.quiet:
            say(f"{len(self.asks) - len(todo)} of {len(self.asks)} prompts were answered before")
        if todo:
            self._answer(todo, journal, output)
        journal.close(complete=True)
        refused = sum(answer.refused for answer in journal.answers.values())
        if refused:
            say(f"the engine refused {refused} of {len(self.asks)} prompts: see their `error`")
        return 1 if refused else 0

    def _answer(self, todo: list[Ask], journal: Journal, output: Output) -> None:
        quiet = self.options.quiet
        choice = self._slots(todo)
        if not quiet:
            say(f"threads {self.prepared.plan.reasons['threads']}")
            say(choice.reason)
        with self._server(Seats(choice.slots, self.context)) as server:
            with progress(len(self.asks), len(journal.answers), quiet) as shows:

                def keep(answer: Answer, total: Total) -> None:
                    journal.add(answer)  # on disk first: what is shown is never asked again
                    output.show((answer,))
                    shows.update(total)

                total = ask_all(todo, server, choice.slots, keep, self.stop.interruptible)
            if not quiet:
                say(summary(total, choice.slots, server.load_seconds))
            if self.options.stats:
                say(stats_line(total))

    def _slots(self, todo: list[Ask]) -> Choice:
        return choose(
            self.options.slots,
            todo,
            self._subject(),
            self._server,
            waiting=self.stop.interruptible,
            note=_unsaid if self.options.quiet else say,
        )

    def _server(self, seats: Seats) -> AbstractContextManager[Running]:
        return running(
            lambda port: self._command(seats, port),
            self.prepared.plan,
            self.server.knows_keys,
            self.stop.interruptible,
        )

    def _command(self, seats: Seats, port: int) -> tuple[str, ...]:
        plan, request = self.prepared.plan, self.prepared.request
        return server_command(plan, request, self.server, seats, port)

    def _subject(self) -> Subject:
        prepared = self.prepared
        return Subject(
            prepared.host,
            self.server,
            prepared.choice.model,
            prepared.plan,
            prepared.request,
            self.context,
            self.state,
        )

    def _explain(self, gone: GoneError) -> None:
        lines = gone.last_lines()
        if lines:
            say(f"the server's last lines:\n{lines}")
        prepared = self.prepared
        has_kernels = bool(prepared.engine.isa & KERNEL_ISA)
        size, available = prepared.choice.model.size, prepared.host.memory.available
        say(explain(gone.code, size, available, has_kernels) or str(gone))


def begin(run: Run, journal: Journal, resume: bool) -> int:
    """Looks at what standard output holds already, mends its end, and answers the index of
    the first prompt whose answer is to be printed."""
    content = sink.contents()
    if content is None:
        if resume and sink.is_filled_file():
            say("cannot see what the output file holds: answers are printed from the first on")
        return 0
    found = sink.standing(content, run.asks, journal.answers) if resume else sink.NOTHING
    if len(found.answers) < len(run.asks) and not journal.existed:
        found = sink.NOTHING  # others' answers, perhaps to the same prompts with other flags
    if found == sink.NOTHING and content:
        found = sink.NOTHING._replace(open_line=not content.endswith(b"\n"))
    sink.mend(found, len(content))
    for answer in found.answers:
        if answer.place not in journal.answers:
            journal.add(answer)
    return len(found.answers)


def _so_far(journal: Journal) -> str:
    count = len(journal.answers)
    return (
        f"{count} of {len(journal.run.asks)} prompts are answered; --resume goes on with the rest"
    )


def _unsaid(_text: str) -> None:
    """For --quiet."""


def _say_notes(journal: Journal) -> None:
    while journal.notes:
        say(journal.notes.pop(0))
