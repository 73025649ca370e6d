#!/usr/bin/env python3
"""A program that answers like llama-cli.

It appends a JSON line about its start to ``runs.jsonl`` beside itself, and behaves as
FAKE_* variables say:

FAKE_OUTPUT   text printed behind the prompt's echo (default " and more text")
FAKE_EXIT     exit code
FAKE_KILL     signal number by which it kills itself after its output
FAKE_SLEEP    seconds that it sleeps before its end, in short naps (not for one token)
FAKE_CATCH    signal numbers (comma-separated) that it writes down instead of dying
FAKE_HANG     "help" hangs on --help
"""

import json
import os
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))

HELP = """\
usage: llama-cli [options]
----- common params -----
-h,    --help, --usage                  print usage and exit
--version                               show version and build info
-t,    --threads N                      number of threads to use during generation
-tb,   --threads-batch N                number of threads (default: same as --threads)
-m,    --model FNAME                    model path
-p,    --prompt PROMPT                  prompt to start generation with
-f,    --file FNAME                     a file containing the prompt
-n,    --predict, --n-predict N         number of tokens to predict
-c,    --ctx-size N                     size of the prompt context
-b,    --batch-size N                   logical maximum batch size
-ub,   --ubatch-size N                  physical maximum batch size
--no-escape                             do not process escape sequences
-cnv,  --conversation                   run in conversation mode
--simple-io                             use basic IO
--mlock                                 force system to keep model in RAM
"""

# ruff: noqa: E501
TIMINGS = """\
llama_perf_context_print:        load time =     100.00 ms
llama_perf_context_print: prompt eval time =      50.00 ms /     5 tokens (   10.00 ms per token,   100.00 tokens per second)
llama_perf_context_print:        eval time =    2000.00 ms /    40 runs   (   50.00 ms per token,    20.00 tokens per second)
llama_perf_context_print:       total time =    2050.00 ms /    45 tokens
"""


def generation() -> str:
    with open(os.path.join(HERE, "generation")) as file:
        return file.read()


def record() -> None:
    run = {
        "program": os.path.basename(sys.argv[0]),
        "argv": sys.argv,
        "raw": [os.fsencode(argument).hex() for argument in sys.argv],
        "env": {key: value for key, value in os.environ.items() if not key.startswith("FAKE_")},
        "pid": os.getpid(),
        "pgid": os.getpgrp(),
        "ppid": os.getppid(),
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "nice": os.nice(0),
        "stdin": os.path.realpath("/proc/self/fd/0"),
        "fds": sorted(int(name) for name in os.listdir("/proc/self/fd")),
    }
    with open(os.path.join(HERE, "runs.jsonl"), "a") as file:
        file.write(json.dumps(run) + "\n")


def write_down(number: int, _frame: object) -> None:
    with open(os.path.join(HERE, f"signals-{os.getpid()}"), "a") as file:
        file.write(f"{signal.Signals(number).name}\n")


def value(*names: str) -> str:
    for name in names:
        if name in sys.argv:
            return sys.argv[sys.argv.index(name) + 1]
    return ""


def chat() -> int:
    """As bitnet.cpp's llama-cli: at the end of its input it goes on for ever; an
    interrupt while it waits for input ends it with 130."""
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    ends_at_eof = generation() == "mainline"
    while True:
        print("\n> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line and ends_at_eof:
            return 0
        time.sleep(0.05)
        print(f"[{line.rstrip()}]", end="", flush=True)


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    record()
    if "--help" in sys.argv:
        if os.environ.get("FAKE_HANG") == "help":
            time.sleep(60)
        print(
            HELP + ("-no-cnv, --no-conversation   no chat\n" if generation() == "mainline" else "")
        )
        return 0
    if "--version" in sys.argv:
        print("version: 3957 (5eb47b72)\nbuilt with fake for tests", file=sys.stderr)
        return 0
    for number in filter(None, os.environ.get("FAKE_CATCH", "").split(",")):
        signal.signal(int(number), write_down)
    print(
        "system_info: n_threads = 2 | AVX = 1 | AVX2 = 1 | AVX512 = 0 | FMA = 1 |", file=sys.stderr
    )
    if "-cnv" in sys.argv:
        return chat()
    prompt = os.fsencode(value("-p", "--prompt"))
    sys.stdout.buffer.write(prompt)
    sys.stdout.buffer.flush()
    sys.stdout.buffer.write(os.environ.get("FAKE_OUTPUT", " and more text").encode() + b"\n")
    sys.stdout.buffer.flush()
    is_probe = value("-n") == "1"
    until = time.monotonic() + (0 if is_probe else float(os.environ.get("FAKE_SLEEP", "0")))
    while time.monotonic() < until:
        time.sleep(0.02)
    print(TIMINGS, file=sys.stderr, flush=True)
    if "FAKE_KILL" in os.environ:
        os.kill(os.getpid(), int(os.environ["FAKE_KILL"]))
    return int(os.environ.get("FAKE_EXIT", "0"))


if __name__ == "__main__":
    sys.exit(main())
