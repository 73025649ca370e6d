"""Flags that several programs share, their checks, and the request made from them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from bitnet_tuning.console import ADDRESS, columns, command, folded, say
from bitnet_tuning.errors import MissingError, UsageError
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.plan.memory import AUTO, WAYS
from bitnet_tuning.plan.setting import MOST_THREADS_ENGINE
from bitnet_tuning.store.state import State

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Action = Callable[[argparse.Namespace, State], int]

LARGEST_CONTEXT = 1 << 24
"""Largest context size accepted, in tokens. Published models have at most 10 million."""

LEAST_CONTEXT = 32
"""Smallest context size accepted; llama-completion aborts if a prompt has more tokens."""

MOST_SLOTS = 256
"""Largest number of server slots accepted: LLAMA_MAX_SEQ of llama.cpp (once it was 64)."""

_INFINITE = float("inf")
_MARK = "\0"
"""Prefix that carries a prompt through argparse. No argument of a process can contain it."""

_MODEL, _PROMPT, _OUTPUT, _MANY = "model and engine", "prompt", "output", "many prompts"
_SAMPLING = "sampling (the engine's defaults, except for the temperature)"
_SPEED = "threads, batches and memory (chosen automatically by default)"

# argparse looks up translations of its headings, which Python does not ship. The lookup imports
# locale and delays the start by a millisecond.
argparse._ = str  # type: ignore[attr-defined]


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, options: Any, *_: Any) -> NoReturn:
        from bitnet_tuning.cli.version import version_text  # noqa: PLC0415 (seldom wanted)

        print(version_text(getattr(options, "engine", None)))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are UsageErrors, printed in one line that names the flag."""

    def __init__(
        self, name: str | None = None, form: str = "[options]", *examples: str, **options: Any
    ) -> None:
        """Show ``form`` behind a command's ``name`` in the usage, and ``examples`` in the help."""
        if name:
            options |= {"prog": command(name), "usage": f"%(prog)s {form}"}
        super().__init__(**options)
        self._examples, self.exits = examples, "0 all well, 1 failed"
        what = "print the version, and that of the engine if it is known"
        self._optionals.add_argument("--version", action=_Version, nargs=0, help=what)

    def format_help(self) -> str:
        from textwrap import TextWrapper  # noqa: PLC0415 (only for help)

        examples = [folded(f"  {self.prog} {each}", columns() - 2) for each in self._examples]
        examples = [each.replace("\n", " \\\n") for each in examples]
        usual = ("2 wrong usage", "3 something missing", "4 not possible here")
        more = [each for each in usual if f" {each}" not in f", {self.exits}"]
        codes = f"exit codes: {', '.join([self.exits, *more])}"
        examples = ["examples:", *examples, ""] if examples else []
        self.epilog = "\n".join([*examples, codes, ADDRESS])
        fold = TextWrapper(columns(), break_long_words=False, break_on_hyphens=False).fill
        return "".join(f"{fold(line)}\n" for line in super().format_help().splitlines())

    def parse_args(self, arguments: list[str]) -> argparse.Namespace:  # type: ignore[override]
        options, unknown = self.parse_known_args(arguments)
        if unknown:
            from bitnet_tuning.cli.commands import unknown_word  # noqa: PLC0415 (a mistake)

            raise unknown_word(self, unknown[0])
        return options

    def _get_formatter(self) -> argparse.HelpFormatter:
        # argparse makes a formatter for each added flag. To find the terminal's width, it would
        # import shutil and with it three compression libraries: a tenth of the time to start.
        return argparse.RawDescriptionHelpFormatter(prog=self.prog, width=columns() - 2)

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, "--help lists all flags")

    def group(self, title: str) -> argparse._ArgumentGroup:
        """Return the group of flags with this heading in the help; add it if there is none."""
        found = (group for group in self._action_groups if group.title == title)
        return next(found, None) or self.add_argument_group(title)


def split_extra(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Return our own arguments, and those after ``--``, which go to the engine."""
    ours: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--":
            break
        # A prompt may look like a flag (``-p -x``), so it is joined to its flag with "=". Even
        # then argparse drops the value ``--`` in many versions of Python: hence the mark.
        if argument in ("-p", "--prompt"):
            prompt = next(rest, None)
            ours.append("--prompt" if prompt is None else f"--prompt={_MARK}{prompt}")
        elif argument.startswith("--prompt="):
            ours.append(argument.replace("=", f"={_MARK}", 1))
        else:
            ours.append(argument)
    return ours, tuple(rest)


def integer(low: int, high: int = (1 << 31) - 1) -> Callable[[str], int]:
    """Return an argparse type that accepts whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.removeprefix("-").isdecimal() and len(text) < 20):
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be from {low} to {high}, not {value}")
        return value

    return parse


