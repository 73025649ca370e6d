"""Check whether an engine writes the same greedy text with a setting as with the default."""

from __future__ import annotations

import time
from functools import cached_property, partial

from bitnet_tuning.bench.knobs import COMPUTING
from bitnet_tuning.bench.llama_bench import TOKENS_PER_WORD, FailedRunError, words
from bitnet_tuning.bench.resident import TRIES, Residents
from bitnet_tuning.bench.runner import Patience, run_cli, unpaused
from bitnet_tuning.demo import right_model
from bitnet_tuning.engine.probe import parse_timings
from bitnet_tuning.errors import TuningError, UnsupportedError
from bitnet_tuning.launch.failure import shorten
from bitnet_tuning.model.gguf import read_model
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.memory import DEFAULT_UBATCH
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.verify import selftest

QUESTION = "Question: Why does the moon look larger near the horizon?\nAnswer:"
TOKENS = 24
"""Number of tokens generated when two settings' texts are compared."""

WORDS_MARGIN = 1.5
"""Factor by which a word of a long prompt may have fewer tokens than a word of QUESTION."""

_SHOWN = 48
"""Most characters shown of a text that differs."""


class _ReferenceError(Exception):
    """The default's text cannot serve for comparison; the message says why."""


class Checker:
    """A check of settings' greedy texts: the demo model's must be the known ones, the user's
    model's must be the same as with the default setting."""

    def __init__(
        self,
        facts: Facts,
        default: Setting,
        patience: Patience | None = None,
        residents: Residents | None = None,
    ) -> None:
        """``residents`` write the texts of the user's model if there are any, else the cli."""
        self._facts = facts
        self._default = default
        self._patience = patience or Patience()
        self._residents = residents
        self.notes: dict[str, str] = {}
        """Which of the two comparisons are not possible, and why."""
        self._texts: dict[str, list[str]] = {}
        """All texts of the default, by prompt."""
        self._took: dict[str, float] = {}
        """Longest time of the default in seconds, by prompt."""
        self._tokens: dict[str, int] = {}
        """Number of tokens, by prompt; 0 if the engine did not tell."""
        self._unusable: dict[str, str] = {}
        """Why the default's text cannot serve for comparison, by prompt."""

    def problem(self, setting: Setting) -> str | None:
        """Return what is wrong with the output; None if nothing is known to be wrong."""
        try:
            wrong = self._demo and _demo_problem(self._demo, setting)
            return f"the self-test failed: {wrong}" if wrong else self._other_words(setting)
        except UnsupportedError as error:
            return error.cause

    @cached_property
    def _demo(self) -> Facts | None:
        """The facts with the demo model; None if the default fails the self-test."""
        try:
            demo = self._facts._replace(model=read_model(right_model(self._facts.engine.i2_s)))
            wrong = _demo_problem(demo, self._default)
        except TuningError as error:
            wrong = error.cause
        if not wrong:
            return demo
        why = "no setting is self-tested, since the default setting fails the self-test"
        self.notes["demo"] = f"{why}: {wrong}"
        return None

    def _other_words(self, setting: Setting) -> str | None:
        """Return how the text differs from the default's; None if no difference is known."""
        if setting == self._default:
            return None
        try:
            # The question alone is quick and often shows already that a setting is out.
            prompts = dict.fromkeys((QUESTION, self._prompt(setting)))
            found = (self._compared(setting, prompt) for prompt in prompts)
            return next(filter(None, found), None)
        except _ReferenceError as why:
            self.notes["words"] = f"texts were not compared, since the default setting {why}"
            return None

    def _compared(self, setting: Setting, prompt: str) -> str | None:
        """Return how the setting's text for a prompt differs from the default's; None if it does
        not. Raise FailedRunError, or _ReferenceError without a usable default's text."""
        # An engine may lose the end of its text (see TRIES), so of two texts that begin alike the
        # shorter one is generated again.
        texts, mine = self._reference(prompt), [self._write(setting, prompt)]
        for left in range(TRIES, -1, -1):
            ours, theirs = max(mine, key=len), max(texts, key=len)
            if ours == theirs:
                return None
            if left and theirs.startswith(ours):
                mine.append(self._write(setting, prompt))
            elif left and ours.startswith(theirs):
                texts.append(self._write_default(prompt))
        # A default that does not even repeat its own text proves nothing against the setting.
        if len(texts) == 1:
            texts.append(self._write_default(prompt))
        theirs = max(texts, key=len)
        if not all(theirs.startswith(text) for text in texts):
            self._unusable[prompt] = "does not repeat its own text"
            raise _ReferenceError(self._unusable[prompt])
        return difference(ours, theirs, "than the default")

    def _reference(self, prompt: str) -> list[str]:
        """Return the texts of the default, at least one. Raise _ReferenceError if it cannot."""
        theirs = self._texts.setdefault(prompt, [])
        if not theirs or prompt in self._unusable:
            theirs.append(self._write_default(prompt))
        return theirs

    def _write_default(self, prompt: str) -> str:
        if prompt not in self._unusable:
            try:
                return self._write(self._default, prompt)
            except UnsupportedError as failed:
                self._unusable[prompt] = f"failed: {failed.cause}"
        raise _ReferenceError(self._unusable[prompt])

    def _write(self, setting: Setting, prompt: str) -> str:
        """Return the text that the engine adds to the prompt. Raise FailedRunError."""
        context = TOKENS_PER_WORD * len(prompt.split()) + 2 * TOKENS
        context = min(context, self._facts.model.context_length or context)
        request = Request(
            prompt=prompt, n_predict=TOKENS, ctx_size=context, temperature=0.0, seed=1
        )
        started = time.monotonic()
        seconds = self._patience.after(self._took.get(prompt))
        if self._residents and context <= self._residents.context:
            ask = partial(self._residents.write, setting, prompt, TOKENS, seconds)
            text, tokens = unpaused(ask)
        else:
            done = unpaused(lambda: run_cli(self._facts, setting, request, seconds))
            text = selftest.continuation(done.stdout, prompt)
            timing = parse_timings(done.stderr).prompt
            tokens = timing.tokens if timing else self._tokens.get(prompt, 0)
        if setting == self._default:
            self._took[prompt] = max(time.monotonic() - started, self._took.get(prompt, 0.0))
            self._tokens[prompt] = tokens
        return text.strip()

    def _prompt(self, setting: Setting) -> str:
        """Return the prompt to compare: the question, and before it more words than a micro-batch
        holds if the setting changes how prompts are computed."""
        # The question comes last, so that the model is sure of the next words.
        default = self._default
        if all(getattr(setting, name) == getattr(default, name) for name in COMPUTING):
            return QUESTION
        tokens = min(setting.ubatch or DEFAULT_UBATCH, default.ubatch or DEFAULT_UBATCH)
        self._reference(QUESTION)
        ratio = max(1.0, self._tokens[QUESTION] / len(QUESTION.split()))
        count = min(tokens, round(tokens * WORDS_MARGIN / ratio))
        if limit := self._facts.model.context_length:
            room = limit // TOKENS_PER_WORD - len(QUESTION.split()) - TOKENS
            count = min(count, max(1, room))
        return f"{words(count)}\n{QUESTION}"


def difference(got: str, expected: str, than: str) -> str:
    """Return half a sentence that quotes both texts from shortly before the first difference."""
    start = max(0, selftest.first_difference(got, expected) - 8)
    shown = [f'"{shorten(text[start:], _SHOWN)}"' for text in (got, expected)]
    return f"writes other words {than}: {shown[0]} instead of {shown[1]}"


def _demo_problem(demo: Facts, setting: Setting) -> str | None:
    """Return what is wrong with the demo model's text; None if it is right."""
    case = max(selftest.load_cases(), key=lambda case: len(case.prompt))
    got, seconds = "", selftest.RUN_SECONDS
    request = selftest.case_request(case)
    for _ in range(TRIES):
        try:
            done = unpaused(lambda: run_cli(demo, setting, request, seconds))
        except FailedRunError as failed:
            return str(failed)
        got = selftest.continuation(done.stdout, case.prompt).strip()
        if selftest.matches(got, case.text):
            return None
        if not case.text.strip().startswith(got):
            break
    return difference(got, case.text.strip(), "than expected")
