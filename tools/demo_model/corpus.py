"""The training text: parts of the guide, as they are and after questions in many wordings."""

import random
import re
from typing import NamedTuple

from tools.demo_model.phrasings import PHRASINGS, STRAYS

BOS = "<|begin_of_text|>"
EOS = "<|endoftext|>"
# ChatML, because every engine knows it. Current ones render the template below, older ones
# recognise it by these two markers, and the oldest use it for any unknown template.
TURN, END = "<|im_start|>", "<|im_end|>"
SPECIALS = (BOS, EOS, TURN, END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SYSTEM_PROMPTS = ("You are a helpful assistant", "You are a helpful assistant.", "Be brief.")
INTRODUCTION = "What is this model?"


class Document(NamedTuple):
    """A part of the guide: a question or a heading, and the text below it."""

    prompt: str
    text: str

    @property
    def is_question(self) -> bool:
        return self.prompt.endswith("?")

    @property
    def whole(self) -> str:
        """The part as it is in the guide."""
        return self.prompt + ("\n" if self.is_question else "\n\n") + self.text


class Span(NamedTuple):
    """Text of a training sequence. The loss counts it only if it is `learnt`."""

    text: str
    learnt: bool


def documents(guide: str) -> list[Document]:
    """Split the guide at its empty lines into questions with answers and headings with texts."""
    found: list[Document] = []
    heading = ""
    for block in guide.strip("\n").split("\n\n"):
        first, _, rest = block.partition("\n")
        if first.endswith("?"):
            found.append(Document(first, rest))
        elif not rest:
            heading = block
        elif found and found[-1].prompt == heading:
            found[-1] = Document(heading, f"{found[-1].text}\n\n{block}")
        else:
            found.append(Document(heading, block))
    return found


class Augmenter:
    """A generator of random training sequences: parts of the guide, also after varied questions."""

    def __init__(self, docs: list[Document], seed: int) -> None:
        self.questions = [doc for doc in docs if doc.is_question]
        self.introduction = next(doc for doc in docs if doc.prompt == INTRODUCTION)
        self.random = random.Random(seed)
        if set(PHRASINGS) != {doc.prompt for doc in self.questions}:
            raise ValueError("phrasings.py and the guide have different questions")

    def plain(self, doc: Document) -> list[Span]:
        return [Span(BOS, False), Span(doc.whole + EOS, True)]

    def asked_otherwise(self, doc: Document) -> list[Span]:
        """Return the text after a question in lower case, with a mark, shortened or reworded."""
        if not doc.is_question or self.random.random() < 0.35:
            asked = doc.prompt.lower()
            return [Span(BOS, False), Span(asked + doc.whole[len(asked) :] + EOS, True)]
        asked = self._vary(doc)
        mark = self.random.choice(["Q", "Question", "", "", " "])
        if not mark.strip():
            # The beginning of a question must be continued as the question, not with the answer.
            asked = doc.prompt if doc.prompt.lower().startswith(asked.lower()) else asked
            return [Span(BOS + asked + mark, False), Span(f"\n{doc.text}{EOS}", True)]
        reply = "A" if mark == "Q" else "Answer"
        return [Span(f"{BOS}{mark}: {asked}\n{reply}:", False), Span(f" {doc.text}{EOS}", True)]

    def stray(self) -> list[Span]:
        """Return a text from elsewhere, to which the model responds by introducing itself."""
        opening = self.random.choice(STRAYS)
        shorter = " ".join(opening.split(" ")[: self.random.randint(1, 9)])
        if not any(doc.prompt.startswith(shorter) for doc in self.questions):
            opening = shorter
        return [Span(BOS + opening, False), Span(f"\n\n{self.introduction.whole}{EOS}", True)]

    def chat(self, doc: Document) -> list[Span]:
        """Return a chat of one to four turns. The last one is about `doc`."""
        spans = [Span(BOS, False)]
        if self.random.random() < 0.3:
            system = self.random.choice(SYSTEM_PROMPTS)
            spans.append(Span(f"{TURN}system\n{system}{END}\n", False))
        for _ in range(self.random.choice([0, 0, 0, 0, 0, 1, 1, 2, 3])):
            spans += self._turn(self.random.choice(self.questions))
        return spans + self._turn(doc)

    def _turn(self, doc: Document) -> list[Span]:
        asked = doc.prompt
        if doc is self.introduction and self.random.random() < 0.5:
            asked = self.random.choice(STRAYS)
        elif doc.is_question and self.random.random() < 0.7:
            asked = self._vary(doc)
        opening = f"{TURN}user\n{asked}{END}\n{TURN}assistant\n"
        return [Span(opening, False), Span(doc.text + END, True), Span("\n", False)]

    def _vary(self, doc: Document) -> str:
        """Reword or shorten the question, change it to lower case, or drop its question mark."""
        chance = self.random.random()
        varied = doc.prompt if chance < 0.2 else self._shorten(doc.prompt)
        if chance > 0.4:
            varied = self.random.choice(PHRASINGS[doc.prompt])
        if self.random.random() < 0.4:
            varied = varied.lower()
        return varied.rstrip("?") if self.random.random() < 0.4 else varied

    def _shorten(self, question: str) -> str:
        """Drop the end or one short word, unless the question becomes ambiguous."""
        words = question.split(" ")
        if self.random.random() < 0.5:
            words = words[: -self.random.randint(1, 3)]
        else:
            short = [i for i, word in enumerate(words) if re.fullmatch("[A-Za-z]{1,6}", word)]
            del words[self.random.choice(short)]
        shorter = " ".join(words)
        matches = sum(doc.prompt.startswith(shorter) for doc in self.questions)
        return shorter if len(words) > 1 and matches < 2 else question
