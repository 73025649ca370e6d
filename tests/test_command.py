"""Argument lists for the engines of every generation."""

from __future__ import annotations

import sys

import pytest

from bitnet_tuning.cli.arguments import Parser, add_run, read_request
from bitnet_tuning.engine.find import Engine, Location
from bitnet_tuning.launch.start import FEED, NO_INPUT
from bitnet_tuning.plan.command import build_command
from bitnet_tuning.plan.facts import Facts, Plan, Request
from bitnet_tuning.plan.setting import Setting
from tests.profile_samples import MODEL
from tests.test_plan import a_host

COMMON = {"-m", "-p", "-f", "-n", "-t", "-tb", "-c", "--temp", "-b", "-ub", "--mlock"}
FIRST_FLAGS = frozenset(COMMON | {"-cnv", "--no-escape", "--simple-io"})
"""Flags in the help of bitnet.cpp's first llama-cli, as far as they matter here."""
COMPLETION_FLAGS = FIRST_FLAGS | {"-no-cnv", "-sys", "-sysf", "-st"}
CHAT_FLAGS = frozenset(COMMON | {"--no-escape", "--simple-io", "-sys", "-sysf", "-st"})
"""Flags of the llama-cli beside a llama-completion, which always chats and has no -cnv."""

FIRST = Engine(
    location=Location("/build/bin/llama-cli", "found"),
    version="",
    flags=FIRST_FLAGS,
    chat_flags=FIRST_FLAGS,
    openmp="libomp",
    isa=frozenset(),
    i2_s=True,
    architectures={},
    files=(),
    completion=None,
)
MAINLINE = FIRST._replace(
    flags=COMPLETION_FLAGS, chat_flags=CHAT_FLAGS, completion="/build/bin/llama-completion"
)
EMBEDDED = FIRST._replace(
    location=Location("/package/embedded.py", "none was found", embedded=True),
    flags=FIRST_FLAGS | {"-no-cnv", "-sys"},
    chat_flags=FIRST_FLAGS | {"-no-cnv", "-sys"},
)

PLAN = Plan(Setting(4, 6), {})
HELLO = Request(prompt="hello")


def command(
    request: Request, engine: Engine = FIRST, plan: Plan = PLAN, stdin: str = NO_INPUT
) -> list[str]:
    model = MODEL._replace(path="/models/m.gguf")
    facts = Facts(a_host(4), engine, model, "named", {}, stdin=stdin)
    return list(build_command(plan, request, facts))


def after(arguments: list[str], flag: str) -> str:
    """Return the value of a flag that occurs once."""
    assert arguments.count(flag) == 1, arguments
    return arguments[arguments.index(flag) + 1]


def test_the_whole_command_for_a_prompt_on_the_first_generation() -> None:
    assert " ".join(command(HELLO)) == (
        "/build/bin/llama-cli -m /models/m.gguf -n 128 -t 4 -p hello -ngl 0 -c 2048 "
        "--temp 0.8 -tb 6 --no-escape"
    )


@pytest.mark.parametrize(
    ("engine", "chat", "program"),
    [
        (FIRST, False, ["/build/bin/llama-cli"]),
        (FIRST, True, ["/build/bin/llama-cli"]),
        (MAINLINE, False, ["/build/bin/llama-completion"]),
        (MAINLINE, True, ["/build/bin/llama-cli"]),
        (EMBEDDED, False, [sys.executable, "/package/embedded.py"]),
        (EMBEDDED, True, [sys.executable, "/package/embedded.py"]),
    ],
)
def test_the_program_that_is_started(engine: Engine, chat: bool, program: list[str]) -> None:
    arguments = command(HELLO._replace(chat=chat), engine)
    assert arguments[: len(program) + 1] == [*program, "-m"]


