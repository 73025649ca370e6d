#!/usr/bin/env python3
"""A program that answers like llama-bench, with the speeds that curve.py describes."""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))
sys.path.insert(0, HERE)

curves = importlib.import_module("curve")  # copied beside this program

# The flags of both generations, in their own layouts.
BITNET = """\
usage: llama-bench [options]

options:
  -h, --help
  -m, --model <filename>                    (default: models/7B/ggml-model-q4_0.gguf)
  -p, --n-prompt <n>                        (default: 512)
  -n, --n-gen <n>                           (default: 128)
  -b, --batch-size <n>                      (default: 2048)
  -ub, --ubatch-size <n>                    (default: 512)
  -t, --threads <n>                         (default: 2)
  --poll <0...100>                          (default: 50)
  -ngl, --n-gpu-layers <n>                  (default: 99)
  -fa, --flash-attn <0|1>                   (default: 0)
  -mmp, --mmap <0|1>                        (default: 1)
  --numa <distribute|isolate|numactl>       (default: disabled)
  -r, --repetitions <n>                     (default: 5)
  -o, --output <csv|json|jsonl|md|sql>      (default: md)
"""
MAINLINE = """\
usage: llama-bench [options]

options:
  -h, --help
  --version                                   show version and build info
  --numa <distribute|isolate|numactl>         numa mode (default: disabled)
  -r, --repetitions <n>                       number of times to repeat each test (default: 5)
  -o, --output <csv|json|jsonl|md|sql>        output format printed to stdout (default: md)

test parameters:
  -m, --model <filename>                            (default: models/7B/ggml-model-q4_0.gguf)
  -p, --n-prompt <n>                                (default: 512)
  -n, --n-gen <n>                                   (default: 128)
  -b, --batch-size <n>                              (default: 2048)
  -ub, --ubatch-size <n>                            (default: 512)
  -t, --threads <n>                                 (default: 2)
  --poll <0...100>                                  (default: 50)
  -ngl, --n-gpu-layers <n>                          (default: -1)
  -fa, --flash-attn <on|off|auto>                   (default: auto)
  -lm, --load-mode <auto|none|mmap|mlock|mmap+mlock|dio> (default: auto)
"""
DEFAULTS = {
    "-p": "512",
    "-n": "128",
    "-r": "5",
    "-t": "2",
    "-ub": "512",
    "--poll": "50",
    "-fa": "0",
    "-mmp": "1",
    "-lm": "auto",
    "-ngl": "99",
}


def generation() -> str:
    with open(os.path.join(HERE, "generation")) as file:
        return file.read()


def record() -> None:
    run = {
        "program": "llama-bench",
        "argv": sys.argv,
        "env": {key: value for key, value in os.environ.items() if not key.startswith("FAKE_")},
        "pid": os.getpid(),
        "pgid": os.getpgrp(),
        "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "nice": os.nice(0),
    }
    with open(os.path.join(HERE, "runs.jsonl"), "a") as file:
        file.write(json.dumps(run) + "\n")


def options(usage: str) -> dict[str, Any]:
    """Return the flags that were given; exit with 1 for a flag that is not in the help."""
    found = dict(DEFAULTS)
    words = sys.argv[1:]
    while words:
        flag = words.pop(0)
        if not words or not any(f"  {flag}{end}" in usage for end in (", ", " ")):
            print(f"error: invalid parameter for argument: {flag}", file=sys.stderr)
            sys.exit(1)
        found[flag] = words.pop(0)
    return found


def row(chosen: dict[str, Any], n_prompt: int, n_gen: int, rates: list[float]) -> dict[str, Any]:
    loading = (
        {"load_mode": chosen["-lm"]}
        if generation() == "mainline"
        else {"use_mmap": chosen["-mmp"] == "1"}
    )
    return {
        "build_commit": "unknown",
        "model_filename": chosen["-m"],
        "n_batch": 2048,
        "n_ubatch": int(chosen["-ub"]),
        "n_threads": int(chosen["-t"]),
        "poll": int(chosen["--poll"]),
        "n_gpu_layers": int(chosen["-ngl"]),
        "flash_attn": chosen["-fa"] in {"1", "on"},
        **loading,
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "avg_ts": sum(rates) / len(rates),
        "samples_ns": [int((n_prompt + n_gen) / rate * 1e9) for rate in rates],
        "samples_ts": rates,
    }


def rows(
    curve: dict[str, Any], chosen: dict[str, Any], facts: dict[str, Any]
) -> list[dict[str, Any]]:
    noise = curves.Noise(curve, HERE)
    found = []
    for phase, n_prompt, n_gen in (("pp", int(chosen["-p"]), 0), ("tg", 0, int(chosen["-n"]))):
        if n_prompt or n_gen:
            rate = curves.speed(curve, facts, phase)
            rates = [noise(rate) for _ in range(int(chosen["-r"]))]
            tokens = n_prompt + n_gen
            rates = [curves.told(curve, facts, tokens, rate) for rate in rates]
            found.append(row(chosen, n_prompt, n_gen, rates))
    return found


def answer(found: list[dict[str, Any]], how: Any) -> str:
    """Return the output, damaged as the curve says."""
    wrong = {"nan": float("nan"), "zero": 0.0, "negative": -3.5, "text": "fast"}
    if how in wrong:
        found[0]["samples_ts"][0] = wrong[how]
    if how == "rows":
        found.pop()
    if how == "samples":
        found[0]["samples_ts"].pop()
    if how == "threads":
        found[0]["n_threads"] += 1
    text = json.dumps(found, indent=2)
    if how == "log":
        text = f"[fake] loading the model\nload: 3 tensors [1, 2]\n{text}"
    broken = {"json": text[: len(text) * 2 // 3], "empty": ""}
    return broken.get(how, text)


def main() -> int:
    usage = MAINLINE if generation() == "mainline" else BITNET
    if "--help" in sys.argv:
        print(usage)
        return 0
    record()
    chosen = options(usage)
    curve = curves.load(HERE)
    facts = curves.seen(sys.argv, chosen["-t"])
    curves.misbehave(curve, facts)
    print(answer(rows(curve, chosen, facts), curves.chosen(curve.get("broken", {}), facts)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
