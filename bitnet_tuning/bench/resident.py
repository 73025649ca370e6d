"""Measure settings by turns on loaded servers of the engine, one for each setting.

A server loads the model once and answers many short requests: slices of a prompt, or of generated
tokens. All servers but the one that is asked are stopped, so that they neither compute nor spin.
"""

from __future__ import annotations

import json
import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from bitnet_tuning.bench.llama_bench import FailedRunError, check_cli, checked, stale
from bitnet_tuning.errors import TuningError, UnsupportedError
from bitnet_tuning.launch.background import Captured
from bitnet_tuning.launch.failure import failure, shorten
from bitnet_tuning.launch.signals import handling, pausing
from bitnet_tuning.machine.cgroups import read_cgroups
from bitnet_tuning.machine.memory import read_memory
from bitnet_tuning.machine.process import Family
from bitnet_tuning.machine.root import Root
from bitnet_tuning.namedtuple import NamedTuple
from bitnet_tuning.plan.facts import Facts, Request
from bitnet_tuning.plan.memory import RESIDENT_SHARE, need_of
from bitnet_tuning.plan.plan import make_plan
from bitnet_tuning.plan.profile import PP
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.serve import server as serving
from bitnet_tuning.serve.session import TIMINGS

LONGEST, MARGIN = 512, 16
"""Tokens of the longest slice unless longer ones are asked for, and what else the context holds."""

START = 1
"""Tokens of the prompt before generated tokens, so that all slices are at the same position."""

VARIETY = 997
"""Number of different tokens in a prompt; every vocabulary is larger, but for toys'."""

GENERATED = 50
"""The token that is generated again and again, because a bias makes it the likeliest. Servers end a
text at an end-of-turn token in spite of ``ignore_eos`` (process_token() in llama.cpp's server.cpp
of 2024). This one is a character in vocabularies of bytes, and ends no text of BitNet models."""

BIAS = 1000.0
"""What is added to the token's logit; the logits of a model are far smaller."""

GREEDY: dict[str, object] = {"temperature": 0.0, "seed": 1}
"""Fields of a request for the most likely tokens."""

TOLERANCE, LEAST_SECONDS = 1.2, 0.1
"""Factor and seconds by which our own clock may contradict the engine's."""

MOST = 1e12
"""Upper limit of a number of tokens or milliseconds that can be true."""

TRIES = 3
"""Attempts where times contradict each other, since another program may have been in the way, or
where the cli's output lacks its end: llama-completion of late 2026 sometimes exits before its log
thread has written everything (https://github.com/ggml-org/llama.cpp/issues/22142)."""

LEAST_WORK = 5.0
"""Factor by which a slice may cost less CPU time than with the default."""

OWN_SECONDS = 0.02
"""Seconds of an answer that may be ours: sending, waking up and reading."""


class _Loaded(NamedTuple):
    stack: ExitStack
    """What ends the server."""
    server: serving.Running
    family: Family
    times: list[tuple[float, float]]
    """Seconds of each slice so far, by the engine's clock and by ours."""


