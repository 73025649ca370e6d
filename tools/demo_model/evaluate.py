"""What the exported file knows: how much of the guide, and with what margin."""

import json
from typing import NamedTuple

import torch
from torch import Tensor

from tools.demo_model import network
from tools.demo_model.corpus import BOS, EOS, Document
from tools.demo_model.export import NAME
from tools.demo_model.stored import read_tensors
from tools.demo_model.vocabulary import Vocabulary

# The beginning of a document's text: how many words of it make the prompt, and how many tokens to
# ask for; None asks for all up to the end of the answer. The words of the last three make prompts
# of over 64, 128 and 192 tokens, so that the prompt goes through the matrices in batches.
CASES: tuple[tuple[str, int, int | None], ...] = (
    ("How many threads", 3, 48),
    ("What is a CPU quota?", 5, 48),
    ("Why is my output garbage?", 5, 64),
    ("What do pp and tg mean?", 6, 32),
    ("What is SMT?", 3, None),
    ("First steps", 62, 40),
    ("What limits the speed", 95, 48),
    ("What limits the speed", 145, 24),
)


class Recall(NamedTuple):
    """Shares of tokens, 0 to 1, over all documents; an answer's tokens include its end mark."""

    teacher_forced: float
    teacher_forced_answers: float
    free_running_answers: float
    least_probability: float


class Engine:
    """Runs a file's weights the way a real engine does, one sequence at a time."""

    def __init__(self, path: str, shape: network.Shape, vocabulary: Vocabulary) -> None:
        self.weights = {name: torch.tensor(value) for name, value in read_tensors(path).items()}
        self.shape = shape
        self.vocabulary = vocabulary

    def logits(self, tokens: list[int]) -> Tensor:
        """(len(tokens) - 1, vocab): row i predicts token i + 1."""
        with torch.no_grad():
            batch = torch.tensor([tokens[:-1]])
            return network.logits(self.weights, self.shape, batch)[0]


def recall(engine: Engine, docs: list[Document]) -> Recall:
    """Measure what greedy decoding reproduces.

    Free-running decoding follows the text until teacher-forced decoding first misses a token: what
    comes after a miss does not count, even where it happens to be right again.
    """
    hits = asked = answer_hits = answers = unbroken = 0
    least = 1.0
    for doc in docs:
        tokens = engine.vocabulary.encode(BOS + doc.whole + EOS)
        start = len(engine.vocabulary.encode(doc.prompt))
        logits, wanted = engine.logits(tokens), torch.tensor(tokens[1:])
        right = (logits.argmax(-1) == wanted).int()
        hits, asked = hits + int(right.sum()), asked + len(right)
        answer_hits, answers = answer_hits + int(right[start:].sum()), answers + len(right) - start
        unbroken += int(right[start:].cumprod(0).sum())
        chosen = logits.softmax(-1).gather(1, wanted[:, None])[start:]
        least = min(least, float(chosen.min()))
    return Recall(hits / asked, answer_hits / answers, unbroken / answers, least)


def expectations(engine: Engine, docs: list[Document]) -> dict[str, object]:
    """The content of expected.json. ValueError if the model does not know one of the cases."""
    cases = []
    for opening, words, tokens in CASES:
        doc = next(doc for doc in docs if doc.whole.startswith(opening))
        cases.append(_case(engine, doc, words, tokens))
    return {"schema": 1, "model": NAME, "cases": cases}


def write_expectations(path: str, content: dict[str, object]) -> None:
    with open(path, "w", encoding="ascii", newline="\n") as file:
        json.dump(content, file, indent=1)
        file.write("\n")


def _case(engine: Engine, doc: Document, words: int, tokens: int | None) -> dict[str, object]:
    encode, decode = engine.vocabulary.encode, engine.vocabulary.decode
    prompt = _first_words(doc.whole, words)
    whole = encode(BOS + doc.whole + EOS)
    start = len(encode(BOS + prompt))
    if whole[:start] != encode(BOS + prompt):
        raise ValueError(f"the prompt {prompt!r} ends within a token")
    end = len(whole) if tokens is None else start + tokens
    best = engine.logits(whole[:end])[start - 1 :].topk(2)
    if best.indices[:, 0].tolist() != whole[start:end]:
        raise ValueError(f"the model does not know how {prompt!r} goes on")
    return {
        "prompt": prompt,
        "text": decode(whole[start:end]),
        # Asking for one token more than there are lets the answer end by itself.
        "tokens": end - start,
        "margin": round(float((best.values[:, 0] - best.values[:, 1]).min()), 2),
        "prompt_tokens": start,
    }


def _first_words(text: str, count: int) -> str:
    """The first `count` words with what separates them, without the space after them."""
    end = 0
    for _ in range(count):
        while text[end].isspace():
            end += 1
        while end < len(text) and not text[end].isspace():
            end += 1
    return text[:end]
