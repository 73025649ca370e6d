"""The evaluation of a file: how much of the guide it knows, with what margin, and what it lost."""

import json
import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tools.demo_model import network
from tools.demo_model.corpus import BOS, EOS, Document
from tools.demo_model.export import NAME
from tools.demo_model.stored import read_tensors
from tools.demo_model.vocabulary import Vocabulary

# The beginning of a document, the number of its words in the prompt, and the number of tokens to
# generate (None: up to the end of the answer). The prompts of the last three have more than 64, 128
# and 192 tokens, so that they are processed in batches.
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
    """Shares of right tokens over all documents, from 0 to 1. An answer includes its end token."""

    teacher_forced: float
    teacher_forced_answers: float
    free_running_answers: float
    least_probability: float


class Passage(NamedTuple):
    """A teacher-forced sequence of tokens, of which those from `first` on count."""

    tokens: list[int]
    first: int


class Loss(NamedTuple):
    """How far a file's logits are from those of the original, over all tokens that count."""

    tokens: int
    perplexity: float
    rise: tuple[float, float]
    """Mean change of a token's cross-entropy in nats, and its standard error."""
    divergence: tuple[float, float, float]
    """Mean Kullback-Leibler divergence from the original's distribution, its standard error, and
    the largest one, in nats."""
    change: tuple[float, float]
    """Mean and largest distance of a logit from the original's."""
    other_choices: float
    """Share of tokens, from 0 to 1, for which another one became the most likely."""
    margin: float
    """Smallest lead of a right token's logit; negative where another token leads."""


class Engine:
    """A model file that is run as an engine runs it, one sequence at a time."""

    def __init__(self, path: str, shape: network.Shape, vocabulary: Vocabulary) -> None:
        self.weights = {name: torch.tensor(value) for name, value in read_tensors(path).items()}
        self.shape = shape
        self.vocabulary = vocabulary

    def logits(self, tokens: list[int]) -> Tensor:
        """Return logits of shape (len(tokens) - 1, vocab). Row i predicts token i + 1."""
        with torch.no_grad():
            batch = torch.tensor([tokens[:-1]])
            return network.logits(self.weights, self.shape, batch)[0]


def recall(engine: Engine, docs: list[Document]) -> Recall:
    """Measure how much of the documents greedy decoding reproduces.

    Free-running decoding equals teacher-forced decoding up to the first wrong token; later tokens
    do not count as right.
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


def documents(vocabulary: Vocabulary, docs: list[Document], *, answers: bool) -> list[Passage]:
    """Return all documents. With `answers`, only what follows a question or heading counts: there,
    the model knows every token."""
    encode = vocabulary.encode
    return [
        Passage(encode(BOS + doc.whole + EOS), len(encode(BOS + doc.prompt)) if answers else 1)
        for doc in docs
    ]


def chunks(vocabulary: Vocabulary, text: str, context: int) -> list[Passage]:
    """Return the chunks in which `llama-perplexity -c CONTEXT` reads a text: wherever they begin,
    they begin with the start token, and their second halves count."""
    start, *tokens = vocabulary.encode(BOS + text)
    ends = range(context - 1, len(tokens) + 1, context)
    return [Passage([start, *tokens[end - context + 1 : end]], context // 2 + 1) for end in ends]


def loss(engine: Engine, original: Engine, passages: list[Passage]) -> Loss:
    """Measure what a file has lost against the original of which it is a smaller copy."""
    pairs = [
        torch.stack([each.logits(tokens)[first - 1 :] for each in (engine, original)])
        for tokens, first in passages
    ]
    logits = torch.cat(pairs, 1).double()
    right = torch.tensor([token for tokens, first in passages for token in tokens[first:]])
    logs = logits.log_softmax(-1)
    nats = -logs[:, torch.arange(len(right)), right]
    divergences = functional.kl_div(*logs, reduction="none", log_target=True).sum(-1)
    change = (logits[0] - logits[1]).abs()
    best = logits.argmax(-1)
    leads = logits[0].gather(1, right[:, None])[:, 0]
    others = logits[0].scatter(1, right[:, None], -math.inf).amax(-1)
    return Loss(
        tokens=len(right),
        perplexity=float(nats[0].mean().exp()),
        rise=_mean(nats[0] - nats[1]),
        divergence=(*_mean(divergences), float(divergences.max())),
        change=(float(change.mean()), float(change.max())),
        other_choices=float((best[0] != best[1]).double().mean()),
        margin=float((leads - others).min()),
    )


def _mean(values: Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def expectations(engine: Engine, docs: list[Document]) -> dict[str, object]:
    """Return the content of expected.json. Raise ValueError if the model does not know a case."""
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
        raise ValueError(f"the model does not know the continuation of {prompt!r}")
    return {
        "prompt": prompt,
        "text": decode(whole[start:end]),
        # These include the end token, so that the answer is ended by the model, not by the limit.
        "tokens": end - start,
        "margin": round(float((best.values[:, 0] - best.values[:, 1]).min()), 2),
        "prompt_tokens": start,
    }


def _first_words(text: str, count: int) -> str:
    """Return the first `count` words and the white space between them."""
    end = 0
    for _ in range(count):
        while text[end].isspace():
            end += 1
        while end < len(text) and not text[end].isspace():
            end += 1
    return text[:end]
