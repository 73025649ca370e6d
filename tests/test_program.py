"""What all commands share: versions, help, mistaken words, prompts on stdin, and completions."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitnet_tuning import __main__, __version__, demo
from bitnet_tuning.cli import run
from bitnet_tuning.cli.commands import COMMANDS, module_of
from bitnet_tuning.cli.input import MOST_BYTES, with_prompt
from bitnet_tuning.console import ADDRESS
from bitnet_tuning.plan.facts import Request
from bitnet_tuning.prepare import LONGEST_PROMPT
from tests.engines import FakeEngine
from tests.processes import run_at_terminal

REPO = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "run_inference.py",
    "run_inference_optimized.py",
    "benchmark_optimized.py",
    "test_optimizations.py",
)
MARK = b"\xef\xbb\xbf"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")


def called(*words: str) -> tuple[str, ...]:
    return ("-m", "bitnet_tuning", *words)


def start(*words: str, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, *words],
        input=stdin,
        capture_output=True,
        cwd=REPO,
        env={**os.environ, **variables},
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr
    return done


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeEngine:
    return FakeEngine(tmp_path_factory.mktemp("bitnet") / "checkout", "bitnet")


# Versions and help


@pytest.mark.parametrize("words", [*[(name,) for name in SCRIPTS], called(), called("host")])
def test_every_program_prints_its_version(words: tuple[str, ...]) -> None:
    done = start(*words, "--version")
    assert done.returncode == 0
    first = done.stdout.decode().splitlines()[0]
    assert first.startswith(f"bitnet-tuning {__version__}")
    assert first.endswith(f", Python {sys.version.split()[0]}")


def test_the_version_names_the_engine_and_what_it_answered_before(
    fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--engine", str(fake.cli)]
    assert run.main([*flags, "--version"]) == 0
    before = len(fake.runs())
    assert capsys.readouterr().out.splitlines()[1:] == [f"engine {fake.cli}"]
    assert run.main([*flags, "-m", demo.I2_S, "-p", "a", "--dry-run"]) == 0
    capsys.readouterr()
    assert run.main([*flags, "--version"]) == 0
    assert f"engine {fake.cli}, version " in capsys.readouterr().out
    assert before == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_a_command_is_complete_and_short_at_its_start(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert __main__.main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: ") and text.split("\n\n")[0].count("\n") <= 1
    assert "--version" in text and ADDRESS in text and "exit codes: " in text
    assert __main__.main(["help", name]) == 0
    assert capsys.readouterr().out == text
    assert all(len(line) <= 80 for line in text.splitlines() if "python" not in line)


def test_help_fits_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    for words in (["help"], ["run", "--help"], ["bench", "--help"], ["model", "slim", "--help"]):
        assert __main__.main(words) == 0
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 60, words
    example = module_of("run").make_parser().format_help().partition("examples:\n")[2]
    assert '"You are a helpful assistant."' in example, "quotations stay whole"


@pytest.mark.parametrize("name", ["run", "plan", "bench", "model", "profile", "completion"])
def test_the_examples_in_the_help_are_valid(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = module_of(name).make_parser()
    lines = parser.format_help().partition("examples:\n")[2].partition("\n\n")[0].splitlines()
    assert len(lines) >= 2
    for line in lines:
        words = shlex.split(line.strip().removeprefix(parser.prog).partition(" < ")[0])
        if words and words != ["show", "ID"]:
            parser.parse_args(words)


def test_the_program_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main([]) == 2
    listed = capsys.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in listed] == []
    assert ADDRESS in listed
    for words in (["help"], ["--help"], ["-h"], ["help", "--help"], ["help", "-h"]):
        assert __main__.main(words) == 0
        assert capsys.readouterr().out == listed
    assert __main__.main(["--help", "run"]) == 0
    assert "--prompt" in capsys.readouterr().out
    assert __main__.main(["-V"]) == 0
    assert __version__ in capsys.readouterr().out


def test_a_mistaken_word_after_model_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["model", "shwo"]) == 3
    said = capsys.readouterr().err
    assert "no such command or file: shwo\n" in said and said.endswith(" model show?\n")


def test_the_address_is_that_of_the_metadata() -> None:
    metadata = (REPO / "pyproject.toml").read_text()
    urls = metadata.partition("[project.urls]\n")[2].partition("\n\n")[0].splitlines()
    assert urls[0] == f'Homepage = "{ADDRESS}"'
    assert len(urls) == 4 and all(f' = "{ADDRESS}' in line for line in urls)


# Mistaken words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("run --sed 3 -p a", "unknown flag: --sed\n  did you mean --seed?"),
        ("run --budget=3 -p a", "unknown flag: --budget\n  it is a flag of: COMMAND bench\n"),
        ("run --bugdet 3 -p a", "did you mean --budget, a flag of: COMMAND bench\n"),
        ("run --xyzzy -p a", "flags of the engine follow --; --help"),
        ("run -p two words", "a prompt goes after -p, in quotes: "),
        ("run it's", """ -p 'it'"'"'s'"""),
        ("host words", "unexpected argument: words\n  put a text of several words in quotes"),
        ("plan --quiet", "unknown flag: --quiet\n  it is a flag of: COMMAND run"),
        ("plan --stats", "it is a flag of: COMMAND run"),
        ("plan --prompts a --resume", "it is a flag of: COMMAND run, COMMAND bench\n"),
        ("bench --top-k 3", "it is a flag of: COMMAND run, COMMAND plan\n"),
        ("run --memory hug -p a", "invalid choice: 'hug'"),
        ("profile lst", "invalid choice: 'lst'"),
        ("profile --jsn", "did you mean --json?"),
        ("profile show --rot / a", "did you mean --root?"),
        ("completion fish", "invalid choice: 'fish'"),
        ("doctr", "unknown command: doctr\n  did you mean COMMAND doctor?"),
        ("help hots", "unknown command: hots\n  did you mean COMMAND host?"),
        ("--verson", "unknown command: --verson\n  did you mean COMMAND --version?"),
    ],
)
def test_the_error_for_a_mistaken_word_names_what_was_probably_meant(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    words = printed.err.replace("python3 run_inference.py", "COMMAND run")
    words = words.replace("python3 benchmark_optimized.py", "COMMAND bench")
    assert said in words.replace("python3 -m bitnet_tuning", "COMMAND")


def test_a_plan_accepts_dry_run(fake: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--dry-run", "--json", "--engine", str(fake.cli), "-m", demo.I2_S]
    assert __main__.main(words) == 0
    assert json.loads(capsys.readouterr().out)["engine"] == str(fake.cli)


UPSTREAM = "-m -n -p -t -c -temp -cnv --model --n-predict --prompt --threads --ctx-size "
UPSTREAM += "--temperature --conversation"
"""The flags of microsoft/BitNet's run_inference.py."""


