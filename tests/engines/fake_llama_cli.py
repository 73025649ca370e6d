#!/usr/bin/env python3
"""A program that answers like llama-cli.

It appends a JSON line about its start to ``runs.jsonl`` beside itself. FAKE_* variables set its
behaviour:

FAKE_OUTPUT   text printed after the prompt (default " and more text")
FAKE_EXIT     exit code
FAKE_KILL     number of the signal with which it kills itself after its output
FAKE_SLEEP    seconds that it sleeps before it exits, but not after a single token
FAKE_LOADS    seconds that it sleeps before its output
FAKE_CATCH    numbers of signals (comma-separated) that it records instead of dying
FAKE_HANG     "help": it hangs on --help
FAKE_FA_TEXT  text printed instead with -fa
FAKE_LOSES    share of its text that it loses, with all timings: "0.5" in the first run,
              "0.5 always" in each run
FAKE_LOSES_THREADS  number of threads with which it loses them
FAKE_WORK     "2 0.3": two threads compute until each has used 0.3 s of CPU time, if the
              temperature is above 1, as in a run that is observed
FAKE_WORK_CPUS  CPUs (comma-separated) on which those threads may run
FAKE_SAYS     n_threads in its system_info line (default 2)

An ``isa.json`` beside it names the instruction sets that it is built for and when it dies of
SIGILL. A ``curve.json`` beside it sets its text, its speed and its end, as curve.py describes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import time
import zlib
from typing import Any

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))
BLOCK = bytes(1 << 21)

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
--no-mmap                               do not memory-map model
-fa,   --flash-attn                     enable Flash Attention
--poll <0...100>                        use polling level to wait for work
--numa TYPE                             attempt optimizations that help on some NUMA systems
--ignore-eos                            ignore end of stream token and continue generating
"""
MAINLINE = """\
-no-cnv, --no-conversation              no chat
-lm,   --load-mode MODE                 model loading mode (default: auto)
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


def built_for() -> dict[str, Any]:
    try:
        with open(os.path.join(HERE, "isa.json")) as file:
            found: dict[str, Any] = json.load(file)
            return found
    except FileNotFoundError:
        return {"names": ["AVX", "AVX2", "FMA"], "dies": None}


def write_down(number: int, _frame: object) -> None:
    with open(os.path.join(HERE, f"signals-{os.getpid()}"), "a") as file:
        file.write(f"{signal.Signals(number).name}\n")


def value(*names: str) -> str:
    for name in names:
        if name in sys.argv:
            return sys.argv[sys.argv.index(name) + 1]
    return ""


def curve_and_facts() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the curve and the settings of this run; both are empty without a curve.json."""
    if not os.path.exists(os.path.join(HERE, "curve.json")) or value("-n") == "1":
        return {}, {}
    sys.path.insert(0, HERE)
    curves = importlib.import_module("curve")  # It is copied beside this program.
    curve = curves.load(HERE)
    facts = curves.seen(sys.argv, value("-t"))
    curves.misbehave(curve, facts)
    return curve, facts


def text_for(prompt: str, curve: dict[str, Any], facts: dict[str, Any]) -> str:
    plain = os.environ.get("FAKE_OUTPUT", " and more text")
    if "-fa" in sys.argv and "FAKE_FA_TEXT" in os.environ:
        return os.environ["FAKE_FA_TEXT"]
    if not curve:
        return plain
    curves = importlib.import_module("curve")
    changed = curves.chosen(curve.get("text", {}), facts)
    return str(curve.get("texts", {}).get(prompt, plain) if changed is None else changed)


def lost_share() -> float:
    """Return the share of the text that is lost, with all timings unless it is 0."""
    share, _, always = os.environ.get("FAKE_LOSES", "0").partition(" ")
    mark = os.path.join(HERE, "lost")
    if value("-n") == "1" or (not always and os.path.exists(mark)):
        return 0.0
    if os.environ.get("FAKE_LOSES_THREADS", value("-t")) != value("-t"):
        return 0.0
    if float(share):
        open(mark, "w").close()
    return float(share)


