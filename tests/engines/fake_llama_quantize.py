#!/usr/bin/env python3
"""A program that answers like llama-quantize.

It appends its command line to ``quantized.jsonl`` beside itself and writes the file that
FAKE_COPY names as its result. FAKE_QUANTIZE sets how it misbehaves:

half     it writes half of the file and exits with 0, as bitnet.cpp's does on a full disk
garbage  it writes no GGUF file and exits with 0
fail     it writes half of the file, prints why it failed and exits with 1
crash    it kills itself after half of the file
xfsz     it does so with the signal for files that are larger than `ulimit -f` allows
hang     it writes half of the file, then nothing more until it is killed
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))


def main() -> int:
    with open(os.path.join(HERE, "quantized.jsonl"), "a") as file:
        file.write(json.dumps({"argv": sys.argv[1:], "pid": os.getpid()}) + "\n")
    way = os.environ.get("FAKE_QUANTIZE", "")
    with open(os.environ["FAKE_COPY"], "rb") as file:
        data = file.read()
    whole = not way
    print("[   1/  22]   token_embd.weight - converting to q6_K .. ", file=sys.stderr, flush=True)
    with open(sys.argv[-3], "wb") as file:
        file.write(b"garbage" if way == "garbage" else data if whole else data[: len(data) // 2])
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which Python ignores
    if way in ("crash", "xfsz"):
        os.kill(os.getpid(), signal.SIGSEGV if way == "crash" else signal.SIGXFSZ)
    if way == "hang":
        time.sleep(120)
    if way == "fail":
        print("llama_model_quantize: failed to quantize: no memory", file=sys.stderr)
        print(f"main: failed to quantize model from '{sys.argv[-4]}'", file=sys.stderr)
    return int(way == "fail")


if __name__ == "__main__":
    sys.exit(main())