class Residents:
    """Servers of one engine with one model, each loaded when its setting is first measured."""

    def __init__(self, facts: Facts, server: serving.Server, longest: int = 0) -> None:
        """``longest`` is the number of tokens of the longest slice."""
        self.facts = facts
        self.server = server
        self.context = max(LONGEST, longest) + MARGIN
        self._loaded: OrderedDict[Setting, _Loaded] = OrderedDict()
        """Running servers by their setting, the one that was asked last at the end."""
        self._default: Setting | None = None
        """The setting that is asked first."""
        self._known: dict[tuple[str, int], tuple[object, float]] = {}
        """The default's text and its least CPU seconds, 0 if unknown, by phase and tokens."""

    def ask(
        self, setting: Setting, phase: str, tokens: int, seconds: float
    ) -> tuple[float, float | None]:
        """Process a prompt of so many ``tokens``, or generate them; ``seconds`` is the time limit.
        Return the phase's speed in tokens/s by the engine's clock, and the CPU seconds per token of
        the whole answer, None if unknown. Raise UnsupportedError if the server does not start or
        answer, or if its times cannot be true."""
        self._default = self._default or setting
        with self._server(setting, seconds) as loaded:
            for _ in range(TRIES - 1):
                with suppress(FailedRunError):
                    return self._slice(loaded, setting, phase, tokens, seconds)
            return self._slice(loaded, setting, phase, tokens, seconds)

    def write(self, setting: Setting, prompt: str, tokens: int, seconds: float) -> tuple[str, int]:
        """Return the greedy text that a setting adds to a prompt, and the number of the prompt's
        tokens, 0 if unknown. Raise UnsupportedError if the server does not start or answer."""
        body = {"prompt": prompt, "n_predict": tokens, "cache_prompt": False, **GREEDY}
        with self._server(setting, seconds) as loaded:
            reply = _complete(loaded, body, seconds)
        timings, text = reply.get("timings"), reply.get("content")
        count = timings.get("prompt_n") if isinstance(timings, dict) else 0
        return text if isinstance(text, str) else "", count if isinstance(count, int) else 0

    def has(self, setting: Setting) -> bool:
        return setting in self._loaded

    def close(self) -> None:
        for setting in tuple(self._loaded):
            self._end(setting)

    def _end(self, setting: Setting) -> None:
        self._loaded.pop(setting).stack.close()

    @contextmanager
    def _server(self, setting: Setting, seconds: float) -> Iterator[_Loaded]:
        """Yield the setting's server, loaded if it was not; a failure ends it."""
        if setting not in self._loaded:
            self._loaded[setting] = self._load(setting, seconds)
        self._loaded.move_to_end(setting)
        try:
            yield self._loaded[setting]
        except TuningError:
            self._end(setting)
            raise

    def _slice(
        self, loaded: _Loaded, setting: Setting, phase: str, tokens: int, seconds: float
    ) -> tuple[float, float | None]:
        size = tokens if phase == PP else START
        vocabulary = min(VARIETY, self.facts.model.vocabulary or VARIETY)
        body = {
            "prompt": [index % vocabulary for index in range(1, size + 1)],
            # The first token comes out of the prompt's last step, which is not generation's.
            "n_predict": 1 if phase == PP else tokens + 1,
            "cache_prompt": False,
            "ignore_eos": True,
            "logit_bias": [[GENERATED % vocabulary, BIAS]],
            **GREEDY,
        }
        before, began = _cpu_seconds(loaded.family), time.monotonic()
        reply = _complete(loaded, body, seconds)
        taken = time.monotonic() - began
        after = _cpu_seconds(loaded.family)
        found = reply.get("timings")
        timings = found if isinstance(found, dict) else {}
        # JSON from Python's parser may hold NaN, infinity and any number of digits.
        told = [each for name in TIMINGS if isinstance(each := timings.get(name), (int, float))]
        numbers = [float(each) for each in told if 0 <= each < MOST]
        if len(numbers) < len(TIMINGS):
            raise FailedRunError("the server printed no timings")
        prompt, prompt_ms, predicted, predicted_ms = numbers
        whole = (prompt_ms + predicted_ms) / 1000
        count, spent = (prompt, prompt_ms) if phase == PP else (predicted - 1, predicted_ms)
        if count != tokens:
            raise FailedRunError(f"{phase} had {count:g} tokens instead of {tokens}")
        # Over many slices, also a few milliseconds in each are seen.
        for slices in ([(whole, taken)], [*loaded.times, (whole, taken)]):
            claimed, seen = map(sum, zip(*slices, strict=True))
            if not agree(claimed, seen, OWN_SECONDS * (len(slices) - 1)):
                what = f"{phase}{tokens}" if len(slices) == 1 else f"{len(slices)} slices"
                cause = f"the engine says that {what} took {claimed:.3g} s, but it took {seen:.3g}"
                raise FailedRunError(cause)
        loaded.times.append((whole, taken))
        speed = checked(1000 * count / spent if spent > 0 else 0.0, f"{phase}{tokens}")
        used = after - before if phase != PP and before and after else 0.0
        self._compare(setting, (phase, tokens), reply.get("content"), used)
        return speed, used / (size + tokens) if used > 0 else None

    def _compare(self, setting: Setting, size: tuple[str, int], text: object, used: float) -> None:
        """Raise FailedRunError if a slice's text is not the default's, which the bias fixes, or if
        it took too little CPU time for the same work."""
        known, least = self._known.get(size, (text, 0.0))
        if text != known:
            found, expected = (shorten(json.dumps(each), 40) for each in (text, known))
            raise FailedRunError(f"it answers a slice with {found}, the default with {expected}")
        if setting == self._default:
            self._known[size] = text, min(used, least or used)
            return
        assert self._default is not None
        # The default's threads may also have waited for each other, the more of them the longer.
        waits = max(1.0, self._default.threads / setting.threads)
        if 0 < used < least / (LEAST_WORK * waits) and least > OWN_SECONDS:
            raise FailedRunError(
                f"it computes less than the default: {used:.2g} s of CPU time, not {least:.2g}"
            )

    def _load(self, setting: Setting, seconds: float) -> _Loaded:
        """Start the setting's server; end others, the longest unused first, if memory lacks."""
        facts = with_file(self.facts, setting)
        check_cli(setting, self.server.flags)
        need = need_of(facts.model, self.context, setting.ubatch)
        private = need.total if setting.mmap is False else need.total - need.model
        # Linux counts a mapped model as available memory, but its pages are needed. Two servers
        # stay in any case: reading pages again costs less than to load a server for each slice.
        while self._loaded:
            available = read_memory(Root(), read_cgroups(Root())).available
            if _fits(private + facts.model.size * (len(self._loaded) > 1), available):
                break
            self._end(next(iter(self._loaded)))
        plan = make_plan(Request(ctx_size=self.context), facts, setting)
        # Mainline would keep a copy of the last prompt's cache whenever another prompt comes.
        extra = ("--cache-ram", "0") if "--cache-ram" in self.server.flags else ()
        request, path, context = Request(extra=extra), facts.model.path, self.context
        with ExitStack() as stack:
            start = serving.running(
                lambda port: serving.server_command(
                    plan, request, self.server, model=path, slots=1, context=context, port=port
                ),
                plan,
                "--api-key" in self.server.flags,
                unset=stale(setting, os.environ),
                seconds=seconds,
                follows=False,
            )
            try:
                ready = stack.enter_context(start)
            except serving.GoneError as gone:
                raise _failed(gone, seconds) from gone
            return _Loaded(stack.pop_all(), ready, Family(Root(), ready.service.pid), [])