@pytest.mark.parametrize(
    ("engine", "chat", "modes"),
    [
        (FIRST, False, []),  # it completes and exits, and does not know -no-cnv
        (FIRST, True, ["-cnv"]),
        (MAINLINE, False, ["-no-cnv"]),
        (MAINLINE, True, []),  # llama-cli refuses -cnv there
        (EMBEDDED, False, ["-no-cnv"]),
        (EMBEDDED, True, ["-cnv"]),
    ],
)
def test_each_engine_gets_its_own_flag_for_a_chat(
    engine: Engine, chat: bool, modes: list[str]
) -> None:
    arguments = command(HELLO._replace(chat=chat), engine)
    assert [word for word in arguments if word in ("-cnv", "-no-cnv")] == modes


@pytest.mark.parametrize(
    ("engine", "chat", "flags"),
    [
        (FIRST, False, ("-p", "-f")),
        (FIRST, True, ("-p", "-f")),
        (MAINLINE, False, ("-p", "-f")),
        (MAINLINE, True, ("-sys", "-sysf")),  # -p would be the user's first message
        (EMBEDDED, True, ("-sys", "-f")),
    ],
)
def test_a_chats_prompt_is_its_system_prompt(
    engine: Engine, chat: bool, flags: tuple[str, str]
) -> None:
    text, file = flags
    assert after(command(HELLO._replace(chat=chat), engine), text) == "hello"
    from_file = command(Request(prompt_file="some.txt", chat=chat), engine)
    assert after(from_file, file) == "some.txt"
    assert "-p" not in from_file


def test_a_chat_may_have_no_prompt() -> None:
    assert not {"-p", "-f", "-sys"} & set(command(Request(chat=True), MAINLINE))


def test_a_chat_that_is_fed_gets_simple_io() -> None:
    chat = HELLO._replace(chat=True)
    assert "--simple-io" in command(chat, stdin=FEED)
    assert "--simple-io" not in command(chat)
    without = FIRST._replace(chat_flags=FIRST_FLAGS - {"--simple-io"})
    assert "--simple-io" not in command(chat, without, stdin=FEED)


@pytest.mark.parametrize("flag", ["-tb", "--no-escape"])
def test_a_flag_that_the_engine_does_not_list_is_left_out(flag: str) -> None:
    assert flag in command(HELLO)
    assert flag not in command(HELLO, FIRST._replace(flags=FIRST_FLAGS - {flag}))


def test_an_unknown_engine_gets_upstreams_flags() -> None:
    unknown = FIRST._replace(flags=frozenset(), chat_flags=frozenset())
    assert after(command(HELLO, unknown), "-tb") == "6"
    chat = command(HELLO._replace(chat=True), unknown)
    assert "-cnv" in chat
    assert not {"-no-cnv", "--no-escape"} & set(chat)


def test_sampling_and_sizes_that_are_set_are_passed() -> None:
    request = HELLO._replace(
        n_predict=-1,
        ctx_size=0,
        temperature=0.0,
        top_k=0,
        top_p=0.5,
        min_p=0.0,
        repeat_penalty=1.5,
        seed=-1,
    )
    arguments = command(request, plan=Plan(Setting(4, 6, ubatch=64, mlock=True), {}, batch=256))
    values = {
        "-n": "-1",
        "-c": "0",
        "--temp": "0.0",
        "--top-k": "0",
        "--top-p": "0.5",
        "--min-p": "0.0",
        "--repeat-penalty": "1.5",
        "-s": "-1",
        "-b": "256",
        "-ub": "64",
    }
    assert {flag: after(arguments, flag) for flag in values} == values
    assert "--mlock" in arguments


def test_what_is_not_set_is_left_to_the_engine() -> None:
    unsaid = {"--top-k", "--top-p", "--min-p", "--repeat-penalty", "-s", "-b", "-ub", "--mlock"}
    assert not unsaid & set(command(HELLO))