def test_both_run_scripts_have_all_flags() -> None:
    helps = (start(script, "--help", COLUMNS="200") for script in SCRIPTS[:2])
    plain, optimized = (done.stdout.decode() for done in helps)
    assert plain.replace(SCRIPTS[0], SCRIPTS[1]) == optimized
    words = plain.replace(",", " ").split()
    assert [flag for flag in UPSTREAM.split() if flag not in words] == []


# Prompts on standard input and in files


def prompted(fake: FakeEngine, *words: str, stdin: bytes = b"", **variables: str) -> Any:
    flags = ("--engine", str(fake.cli), "-m", demo.I2_S, "-t", "1", "-c", "100000", *words)
    return start("run_inference.py", *flags, stdin=stdin, **variables)


def got(fake: FakeEngine, flag: str) -> bytes:
    raw = [bytes.fromhex(word) for word in fake.prompts()[-1]["raw"]]
    return raw[raw.index(flag.encode()) + 1]


@pytest.mark.parametrize("flag", ["-p", "-f"])
@pytest.mark.parametrize(
    ("stdin", "prompt"),
    [
        (b"hello\n", b"hello"),
        (b"two\nlines\n\n", b"two\nlines\n"),
        (MARK + "🐍 \\n".encode(), "🐍 \\n".encode()),
        (b"-", b"-"),
        (b"x" * MOST_BYTES, b"x" * MOST_BYTES),
    ],
    ids=["line", "lines", "mark", "dash", "long"],
)
def test_a_prompt_on_standard_input(
    fake: FakeEngine, flag: str, stdin: bytes, prompt: bytes
) -> None:
    done = prompted(fake, flag, "-", stdin=stdin)
    assert (done.returncode, done.stdout) == (0, prompt + b" and more text\n"), done.stderr
    assert got(fake, "-p") == prompt
    assert (b"dropped the byte order mark at the start of standard input" in done.stderr) == (
        stdin.startswith(MARK)
    )


