"""``--prompts``: answer many prompts while the model is loaded only once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

from bitnet_tuning.cli.input import cleaned, read_stdin
from bitnet_tuning.cli.show import show_plan
from bitnet_tuning.cli.stats import before
from bitnet_tuning.console import Progress, at_terminal, clock, counted, say
from bitnet_tuning.engine.probe import Speed, rate_text
from bitnet_tuning.errors import TuningError, UsageError
from bitnet_tuning.launch.failure import shorten
from bitnet_tuning.launch.signals import Stop, Stopped
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.memory import context_of
from bitnet_tuning.prepare import explain_death, finish, prepare
from bitnet_tuning.serve import server
from bitnet_tuning.serve.prompts import Answer, AnswerFile, AnswerStream, Prompt, parse
from bitnet_tuning.serve.server import GoneError, Running
from bitnet_tuning.serve.session import Totals, ask_all
from bitnet_tuning.store.state import identity, read_file

LOG_LINES, SHOWN_IDS = 12, 60
"""Lines printed of the log of a server that ended, and characters of the ids of refused prompts."""

SHOWN_PORT = 8080
"""Port in a plan that is only printed: the default of llama-server."""


def run_prompts(request: Request, options: argparse.Namespace, root: str = "/") -> int:
    """Answer all prompts in a file; return 1 if the engine refused any. Raise TuningError."""
    prompts = parse(_content(options.prompts), request)
    facts, plan = prepare(request, root)
    program = server.server_of(facts.engine)
    model, available = facts.model, facts.host.memory.available
    context = context_of(request.ctx_size, model)
    fitting = server.fitting_slots(model, context, plan.setting.ubatch, available)
    slots, reason = server.choose_slots(options.slots, prompts, fitting)
    if fitting is not None and slots > fitting:
        say(f"warning: {slots} slots may not fit in memory; --slots {fitting} would")

    def command(port: int) -> tuple[str, ...]:
        return server.server_command(
            plan, request, program, model=model.path, slots=slots, context=context, port=port
        )

    if options.dry_run:
        where = "standard input" if options.prompts == "-" else options.prompts
        reasons = {
            **plan.reasons,
            "command": "the engine's server loads the model once and answers all prompts; it gets "
            "any free port, and an API key in its environment",
            "slots": reason,
            "prompts": f"{len(prompts)} in {where}",
        }
        show_plan(facts, plan._replace(command=command(SHOWN_PORT), reasons=reasons), options.json)
        return 0
    setting = [identity(os.path.realpath(model.path)), context, request.extra]
    with Stop() as stop, _answers(options, prompts, setting, stop) as answers:
        if isinstance(answers, AnswerFile):
            _resume(answers, options, len(prompts))
        if len(answers.answered) < len(prompts) and not options.quiet:
            threads = f"threads {plan.reasons['threads']}"
            say(*(before(request, facts, plan) if at_terminal() else (threads,)), reason)
        has_key = "--api-key" in program.flags
        start = partial(server.running, command, plan, has_key, stop.interruptible)
        try:
            totals = _answer_rest(prompts, answers, start, slots, options=options, stop=stop)
        except Stopped as stopped:
            say(f"interrupted ({stopped}): {_so_far(answers, len(prompts))}")
            return 128 + stopped.number
        except GoneError as gone:
            lines = "\n".join(map(shorten, gone.log.strip().splitlines()[-LOG_LINES:]))
            say(lines and f"the last lines of the server's log:\n{lines}")
            say(explain_death(gone.code, facts, plan) or str(gone))
            say(_so_far(answers, len(prompts)))
            return gone.exit_code
        except TuningError:
            say(_so_far(answers, len(prompts)))
            raise
    say(_outcome(answers, len(prompts), None if options.quiet else totals))
    return finish(facts, 1 if answers.refused else 0, options.quiet)


def _answer_rest(
    prompts: tuple[Prompt, ...],
    answers: AnswerFile | AnswerStream,
    start: Callable[[], AbstractContextManager[Running]],
    slots: int,
    *,
    options: argparse.Namespace,
    stop: Stop,
) -> Totals | None:
    """Start the server, ask it the prompts without an answer, and return the sums over them; None
    if every prompt has its answer. Raise TuningError."""
    todo = [prompt for prompt in prompts if prompt.id not in answers.answered]
    if not todo:
        return None
    count, earlier = len(prompts), len(answers.answered)
    with Progress(count, lambda done: f"{done:.0f}/{count}", options.quiet) as progress:
        progress.running("loading the model", earlier)
        with start() as ready:
            progress.running("the first answers", earlier)

            def keep(answer: Answer, totals: Totals) -> None:
                progress.apart(lambda: answers.add(answer))
                done = earlier + totals.prompts
                left = clock(totals.seconds / totals.prompts * (count - done))
                progress.running(f"{_speed(totals)}, about {left} left", done)
                progress.tell(f"{done} of {count} prompts, {_speed(totals)}, about {left} left")

            totals = ask_all(todo, ready, slots, keep, stop.interruptible)
    if options.stats:
        say(_stats(totals, ready.load_seconds))
    return totals


def _content(name: str) -> bytes:
    if name == "-":
        return read_stdin("the prompts, one JSON object or string a line")
    remedy = "name another file with --prompts, or - for standard input"
    return cleaned(read_file(name, f"the prompts in {name}", remedy), name)


def _answers(
    options: argparse.Namespace, prompts: tuple[Prompt, ...], setting: object, stop: Stop
) -> AbstractContextManager[AnswerFile | AnswerStream]:
    if options.output is not None:
        return AnswerFile(options.output, prompts, setting)
    if sys.stdout is None:
        raise UsageError("standard output is closed", "name a file for the answers with -o")
    return nullcontext(AnswerStream(prompts, stop.interruptible))


def _resume(answers: AnswerFile, options: argparse.Namespace, count: int) -> None:
    """Read the earlier answers for ``--resume``, else require an empty file. Raise UsageError."""
    if not options.resume:
        answers.require_empty()
        return
    if answers.read():
        say(f"removed the last line of {answers.path}: that answer was incomplete")
    if not options.quiet:
        say(f"{len(answers.answered)} of {count} prompts have been answered by earlier runs")


def _so_far(answers: AnswerFile | AnswerStream, count: int) -> str:
    to_file = isinstance(answers, AnswerFile)
    hint = "; to go on, add --resume to the same command" if to_file else ""
    return f"answered {len(answers.answered)} of {count} prompts{hint}"


def _outcome(answers: AnswerFile | AnswerStream, count: int, totals: Totals | None) -> str:
    """Return how many prompts were answered, how fast, and which ones the engine refused."""
    parts, refused = [], answers.refused
    if totals:
        now = f", {totals.prompts} of them now," if totals.prompts < count else ""
        how = f"in {totals.seconds:.1f} s: {counted(totals.tokens, 'token')}, {_speed(totals)}"
        parts.append(f"answered {count - len(refused)} of {count} prompts{now} {how}")
    if refused:
        named = shorten(", ".join(map(json.dumps, refused)), SHOWN_IDS)
        where = f" in {answers.path}" if isinstance(answers, AnswerFile) else ""
        parts.append(f'{len(refused)} failed, id {named}: see their "error"{where}')
    elif totals and isinstance(answers, AnswerFile):
        parts.append(f"the answers are in {answers.path}")
    return "; ".join(parts)


def _stats(totals: Totals, load_seconds: float) -> str:
    loaded, found = f"the model was loaded in {load_seconds:.1f} s", totals.timings
    if not any(found.values()):
        return f"{loaded}; the server reported no timings"
    # The server measures each slot on its own, while the slots run at the same time.
    prompt = rate_text(Speed(found["prompt_n"], found["prompt_ms"]))
    generation = rate_text(Speed(found["predicted_n"], found["predicted_ms"]))
    return f"{loaded}; within one slot: prompt {prompt}, generation {generation}"


def _speed(totals: Totals) -> str:
    return f"{totals.tokens / totals.seconds if totals.seconds else 0.0:.1f} tokens/s"
