#!/usr/bin/env python3
"""A program that answers like llama-server.

Its text is the one in ``curve.json``, if there is one for its flags. A prompt of tokens takes the
time that curve.py says for its threads, and the timings say so. In
``curve.json``, ``crash`` and ``hang`` then concern such a prompt, and further keys are

    "start": {"threads=2": "exit 3"}   or "hang": it never gets ready
    "broken": {"threads=2": "lie"}     lie (ten times the speed), count (a token less), timings,
                                       answers (at once, with another text),
                                       refuse, json (no JSON), zero
    "odd": [2]                         numbers of such prompts, from 1, after which it claims to
                                       have computed for another 10 seconds

It appends a JSON line about its start to ``runs.jsonl`` beside itself and one about every
completion to ``asked.jsonl``. FAKE_SERVER_* variables set its behaviour:

FAKE_SERVER_SECONDS  time that a completion takes (default 0)
FAKE_SERVER_DIES     "3 9": it kills itself with signal 9 at the third completion
FAKE_SERVER_HANGS    number of the completion from which on it never answers
FAKE_SERVER_REFUSES  text in prompts that get status 400
FAKE_SERVER_FAILS    text in prompts that get status 500
FAKE_SERVER_TAKEN    number of starts that find their port in use
FAKE_SERVER_UNFIT    "1": it exits with a message instead of loading the model
FAKE_SERVER_NO_KEY   "1": it has no API keys, like early versions
FAKE_SERVER_LEAVES   "1": a child of it stays in its group, as if a script had started it
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))
sys.path.insert(0, HERE)

curves = importlib.import_module("curve")  # copied beside this program

HELP = """\
-h,    --help, --usage                  print usage and exit
-t,    --threads N                      number of threads to use during generation
-tb,   --threads-batch N                number of threads
-c,    --ctx-size N                     size of the prompt context
-b,    --batch-size N                   logical maximum batch size
-ub,   --ubatch-size N                  physical maximum batch size
       --poll <0...100>                 level of busy waiting
       --numa TYPE                      attempt optimizations that help on some NUMA systems
-fa,   --flash-attn                     enable Flash Attention
-np,   --parallel N                     number of parallel sequences to decode
--mlock                                 force system to keep model in RAM
--no-mmap                               do not memory-map model
--no-context-shift                      disables context shift on infinite text generation
-cb,   --cont-batching                  enable continuous batching
--host HOST                             ip address to listen
--port PORT                             port to listen
"""
KEY_HELP = """\
--api-key KEY                           API key to use for authentication
                                        (env: LLAMA_API_KEY)
