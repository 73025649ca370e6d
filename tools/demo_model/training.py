"""The training loop over parts of the guide, as they are, after varied questions and in chats."""

import random
import time
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from tools.demo_model import network
from tools.demo_model.corpus import Augmenter, Document, Span
from tools.demo_model.vocabulary import Vocabulary

IGNORED = -100  # the target that cross_entropy ignores by default
Row = tuple[list[int], list[int]]  # token ids, and the targets: IGNORED if not to be learnt


class Settings(NamedTuple):
    """Settings of the optimiser. `batch` is the number of sequences in a step."""

    steps: int = 1000
    batch: int = 16
    learning_rate: float = 3e-3
    warm_up: int = 50
    weight_decay: float = 0.01
    seed: int = 1
    report_every: int = 25


def train(
    docs: list[Document], vocabulary: Vocabulary, shape: network.Shape, settings: Settings
) -> tuple[dict[str, Tensor], float]:
    """Train a new network; return its float parameters and the mean loss of the last 50 steps."""
    batches = _Batches(docs, vocabulary, settings)
    parameters = network.new_parameters(shape, settings.seed)
    optimiser = torch.optim.AdamW(_groups(parameters, settings), lr=0, betas=(0.9, 0.98))
    losses: list[float] = []
    start = time.monotonic()
    for step in range(settings.steps):
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(step, settings)
        losses.append(_step(parameters, shape, optimiser, batches.draw()))
        if (step + 1) % settings.report_every == 0:
            mean = sum(losses[-settings.report_every :]) / settings.report_every
            seconds = time.monotonic() - start
            print(f"step {step + 1:5}  loss {mean:.5f}  {seconds:5.0f} s", flush=True)
    last = losses[-50:]
    return parameters, sum(last) / len(last)


class _Batches:
    """An endless sequence of batches, over the documents in random order."""

    def __init__(self, docs: list[Document], vocabulary: Vocabulary, settings: Settings) -> None:
        self.docs = docs
        self.vocabulary = vocabulary
        self.size = settings.batch
        self.augmenter = Augmenter(docs, settings.seed)
        self.random = random.Random(settings.seed)
        self.queue: list[Document] = []
        self.ready: list[list[Row]] = []

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return token ids and the ids that follow, of shape (batch, length), padded at the end."""
        if not self.ready:
            self.ready = self._similar_lengths()
        rows = self.ready.pop()
        length = max(len(ids) for ids, _ in rows)
        inputs = torch.full((len(rows), length - 1), self.vocabulary.eos)
        targets = torch.full((len(rows), length - 1), IGNORED)
        for row, (ids, wanted) in enumerate(rows):
            inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[row, : len(ids) - 1] = torch.tensor(wanted[1:])
        return inputs, targets

    def _similar_lengths(self) -> list[list[Row]]:
        """Return four batches of similar lengths: padding would take half of the time."""
        rows = sorted((self._encode(self._sequence()) for _ in range(4 * self.size)), key=_length)
        batches = [rows[i : i + self.size] for i in range(0, len(rows), self.size)]
        return self.random.sample(batches, len(batches))

    def _sequence(self) -> list[Span]:
        """Return the next document as it is, or after one of the ways to ask for it."""
        if not self.queue:
            self.queue = self.random.sample(self.docs, len(self.docs))
        doc = self.queue.pop()
        kind = self.random.random()
        if kind < 0.4:
            return self.augmenter.plain(doc)
        if kind < 0.44:
            return self.augmenter.stray()
        return self.augmenter.asked_otherwise(doc) if kind < 0.6 else self.augmenter.chat(doc)

    def _encode(self, spans: list[Span]) -> Row:
        ids: list[int] = []
        wanted: list[int] = []
        for span in spans:
            encoded = self.vocabulary.encode(span.text)
            ids += encoded
            wanted += encoded if span.learnt else [IGNORED] * len(encoded)
        return ids, wanted


def _length(row: Row) -> int:
    return len(row[0])


def _groups(parameters: dict[str, Tensor], settings: Settings) -> list[dict[str, object]]:
    """Return parameter groups for the optimiser: weight decay acts on matrices, not on gains."""
    matrices = [value for value in parameters.values() if value.ndim > 1]
    gains = [value for value in parameters.values() if value.ndim == 1]
    decay = settings.weight_decay
    return [{"params": matrices, "weight_decay": decay}, {"params": gains, "weight_decay": 0.0}]


def _learning_rate(step: int, settings: Settings) -> float:
    """Return the rate: it rises in the warm-up, then falls to 2 %, so that rounding settles."""
    rise = min(1.0, (step + 1) / settings.warm_up)
    return settings.learning_rate * rise * max(0.02, 1 - step / settings.steps)


def _step(
    parameters: dict[str, Tensor],
    shape: network.Shape,
    optimiser: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
) -> float:
    inputs, targets = batch
    predicted = network.logits(network.quantised(parameters, shape), shape, inputs)
    loss = functional.cross_entropy(
        predicted.flatten(0, 1), targets.flatten(), ignore_index=IGNORED
    )
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(list(parameters.values()), 1.0)
    optimiser.step()
    return float(loss.detach())