def number(low: float, high: float = _INFINITE) -> Callable[[str], float]:
    """Return an argparse type that accepts finite numbers from ``low`` to ``high``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not low <= value <= high or value == _INFINITE:  # also true for NaN
            limits = f"{low:g} or more" if high == _INFINITE else f"from {low:g} to {high:g}"
            raise argparse.ArgumentTypeError(f"must be {limits}, not {text}")
        return value

    return parse


def prompt(text: str) -> str:
    """Return a prompt without the prefix that ``split_extra`` added: an argparse type."""
    text = text.removeprefix(_MARK)
    if not text:
        raise argparse.ArgumentTypeError("the prompt is empty")
    if text.isascii():
        return text
    from bitnet_tuning.cli.input import cleaned  # noqa: PLC0415 (imports this module's users)

    return os.fsdecode(cleaned(os.fsencode(text), "argument -p/--prompt: the prompt"))


def expanded(text: str) -> str:
    """Return a path with its tilde, as in ``--model=~/FILE``, expanded: an argparse type."""
    return os.path.expanduser(text)


def add_engine(parser: argparse._ActionsContainer, model: bool = False) -> None:
    """Add ``--engine`` and, with ``model``, ``-m`` before it."""
    if model:
        what = "GGUF model file (default: found automatically)"
        parser.add_argument("-m", "--model", metavar="FILE", help=what)
    what = "llama-cli, a folder that contains it, or `embedded` (default: found automatically)"
    parser.add_argument("--engine", metavar="PATH", help=what)


def add_no_profile(parser: argparse._ActionsContainer) -> None:
    """Add ``--no-profile``, stored as ``profile``."""
    what = "ignore saved measurements"
    parser.add_argument("--no-profile", dest="profile", action="store_false", help=what)


def add_run(parser: Parser, plans: bool = False) -> None:
    """Add a run's flags: those of bitnet.cpp's run_inference.py, and ours. Each is stored under
    the name of its field in ``Request``. With ``plans``, leave out those that change no plan."""
    add_engine(parser.group(_MODEL), model=True)
    what = "run a build without AVX2 and NEON, which writes garbage with i2_s models"
    parser.group(_MODEL).add_argument("--force", action="store_true", help=what)
    add = parser.group(_PROMPT).add_argument
    what = "text to continue, with -cnv the system prompt; -: read it from standard input"
    add("-p", "--prompt", type=prompt, metavar="TEXT", help=what)
    what = (
        "number of tokens to generate; -1: until the model ends, -2: until the context is full "
        "(default: %(default)s)"
    )
    add("-n", "--n-predict", type=integer(-2), default=128, metavar="N", help=what)
    what = "context size in tokens; 0: the model's own (default: %(default)s)"
    context = integer(0, LARGEST_CONTEXT)
    add("-c", "--ctx-size", type=context, default=2048, metavar="N", help=what)
    add("-cnv", "--conversation", dest="chat", action="store_true", help="chat on the terminal")
    what = "temperature; 0: always the most likely token (default: %(default)s)"
    add = parser.group(_SAMPLING).add_argument
    add("-temp", "--temperature", type=number(0), default=0.8, metavar="T", help=what)
    what = "threads for token generation; 0: chosen automatically (default: %(default)s)"
    add = parser.group(_SPEED).add_argument
    threads = integer(0, MOST_THREADS_ENGINE)
    add("-t", "--threads", type=threads, default=0, metavar="N", help=what)
    add_no_profile(parser.group(_SPEED))
    add = parser.group(_OUTPUT).add_argument
    what = "print the command and its reasons; run nothing"
    add("--dry-run", action="store_true", help=argparse.SUPPRESS if plans else what)
    what = "print the plan as JSON"
    add("--json", action="store_true", help=what if plans else f"{what} (with --dry-run)")
    _add_more(parser, plans)
    _add_many(parser, plans)


def _add_more(parser: Parser, plans: bool) -> None:
    what = "read the prompt from this file; -: from standard input"
    add = parser.group(_PROMPT).add_argument
    add("-f", "--file", dest="prompt_file", type=expanded, metavar="FILE", help=what)
    add = parser.group(_SAMPLING).add_argument
    share = number(0, 1)
    add("--top-k", type=integer(0), metavar="K", help="choose among the K likeliest tokens; 0: all")
    what = "choose among the likeliest tokens whose probabilities add up to P, 0 to 1"
    add("--top-p", type=share, metavar="P", help=what)
    what = "choose among tokens at least P times as likely as the likeliest, 0 to 1"
    add("--min-p", type=share, metavar="P", help=what)
    add("--repeat-penalty", type=number(0), metavar="X", help="penalty for repeating; 1: none")
    seed = integer(-1, (1 << 32) - 1)
    add("--seed", type=seed, metavar="N", help="random seed; -1: another one for each run")
    add = parser.group(_SPEED).add_argument
    threads, tokens = integer(1, MOST_THREADS_ENGINE), integer(1)
    add("-tb", "--threads-batch", type=threads, metavar="N", help="threads for prompt processing")
    what = "most threads that are chosen automatically for token generation (default: 12)"
    add("--max-threads", type=threads, metavar="N", help=what)
    what = "logical batch size in tokens"
    add("-b", "--batch-size", dest="batch", type=tokens, metavar="N", help=what)
    what = "micro-batch size in tokens"
    add("-ub", "--ubatch-size", dest="ubatch", type=tokens, metavar="N", help=what)
    what = (
        "how the model is loaded: mapped, mapped and locked in memory, copied, copied into huge "
        "pages, or auto: as measured best here, else mapped (default: %(default)s)"
    )
    add("--memory", choices=WAYS, default=AUTO, help=what)
    what = (
        "keep waiting threads spinning, bind the engine to its CPUs, raise its priority and lock "
        "the model in memory, at the expense of other programs"
    )
    add("--performance-mode", dest="performance", action="store_true", help=what)
    if plans:
        return
    either = parser.group(_OUTPUT).add_mutually_exclusive_group().add_argument
    what = "show the engine's log on a terminal, too, where it is hidden unless the engine fails"
    either("-v", "--verbose", action="store_true", help=what)
    what = "hide the engine's log everywhere, and the lines that we print around the answer"
    either("--quiet", action="store_true", help=what)
    what = "print the speeds and the time to the first token after the run, or all figures as JSON"
    add = parser.group(_OUTPUT).add_argument
    add("--stats", nargs="?", const=True, choices=("json",), metavar="json", help=what)


def _add_many(parser: Parser, plans: bool) -> None:
    add = parser.group(_MANY).add_argument
    what = "answer every prompt in this file of JSON lines (`-`: on standard input)"
    add("--prompts", type=expanded, metavar="FILE", help=what)
    what = (
        "prompts answered at a time (default: 1 with temperature 0 or a seed, else up to 4, as "
        "memory allows)"
    )
    add("--slots", type=integer(1, MOST_SLOTS), metavar="N", help=what)
    if plans:
        return
    what = "append each answer to this file when it is complete (default: standard output)"
    add("-o", "--output", type=expanded, metavar="FILE", help=what)
    add("--resume", action="store_true", help="answer only prompts that -o has no answer to yet")


def root_folder(text: str) -> str:
    """Return the folder if it exists, else raise MissingError: an argparse type."""
    if not os.path.isdir(expanded(text)):
        raise MissingError(f"no such folder: {text}", "name a folder that contains sys and proc")
    return expanded(text)


def add_root(parser: argparse.ArgumentParser, what: str) -> None:
    """Add ``--root``, the folder that stands for the root of the machine to look at."""
    parser.add_argument("--root", type=root_folder, default="/", metavar="DIR", help=what)


def add_commands(parser: Parser, default: str) -> Callable[..., argparse.ArgumentParser]:
    """Return a function that adds a subcommand by its name, the function that runs it, its help."""
    what = f"what to do (default: {default})"
    commands = parser.add_subparsers(metavar="COMMAND", required=True, help=what, prog=parser.prog)

    def add(name: str, action: Action, what: str) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = commands.add_parser(name, help=what, description=what)
        added.set_defaults(action=action)
        return added

    return add


def run_command(parser: Parser, arguments: list[str], default: str) -> int:
    """Run a subcommand, else the ``default``, and warn if the state folder cannot be used."""
    first = arguments[0] if arguments else "-"
    if first.startswith("-") and first not in ("-h", "--help", "--version"):
        arguments = [default, *arguments]
    options = parser.parse_args(arguments)
    state = State()
    try:
        return int(options.action(options, state))
    finally:
        say(state.warning and f"warning: {state.warning}")


_ENGINE_VARIABLES: dict[str, tuple[str, Callable[[str], object]]] = {
    "n_predict": ("LLAMA_ARG_N_PREDICT", integer(-2)),
    "ctx_size": ("LLAMA_ARG_CTX_SIZE", integer(0, LARGEST_CONTEXT)),
    "temperature": ("LLAMA_ARG_TEMPERATURE", number(0)),
    "batch": ("LLAMA_ARG_BATCH", integer(1)),
    "ubatch": ("LLAMA_ARG_UBATCH", integer(1)),
}
"""llama.cpp's own variables (set_env in its common/arg.cpp), over which the plan's flags decide."""


def read_request(parser: Parser, arguments: list[str]) -> tuple[Request, argparse.Namespace]:
    """Parse a run's flags. llama.cpp's own variables may set defaults. Raise UsageError."""
    ours, extra = split_extra(arguments)
    found: dict[str, tuple[str, object]] = {}
    for field, (name, kind) in _ENGINE_VARIABLES.items():
        try:
            if text := os.environ.get(name, "").strip():
                found[field] = name, kind(text)
        except argparse.ArgumentTypeError as error:
            raise UsageError(f"{name}: {error}", f"correct it, or `unset {name}`") from error
    parser.set_defaults(**{field: value for field, (_, value) in found.items()})
    options = parser.parse_args(ours)
    if options.json and not options.dry_run:
        raise UsageError("--json prints a plan and needs --dry-run", "add --dry-run")
    if 0 < options.ctx_size < LEAST_CONTEXT:
        name, value = found.get("ctx_size", ("", None))
        by = name if value == options.ctx_size else "argument -c/--ctx-size"
        raise UsageError(f"{by}: must be 0 or at least {LEAST_CONTEXT}")
    fields = {name: value for name, value in vars(options).items() if name in Request._fields}
    named = {field: name for field, (name, value) in found.items() if fields[field] == value}
    return Request(**fields, named=tuple(named.items()), extra=extra), options