"""


def said(name: str) -> str:
    return os.environ.get(f"FAKE_SERVER_{name}", "")


def value(name: str) -> str:
    return sys.argv[sys.argv.index(name) + 1]


def write_line(name: str, facts: dict[str, Any]) -> None:
    data = json.dumps(facts).encode() + b"\n"
    handle = os.open(os.path.join(HERE, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(handle, data)
    os.close(handle)


def lines(name: str) -> int:
    try:
        with open(os.path.join(HERE, name), "rb") as file:
            return len(file.readlines())
    except FileNotFoundError:
        return 0


class Work:
    """The completions, of which as many run at a time as there are slots."""

    def __init__(self) -> None:
        self.slots = threading.Semaphore(int(value("-np")))
        self.lock = threading.Lock()
        self.count = 0

    def complete(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        with self.lock:
            self.count += 1
            number = self.count
        write_line("asked.jsonl", {"pid": os.getpid(), "number": number, **body})
        self._misbehave(number)
        for name, status in (("REFUSES", 400), ("FAILS", 500)):
            if said(name) and said(name) in body["prompt"]:
                return status, {"error": {"code": status, "message": f"it is {status}"}}
        with self.slots:
            if isinstance(body["prompt"], list):
                return self._slice(number, len(body["prompt"]), body["n_predict"])
            return 200, self._reply(body)

    def _slice(self, number: int, prompt: int, predicted: int) -> tuple[int, Any]:
        curve, noise = curves.load(HERE), curves.Noise(curves.load(HERE), HERE)
        facts = {flag: curves.seen(sys.argv, value(flag)) for flag in ("-t", "-tb")}
        if any(curves.holds(condition, facts["-t"]) for condition in curve.get("hang", [])):
            time.sleep(600)
        crash = curves.chosen(curve.get("crash", {}), facts["-t"])
        if isinstance(crash, str):
            print("error: the fake engine fails as it was told to", file=sys.stderr, flush=True)
            os._exit(int(crash.split()[1]))
        if crash is not None:
            os.kill(os.getpid(), crash)
        if prompt + predicted > int(value("-c")):
            return 400, {"error": {"code": 400, "message": "the request exceeds the context"}}
        how = curves.chosen(curve.get("broken", {}), facts["-t"])
        if how == "refuse":
            return 400, {"error": {"code": 400, "message": "it refuses tokens"}}
        took = [
            prompt / noise(curves.speed(curve, facts["-tb"], "pp")),
            # The first token comes out of the prompt's last step.
            (predicted - 1) / noise(curves.speed(curve, facts["-t"], "tg")),
        ]
        if how == "answers":
            took = [1e-4, 1e-4]
        time.sleep(sum(took))
        told = [seconds / (10 if how == "lie" else 1) for seconds in took]
        told[0] += 10 if number in curve.get("odd", []) else 0
        if how == "zero":
            told = [0.0, 0.0]
        timings = {
            "prompt_n": prompt - (how == "count"),
            "prompt_ms": 1000 * told[0],
            "predicted_n": predicted - (how == "count"),
            "predicted_ms": 1000 * told[1],
        }
        if how == "json":
            return 200, None
        if how == "nan":
            timings["predicted_n"] = float("nan")
        if how == "huge":
            timings["predicted_ms"] = 10**400
        content = "x" if how == "answers" else "T" * predicted
        return 200, {"content": content, **({} if how == "timings" else {"timings": timings})}

    def _misbehave(self, number: int) -> None:
        if said("DIES"):
            at, signum = map(int, said("DIES").split())
            if number >= at:
                os.kill(os.getpid(), signum)
                time.sleep(60)
        if said("HANGS") and number >= int(said("HANGS")):
            time.sleep(600)

    def _reply(self, body: dict[str, Any]) -> dict[str, Any]:
        time.sleep(float(said("SECONDS") or 0))
        texts, facts = curves.load(HERE).get("text", {}), curves.seen(sys.argv, value("-t"))
        other = curves.chosen(texts, facts)
        return {
            "content": other or f" and its answer, {body['prompt']!r}",
            "tokens_predicted": max(1, body["n_predict"]),
            "tokens_evaluated": len(body["prompt"].split()),
            "stopped_eos": body["n_predict"] < 0,
            "stopped_word": False,
            "stopped_limit": body["n_predict"] >= 0,
            "timings": {"prompt_n": 5, "prompt_ms": 50.0, "predicted_n": 10, "predicted_ms": 500.0},
        }


class Handler(BaseHTTPRequestHandler):
    work: Work

    def do_GET(self) -> None:
        start = curves.chosen(
            curves.load(HERE).get("start", {}), curves.seen(sys.argv, value("-t"))
        )
        self._send(503 if start == "hang" else 200, {"status": "ok"})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = os.environ.get("LLAMA_API_KEY")
        if key and not said("NO_KEY") and self.headers["Authorization"] != f"Bearer {key}":
            write_line("unauthorized.jsonl", body)
            self._send(401, {"error": {"code": 401, "message": "Invalid API Key"}})
            return
        self._send(*self.work.complete(body))

    def _send(self, status: int, facts: dict[str, Any] | None) -> None:
        data = b"words" if facts is None else json.dumps(facts).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        print(format % args, file=sys.stderr)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


def record() -> None:
    facts = {
        "program": os.path.basename(sys.argv[0]),
        "argv": sys.argv,
        "env": {key: text for key, text in os.environ.items() if not key.startswith("FAKE_")},
        "pid": os.getpid(),
        "pgid": os.getpgrp(),
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "nice": os.nice(0),
        "stdin": os.path.realpath("/proc/self/fd/0"),
    }
    write_line("runs.jsonl", {**facts, "raw": []})


def main() -> int:
    if "--help" in sys.argv:
        print(HELP + ("" if said("NO_KEY") else KEY_HELP))
        return 0
    started = lines("starts.jsonl")
    write_line("starts.jsonl", {})
    record()
    if started < int(said("TAKEN") or 0):
        print("main: couldn't bind HTTP server socket, hostname: 127.0.0.1", file=sys.stderr)
        return 1
    if said("UNFIT"):
        print("error loading model: it is unfit", file=sys.stderr)
        return 1
    start = curves.chosen(curves.load(HERE).get("start", {}), curves.seen(sys.argv, value("-t")))
    if start and start != "hang":
        print("error loading model: it fails as it was told to", file=sys.stderr)
        return int(start.split()[1])
    if said("LEAVES"):
        child = subprocess.Popen([sys.executable, "-ISc", "import time; time.sleep(600)"])
        write_line("children.jsonl", {"pid": child.pid})
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    Handler.work = Work()
    with Server((value("--host"), int(value("--port"))), Handler) as server:
        server.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
