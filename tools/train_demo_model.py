"""Train the demo model, and write it and its expected texts to bitnet_tuning/demo.

usage, from the repository's root, with the `train` extra installed:

    python -m tools.train_demo_model [--steps N] [--seed N] [--threads N] [--output FOLDER]

The same machine, versions and options should give the same files. Another CPU or number of threads
may add numbers in another order, which gives other weights that know the guide as well.
"""

import argparse
import os
import time

try:
    import torch
except ImportError as error:
    raise SystemExit(f"error: {error}; needs the extra train: pip install -e '.[train]'") from None

from bitnet_tuning import demo
from tools.demo_model import corpus, evaluate, export, network, training
from tools.demo_model.vocabulary import learn_vocabulary

FOLDER = os.path.dirname(demo.I2_S)
GUIDE = os.path.join(FOLDER, "guide.txt")
"""The text that the model memorises: ASCII, with a newline at its end."""

VOCABULARY_SIZE = 1024


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True)
    with open(GUIDE, encoding="ascii") as file:
        guide = file.read()
    docs = corpus.documents(guide)
    vocabulary = learn_vocabulary(guide, VOCABULARY_SIZE)
    shape = network.Shape(len(vocabulary.tokens))
    settings = training.Settings(steps=options.steps, seed=options.seed)
    start = time.monotonic()
    parameters, loss = training.train(docs, vocabulary, shape, settings)
    print(f"trained for {time.monotonic() - start:.0f} s, final loss {loss:.5f}")
    for path, form in ((demo.TQ2_0, export.TQ2_0), (demo.I2_S, export.I2_S)):
        export.write_model(_below(options.output, path), form, parameters, shape, vocabulary)
    engine = evaluate.Engine(_below(options.output, demo.I2_S), shape, vocabulary)
    _report(evaluate.recall(engine, docs))
    expectations = evaluate.expectations(engine, docs)
    evaluate.write_expectations(_below(options.output, demo.EXPECTED), expectations)


def _below(folder: str, path: str) -> str:
    return os.path.join(folder, os.path.basename(path))


def _report(recall: evaluate.Recall) -> None:
    print(f"teacher-forced, every token:           {recall.teacher_forced:.2%}")
    print(f"teacher-forced, after the questions:   {recall.teacher_forced_answers:.2%}")
    print(f"free-running, from each question:      {recall.free_running_answers:.2%}")
    print(f"lowest probability of a right token:   {recall.least_probability:.4f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the built-in demo model.")
    add = parser.add_argument
    defaults = training.Settings()
    add("--steps", type=int, default=defaults.steps, help="training steps (default: %(default)s)")
    add("--seed", type=int, default=defaults.seed, help="random seed (default: %(default)s)")
    add(
        "--threads",
        type=int,
        default=1,
        help="threads (default: 1); more help only on an idle machine",
    )
    add("--output", default=FOLDER, help="folder to write to (default: bitnet_tuning/demo)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