def _complete(loaded: _Loaded, body: dict[str, object], seconds: float) -> dict[str, object]:
    """Return the reply of a server that is stopped before and after, or raise UnsupportedError."""
    service, began = loaded.server.service, time.monotonic()
    service.resume()
    try:
        with handling(pausing(-service.pid)):
            reply = loaded.server.client.complete(body, seconds)
    except serving.RefusedError as refusal:
        raise UnsupportedError(f"the server refuses a slice: {refusal.reason}") from refusal
    except serving.BrokenError as trouble:
        is_late = time.monotonic() - began >= seconds
        raise _failed(None if is_late else loaded.server.check(trouble), seconds) from trouble
    service.pause()  # a waiting thread may spin, which is no part of the slice
    return reply


def _failed(error: TuningError | None, seconds: float) -> UnsupportedError:
    """Return why a server failed; no ``error`` means that it took longer than ``seconds``."""
    if error is not None and not isinstance(error, serving.GoneError):
        return UnsupportedError(error.cause)
    done = Captured(error.code, "", error.log) if error else Captured(None, "", "")
    return UnsupportedError(failure(done, seconds) or str(error))


def agree(claimed: float, taken: float, uncounted: float = 0.0) -> bool:
    """Return whether seconds that an engine claims agree with ours, but for ``uncounted`` ones."""
    spare = LEAST_SECONDS + uncounted
    return claimed <= TOLERANCE * taken + spare and taken <= TOLERANCE * claimed + spare


def _cpu_seconds(family: Family) -> float | None:
    # This is the clock of clock_getcpuclockid(3) in Linux, which also counts ended threads.
    try:
        return sum(time.clock_gettime((~each.id << 3) | 2) for each in family.look()) or None
    except (AttributeError, OSError):
        return None


def with_file(facts: Facts, setting: Setting) -> Facts:
    """Return the facts with the file that the setting runs."""
    if setting.embedding is not None and facts.beside is not None:
        return facts._replace(model=facts.beside)
    return facts


def _fits(need: int, available: int | None) -> bool:
    return available is None or need <= RESIDENT_SHARE * available


def find_residents(facts: Facts, longest: int = 0) -> Residents | None:
    """Return residents; None if the engine has no server, or memory has no room for two."""
    try:
        server = serving.server_of(facts.engine)
    except TuningError:
        return None
    residents = Residents(facts, server, longest)
    need = need_of(facts.model, residents.context, None)
    two = need.total + need.cache + need.buffers
    return residents if _fits(two, facts.host.memory.available) else None