def timings(prompt: bytes, curve: dict[str, Any], facts: dict[str, Any]) -> str:
    if not curve:
        return TIMINGS
    curves = importlib.import_module("curve")
    noise = curves.Noise(curve, HERE)
    lines = []
    counts = (("prompt eval", "pp", len(prompt.split())), ("eval", "tg", int(value("-n")) - 1))
    for name, phase, count in counts:
        rate = noise(curves.speed(curve, facts, phase))
        milliseconds = count / curves.told(curve, facts, count, rate) * 1000
        unit = "tokens" if phase == "pp" else "runs"
        lines.append(f"perf: {name} time = {milliseconds:10.3f} ms / {count:5d} {unit}")
    return "\n".join(lines)


def compute(used: list[float], own: int, enough: float) -> None:
    if "FAKE_WORK_CPUS" in os.environ:
        os.sched_setaffinity(0, map(int, os.environ["FAKE_WORK_CPUS"].split(",")))
    start = time.thread_time()
    # CPU time, and that of the slowest thread: on a busy machine threads run as long as it takes.
    while min(used) < enough:
        zlib.crc32(BLOCK)  # releases the interpreter's lock, so threads compute side by side
        used[own] = time.thread_time() - start


def work() -> None:
    """Compute on this thread and on others; one more thread is idle."""
    count, _, seconds = os.environ["FAKE_WORK"].partition(" ")
    used, done = [0.0] * int(count), threading.Event()
    threads = [
        threading.Thread(target=compute, args=(used, own, float(seconds)))
        for own in range(1, len(used))
    ]
    threads.append(threading.Thread(target=done.wait))
    for thread in threads:
        thread.start()
    compute(used, 0, float(seconds))
    done.set()
    for thread in threads:
        thread.join()


def chat() -> int:
    """Chat like bitnet.cpp's llama-cli: continue without end after the end of the input, and exit
    with 130 after an interrupt."""
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
    built = built_for()
    if built["dies"] == "start":
        os.kill(os.getpid(), signal.SIGILL)
    if "--help" in sys.argv:
        if os.environ.get("FAKE_HANG") == "help":
            time.sleep(60)
        print(HELP + (MAINLINE if generation() == "mainline" else ""))
        return 0
    if "--version" in sys.argv:
        print("version: 3957 (5eb47b72)\nbuilt with fake for tests", file=sys.stderr)
        return 0
    for number in filter(None, os.environ.get("FAKE_CATCH", "").split(",")):
        signal.signal(int(number), write_down)
    said = os.environ.get("FAKE_SAYS", "2")
    if built["dies"] == "model":
        os.kill(os.getpid(), signal.SIGILL)
    features = " | ".join(f"{name} = 1" for name in built["names"])
    print(f"system_info: n_threads = {said} | {features} | AVX512_BF16 = 0 |", file=sys.stderr)
    if value("-n") != "1":
        time.sleep(float(os.environ.get("FAKE_LOADS", "0")))
    if "-cnv" in sys.argv:
        return chat()
    prompt = os.fsencode(value("-p", "--prompt"))
    sys.stdout.buffer.write(prompt)
    sys.stdout.buffer.flush()
    curve, facts = curve_and_facts()
    text, lost = text_for(prompt.decode("utf-8", "replace"), curve, facts), lost_share()
    text = text[: len(text) - int(len(text) * lost)]
    sys.stdout.buffer.write(text.encode() + b"\n")
    sys.stdout.buffer.flush()
    is_probe = value("-n") == "1"
    if "FAKE_WORK" in os.environ and float(value("--temp") or 0) > 1:
        work()
    until = time.monotonic() + (0 if is_probe else float(os.environ.get("FAKE_SLEEP", "0")))
    while time.monotonic() < until:
        time.sleep(0.02)
    if not lost:
        print(timings(prompt, curve, facts), file=sys.stderr, flush=True)
    if "FAKE_KILL" in os.environ:
        os.kill(os.getpid(), int(os.environ["FAKE_KILL"]))
    return int(os.environ.get("FAKE_EXIT", "0"))


if __name__ == "__main__":
    sys.exit(main())
