"""Measure what the demo model loses with a smaller embedding.

usage, from the repository's root, with the `train` extra installed:

    python -m tools.embedding_loss FOLDER [FOLDER ...] [--types TYPE [TYPE ...]]

A FOLDER holds bitnet.cpp's `llama-quantize`, which makes a copy of the demo model for each type.
The copies of the first folder are compared with the demo model by the reference implementation,
those of all folders that hold a `llama-perplexity` by that, too.
"""

import argparse
import os
import re
import subprocess
import tempfile

try:
    import torch  # noqa: F401 (the modules below need it)
except ImportError as error:
    raise SystemExit(f"error: {error}; needs the extra train: pip install -e '.[train]'") from None

from bitnet_tuning import demo
from tools.demo_model import corpus, evaluate, network
from tools.demo_model.vocabulary import learn_vocabulary
from tools.train_demo_model import GUIDE, VOCABULARY_SIZE

TYPES = ("q8_0", "q6_k", "q5_k", "q5_0", "q4_k", "q4_0", "q3_k", "q2_k")
CONTEXT = 128
"""Tokens in a chunk of llama-perplexity; most of the guide's parts are shorter."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as below:
        for folder in options.folders:
            copies = {kind: _copy(folder, kind, below) for kind in options.types}
            if folder == options.folders[0]:
                _report_reference(copies)
            if os.path.exists(os.path.join(folder, "llama-perplexity")):
                _report_engine(folder, copies, os.path.join(below, "logits"))


def _copy(folder: str, kind: str, below: str) -> str:
    path = os.path.join(below, f"{kind}.gguf")
    flags = ["--allow-requantize", "--token-embedding-type", kind, demo.I2_S, path, "I2_S", "1"]
    _output(folder, "llama-quantize", *flags)
    return path


def _report_reference(copies: dict[str, str]) -> None:
    with open(GUIDE, encoding="ascii") as file:
        guide = file.read()
    vocabulary = learn_vocabulary(guide, VOCABULARY_SIZE)
    docs = corpus.documents(guide)
    read = {
        "documents": evaluate.documents(vocabulary, docs, answers=False),
        "answers": evaluate.documents(vocabulary, docs, answers=True),
        f"chunks of {CONTEXT}": evaluate.chunks(vocabulary, guide, CONTEXT),
    }
    shape = network.Shape(len(vocabulary.tokens))
    original = evaluate.Engine(demo.I2_S, shape, vocabulary)
    for kind, path in {"f16": demo.I2_S, **copies}.items():
        engine = evaluate.Engine(path, shape, vocabulary)
        for name, passages in read.items():
            print(f"{kind}, {os.path.getsize(path)} bytes, {name}")
            for key, value in evaluate.loss(engine, original, passages)._asdict().items():
                numbers = value if isinstance(value, tuple) else (value,)
                print(f"  {key:14}", *(f"{number:.6g}" for number in numbers))


def _report_engine(folder: str, copies: dict[str, str], logits: str) -> None:
    print(f"{folder}: perplexity; mean divergence; share of tokens with the same most likely one")
    common = ["-c", str(CONTEXT), "-t", "1", "--kl-divergence-base", logits]
    _output(folder, "llama-perplexity", "-m", demo.I2_S, "-f", GUIDE, *common)
    for kind, path in {"f16": demo.I2_S, **copies}.items():
        printed = _output(folder, "llama-perplexity", "-m", path, *common, "--kl-divergence")
        lines = (r"PPL\(Q\)  ", "Mean +KLD", "Same top p")
        found = [re.search(rf"{line} *: *(.+)", printed) for line in lines]
        print(f"  {kind:6}" + "; ".join(match[1] if match else "not found" for match in found))


def _output(folder: str, program: str, *flags: str) -> str:
    command = [os.path.join(folder, program), *flags]
    merged = subprocess.STDOUT
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=merged, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")
    return done.stdout


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the loss of a smaller embedding.")
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="folders of bitnet.cpp builds")
    parser.add_argument("--types", nargs="+", default=TYPES, help="types of the embedding")
    return parser.parse_args()


if __name__ == "__main__":
    main()
