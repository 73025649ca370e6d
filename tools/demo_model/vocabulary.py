"""A byte-level BPE tokenizer that is trained on the guide, and its tables for GGUF."""

import json
from typing import NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tools.demo_model.corpus import BOS, END, EOS, SPECIALS


class Vocabulary(NamedTuple):
    """A tokenizer with the tables that an engine needs."""

    tokenizer: Tokenizer
    tokens: list[str]
    merges: list[str]

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids))

    @property
    def bos(self) -> int:
        return self.tokens.index(BOS)

    @property
    def eos(self) -> int:
        return self.tokens.index(EOS)

    @property
    def end_of_turn(self) -> int:
        return self.tokens.index(END)


def learn_vocabulary(guide: str, size: int) -> Vocabulary:
    """Learn `size` tokens: the special ones, all 256 bytes, and merges of frequent pairs.

    The pre-tokenizer is GPT-2's, which engines select by the name "gpt-2".
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([guide], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    # Older versions of the library store a merge as "a b", newer ones as ["a", "b"].
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return Vocabulary(tokenizer, tokens, merges)