@pytest.mark.parametrize("engine", [FIRST, MAINLINE, EMBEDDED])
@pytest.mark.parametrize("chat", [False, True])
def test_extra_arguments_come_last_and_untouched(engine: Engine, chat: bool) -> None:
    extra = ("--unheard-of", "", "two words", "--", "-p", "\udcff")
    request = HELLO._replace(extra=extra, chat=chat)
    assert command(request, engine, stdin=FEED if chat else NO_INPUT)[-len(extra) :] == list(extra)


@pytest.mark.parametrize("text", ["-x", "--", 'it\'s "q"\n$(x)', "a\\nb", " ", "\udcff", "🐍"])
def test_a_prompt_is_one_argument_whatever_it_holds(text: str) -> None:
    assert after(command(Request(prompt=text)), "-p") == text


KNOBS = frozenset({"--no-mmap", "-fa", "--poll", "--numa"})
MODES = (MAINLINE.flags | {"-fa", "--poll", "--numa", "--load-mode"}) - {"--mlock"}
TUNABLE = FIRST._replace(flags=FIRST_FLAGS | KNOBS, chat_flags=FIRST_FLAGS | KNOBS)
TUNABLE_MAINLINE = MAINLINE._replace(flags=MODES)
TUNABLE_EMBEDDED = EMBEDDED._replace(flags=EMBEDDED.flags | KNOBS)


def added(engine: Engine, **fields: object) -> list[str]:
    """Return the words that these fields of a setting add to a command."""
    plain = command(HELLO, engine)
    words = command(HELLO, engine, Plan(PLAN.setting._replace(**fields), {}))  # type: ignore[arg-type]
    return [word for word in words if word not in plain]


@pytest.mark.parametrize(
    ("mmap", "mlock", "switches", "mode"),
    [
        (None, False, [], []),
        (True, False, [], []),
        (False, False, ["--no-mmap"], ["--load-mode", "none"]),
        (None, True, ["--mlock"], ["--load-mode", "mmap+mlock"]),
        (True, True, ["--mlock"], ["--load-mode", "mmap+mlock"]),
        (False, True, ["--no-mmap", "--mlock"], ["--load-mode", "mlock"]),
    ],
)
def test_each_engine_gets_its_own_flags_for_loading(
    mmap: bool | None, mlock: bool, switches: list[str], mode: list[str]
) -> None:
    assert added(TUNABLE, mmap=mmap, mlock=mlock) == switches
    assert added(TUNABLE_EMBEDDED, mmap=mmap, mlock=mlock) == switches
    assert added(TUNABLE_MAINLINE, mmap=mmap, mlock=mlock) == mode


@pytest.mark.parametrize(
    ("flash", "switch", "value"),
    [(None, [], []), (True, ["-fa"], ["-fa", "on"]), (False, [], ["-fa", "off"])],
)
def test_flash_attention_is_a_switch_or_takes_a_value(
    flash: bool | None, switch: list[str], value: list[str]
) -> None:
    assert added(TUNABLE, flash=flash) == switch
    assert added(TUNABLE_MAINLINE, flash=flash) == value
    assert added(TUNABLE_EMBEDDED, flash=flash) == value


def test_poll_and_numa_are_passed() -> None:
    assert added(TUNABLE, poll=99, numa="isolate") == ["--poll", "99", "--numa", "isolate"]


@pytest.mark.parametrize("engine", [FIRST, FIRST._replace(flags=frozenset())])
def test_no_knob_reaches_an_engine_that_does_not_list_it(engine: Engine) -> None:
    assert added(engine, mmap=False, flash=True, poll=100, numa="isolate") == []


def test_every_field_of_a_request_has_a_flag() -> None:
    """The parser stores each flag under the name of a field."""
    parser = Parser()
    add_run(parser)
    request, options = read_request(parser, ["-f", "a", "-cnv", "-ub", "9", "--no-profile"])
    assert set(Request._fields) - {"extra", "named"} <= vars(options).keys()
    changed = {"prompt_file": "a", "chat": True, "ubatch": 9, "profile": False, "threads": 0}
    assert request == Request()._replace(**changed)  # type: ignore[arg-type]