@pytest.mark.parametrize(
    ("flags", "stdin", "words"),
    [
        ("-p -", b"", "-p/--prompt: the prompt in standard input is empty"),
        ("-f -", MARK + b"\n", "-f/--file: the prompt in standard input is empty"),
        ("-p -", "a".encode("utf-16"), "null bytes, as in UTF-16\n  save it as UTF-8"),
        ("-p -", b"x" * (MOST_BYTES + 1), "too long for a command line\n  save it to a file"),
        ("-p -", b"a\nb\xff", "standard input is no text in UTF-8: byte 4, in line 2\n"),
        ("-p b\udcff", b"", "-p/--prompt: the prompt is no text in UTF-8: byte 2, in line 1\n"),
        ("-f /dev/stdin", b"a\xff", "standard input is no text in UTF-8: byte 2, in line 1\n"),
        ("-f /dev/stdin", b"", "-f/--file: the prompt in standard input is empty"),
        ("-p -", b" " * (LONGEST_PROMPT + 9), "standard input is longer than 16.0 MiB"),
        ("--prompts -", b" " * (LONGEST_PROMPT + 9), "standard input is longer than 16.0 MiB"),
        ("-f /dev/zero", b"", "/dev/zero is longer than 16.0 MiB"),
        ("-p - -cnv", b"a", "-p/--prompt: a chat reads your messages from standard input"),
        ("-f - -cnv", b"a", "-f/--file: a chat reads your messages from standard input"),
        ("-p - -f a", b"a", "not allowed with"),
        ("-p - --prompts a", b"a", "not allowed with --prompts"),
    ],
)
def test_the_error_for_a_prompt_that_standard_input_cannot_give(
    fake: FakeEngine, flags: str, stdin: bytes, words: str
) -> None:
    words_given = flags.split() + ["--dry-run"] * (words.startswith("too long"))
    done = prompted(fake, *words_given, stdin=stdin)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr.decode()
    if "is empty" in words:
        assert "| python3 run_inference.py -p -\n" in done.stderr.decode().replace(
            sys.executable, "python3"
        )


def test_a_prompt_file_loses_its_byte_order_mark(fake: FakeEngine, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(MARK + b"hello\n")
    done = prompted(fake, "-f", str(file))
    assert (done.returncode, got(fake, "-p")) == (0, b"hello")
    assert f"dropped the byte order mark at the start of {file}\n".encode() in done.stderr
    file.write_bytes(b"hello\n")
    assert prompted(fake, "-f", str(file)).returncode == 0
    assert got(fake, "-f") == os.fsencode(file)
    file.write_bytes(MARK)
    assert b"is empty" in prompted(fake, "-f", str(file)).stderr
    file.write_bytes("hello".encode("utf-16"))
    assert b"it has null bytes" in prompted(fake, "-f", str(file)).stderr
    file.write_bytes(b"hello\xff")
    said = prompted(fake, "-f", str(file)).stderr
    assert f"{file} is no text in UTF-8: byte 6, in line 1\n".encode() in said


@linux
@pytest.mark.parametrize("flag", ["-p", "-f"])
def test_a_long_prompt_on_standard_input_is_handed_over_in_memory(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = MARK + b"a " * 70_000 + b"\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    request = Request(prompt="-") if flag == "-p" else Request(prompt_file="-")
    file = with_prompt(request).prompt_file
    assert file and subprocess.check_output(["cat", file]) == content.removeprefix(MARK)


@linux
def test_an_engine_gets_a_long_prompt_as_a_file(fake: FakeEngine) -> None:
    done = prompted(fake, "-p", "-", stdin=b"a " * 70_000)
    assert done.returncode == 0 and got(fake, "-f").startswith(b"/proc/")


@linux
def test_a_pipe_is_read_once_and_checked(fake: FakeEngine) -> None:
    flags = ["--engine", str(fake.cli), "-m", demo.I2_S, "-f"]
    run_it = shlex.join([sys.executable, str(REPO / "run_inference.py"), *flags])
    for text, code in (("hello", 0), ("\\377", 2), ("a\\0", 2), ("", 2)):
        done = subprocess.run(
            ["bash", "-c", f"{run_it} <(printf '{text}')"], check=False, capture_output=True
        )
        assert done.returncode == code, done.stderr
    assert got(fake, "-p") == b"hello"


@linux
def test_standard_input_that_is_open_for_writing_only(fake: FakeEngine, tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        done = subprocess.run(
            [sys.executable, "run_inference.py", "-p", "-"],
            cwd=REPO,
            stdin=file,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 3 and b"cannot read standard input: Bad file" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="no pseudo terminals")
def test_on_a_terminal_a_hint_says_how_a_prompt_ends(fake: FakeEngine) -> None:
    near, far = os.openpty()
    flags = ("--engine", str(fake.cli), "-m", demo.I2_S, "-p", "-")
    with subprocess.Popen(
        [sys.executable, "run_inference.py", *flags],
        cwd=REPO,
        stdin=far,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(far)
        os.write(near, b"hello\n\x04")
        out, err = process.communicate(timeout=60)
        os.close(near)
    assert (process.returncode, out) == (0, b"hello and more text\n")
    assert err.startswith(b"bitnet-tuning: type the prompt, end with Ctrl-D")


def test_the_file_of_many_prompts_loses_its_byte_order_mark(
    tmp_path: Path, fake: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(MARK + b'"hello"\n')
    shutil.copy(fake.cli, fake.cli.parent / "llama-server")
    words = ["--prompts", str(file), "--dry-run", "--engine", str(fake.cli), "-m", demo.I2_S]
    run.main(words)
    said = capsys.readouterr().err
    assert f"dropped the byte order mark at the start of {file}\n" in said
    assert "JSON" not in said


# Completions


def test_the_completions_are_current() -> None:
    pytest.importorskip("shtab")
    from tools.completions import FOLDER, completions  # noqa: PLC0415

    for shell in ("bash", "zsh"):
        assert (FOLDER / shell).read_text() == completions(shell), "run tools/completions.py"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completions_say_how_they_are_installed(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["completion", shell]) == 0
    printed = capsys.readouterr()
    install = f'eval "$(bitnet-tuning completion {shell})"'
    assert install in printed.out.splitlines()[1 if shell == "zsh" else 0]
    assert printed.err == ""
    code = run_at_terminal(sys.executable, "-m", "bitnet_tuning", "completion", shell)[0]
    assert code == 0


BASH = """\
eval "$({python} -m bitnet_tuning completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
function=$(complete -p {program} | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function; printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def shell_output(*argv: str) -> str:
    """Return what a shell prints to stdout; it must print nothing to stderr."""
    done = subprocess.run(argv, capture_output=True, text=True, cwd=REPO, timeout=60, check=False)
    assert done.stderr == ""
    return done.stdout


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["bitnet-tuning", "doc"], {"doctor"}),
        (["bitnet-tuning", "run", "--top"], {"--top-k", "--top-p"}),
        (["bitnet-tuning", "run", "--memory", "hu"], {"huge"}),
        (["bitnet-tuning", "plan", "--qui"], {""}),
        (["bitnet-tuning", "profile", "ex"], {"export"}),
        (["bitnet-tuning", "completion", "z"], {"zsh"}),
        (["bitnet-run", "--perf"], {"--performance-mode"}),
        (["bitnet-benchmark", "--objective", "p"], {"pp"}),
        (["bitnet-test-optimizations", "--no-s"], {"--no-speed"}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str]) -> None:
    script = BASH.format(python=sys.executable, words=" ".join(words), program=words[0])
    shown = shell_output("bash", "--norc", "-c", script)
    assert set(shown.split("\n")[:-1]) == expected


ZSH = """\
autoload -U compinit && compinit -D -u
eval "$({python} -m bitnet_tuning completion zsh)"
for name in bitnet-tuning bitnet-run bitnet-benchmark; do print -r -- $_comps[$name]; done
print -rl -- $_shtab_bitnet_tuning_run_options
"""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh")
def test_zsh_takes_the_completions() -> None:
    shown = shell_output("zsh", "-f", "-c", ZSH.format(python=sys.executable))
    names = ["_shtab_bitnet_tuning", "_shtab_bitnet_run", "_shtab_bitnet_benchmark"]
    assert shown.splitlines()[:3] == names
    assert "--performance-mode" in shown
