"""The parts of ``--prompts``: lines, order, slots, memory, the command line, the journal's
text and what a file holds already."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from bitnet_tuning.errors import UsageError
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.facts import Plan
from bitnet_tuning.plan.request import Request
from bitnet_tuning.prompts import answers, journal, memory
from bitnet_tuning.prompts import measure as measuring
from bitnet_tuning.prompts.answers import Answer, Order
from bitnet_tuning.prompts.asks import Ask, parse
from bitnet_tuning.prompts.command import Seats, Server, context_of, server_command
from bitnet_tuning.prompts.flight import in_flight
from bitnet_tuning.prompts.measure import LEAST_TOKENS, Measured, measure
from bitnet_tuning.prompts.sink import Standing, standing
from bitnet_tuning.prompts.slots import (
    ROUNDS,
    decide,
    find,
    levels_up_to,
    pays,
    repeatable,
    tokens_for,
)

REQUEST = Request()


def asks(*prompts: str) -> tuple[Ask, ...]:
    return parse("\n".join(map(json.dumps, prompts)).encode(), REQUEST)


def answer(ask: Ask, text: str = "x") -> Answer:
    return Answer(ask.place, {"id": ask.id, "prompt": ask.prompt, "text": text})


# Lines


def test_a_line_is_a_text_or_an_object_and_blank_ones_are_skipped() -> None:
    content = '\ufeff"a"\r\n\n  \n{"prompt": "b", "id": "x", "top_p": 0.5}'.encode()
    first, second = parse(content, Request(n_predict=3, temperature=0.0, seed=5))
    assert (first.place, first.id, first.prompt) == (0, 0, "a")
    assert (first.n_predict, first.temperature, first.seed) == (3, 0.0, 5)
    assert (second.place, second.id, second.top_p) == (1, "x", 0.5)


def test_only_a_newline_parts_lines() -> None:
    (ask,) = parse('"a\u2028b\u0085c\x0cd"'.replace("\x0c", "").encode(), REQUEST)
    assert ask.prompt == "a\u2028b\u0085cd"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "it is not JSON"),
        (b'"\xff"', "it is not UTF-8"),
        (b"3", "neither a text nor an object"),
        (b"[]", "neither a text nor an object"),
        (b"{}", "it has no prompt"),
        (b'""', "its prompt is empty"),
        (b'{"prompt": null}', "its prompt is no text"),
        (b'"\\ud800"', "its prompt holds half of a surrogate pair"),
        (b'{"prompt": "a", "promt": 1}', "unknown key 'promt'"),
        (b'{"prompt": "a", "id": true}', "its id is neither"),
        (b'{"prompt": "a", "id": null}', "its id is neither"),
        (b'{"prompt": "a", "id": NaN}', "NaN is no number"),
        (b'{"prompt": "a", "id": -1e999}', "its id is not a finite number"),
        (b'{"prompt": "a", "id": 7}', "the id 7 stands in line 1 already"),
        (b'{"prompt": "a", "n_predict": 1.5}', "n_predict is no whole number"),
        (b'{"prompt": "a", "n_predict": -3}', "n_predict -3 is out of its range"),
        (b'{"prompt": "a", "temperature": "0"}', "temperature is no number"),
        (b'{"prompt": "a", "temperature": true}', "temperature is no number"),
        (b'{"prompt": "a", "temperature": 1e999}', "out of its range"),
        (b'{"prompt": "a", "top_p": 1.1}', "out of its range"),
        (b"[" * 5000, "it is not JSON"),
    ],
)
def test_a_bad_line_is_named(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=r"line 3: ") as caught:
        parse(b'{"prompt": "good", "id": 7}\n\n' + line, REQUEST)
    assert words in str(caught.value)


def test_no_prompts_are_an_error() -> None:
    with pytest.raises(UsageError, match="no prompt"):
        parse(b"\n \n", REQUEST)


# Answers


def test_answers_go_out_in_order_each_once() -> None:
    order = Order(1)
    some = [Answer(place, {"id": place}) for place in range(5)]
    out: list[int] = []
    for place in (3, 2, 0, 1, 1, 4, 3):
        out += [each.place for each in order.add(some[place])]
    assert out == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("said", "stop"),
    [
        ({"stop_type": "eos"}, "end"),
        ({"stop_type": "limit"}, "length"),
        ({"stop_type": "word"}, "word"),
        ({"stopped_eos": True, "stopped_limit": True}, "end"),
        ({"stopped_eos": False, "stopped_limit": True}, "length"),
        ({"stopped_word": True}, "word"),
    ],
)
def test_why_a_text_ended_is_read_from_either_generation(said: dict[str, Any], stop: str) -> None:
    reply = {"content": "t", "tokens_predicted": 2, "tokens_evaluated": 3, **said}
    facts = answers.from_reply(asks("a")[0], reply).facts
    assert facts["stop"] == stop
    assert (facts["tokens"], facts["prompt_tokens"]) == (2, 3)


@pytest.mark.parametrize("reply", [{}, {"content": "t"}, {"content": "t", "tokens_predicted": []}])
def test_a_reply_that_is_none_is_told(reply: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no completion"):
        answers.from_reply(asks("a")[0], reply)


# Slots


def rounds(speeds: dict[int, float], count: int = ROUNDS) -> list[dict[int, float]]:
    return [{level: speed * (1 + n / 50) for level, speed in speeds.items()} for n in range(count)]


@pytest.mark.parametrize(
    ("speeds", "slots_found"),
    [
        ({1: 10, 2: 19, 4: 30, 8: 30.5}, 4),
        ({1: 10, 2: 19, 4: 30, 8: 50}, 8),
        ({1: 10, 2: 10.3, 4: 10.2, 8: 9}, 1),
        ({1: 10, 2: 9, 4: 20, 8: 19}, 4),
        ({1: 10, 2: 12}, 2),
        ({1: 10}, 1),
    ],
)
def test_the_smallest_level_that_none_beats_is_taken(
    speeds: dict[int, float], slots_found: int
) -> None:
    found = decide(rounds(speeds))
    assert found is not None and found.slots == slots_found
    assert (found.gain is None) == (slots_found == 1)


def test_a_gain_that_some_rounds_deny_is_none() -> None:
    some = rounds({1: 10, 2: 12})
    some[1] = some[3] = some[4] = {1: 10, 2: 9}
    found = decide(some)
    assert found is not None and found.slots == 1


def test_levels_that_change_texts_do_not_count() -> None:
    found = decide(rounds({1: 10, 2: 19, 4: 30}), out={4})
    assert found is not None and found.slots == 2
    alone = decide(rounds({1: 10, 2: 19}, 1), out={2})
    assert alone is not None and alone.slots == 1


def test_few_rounds_decide_nothing() -> None:
    assert decide(rounds({1: 10, 2: 30}, ROUNDS - 1)) is None
    assert decide([]) is None


def test_what_was_found_is_said_with_its_interval() -> None:
    found = find(rounds({1: 10, 2: 19}), ())
    assert found is not None
    assert found.words(True) == "2 slots: ×1.9 (1.9–1.9) over one at a time"
    slow = find(rounds({1: 10, 2: 9}), {2})
    assert slow is not None
    assert slow.words(True) == "1 slot: with more at a time it was not faster"


def test_levels_that_change_texts_are_for_texts_of_chance() -> None:
    found = find(rounds({1: 10, 2: 19, 4: 30}), {2, 4})
    assert found is not None and found.differing == (2, 4)
    assert found.decision(False).slots == 4
    assert found.decision(True).slots == 1
    assert "greedy texts came out otherwise" in found.words(True)


def test_texts_that_change_even_one_at_a_time_leave_one_slot() -> None:
    found = find(rounds({1: 10, 2: 19, 4: 30}), {1, 4})
    assert found is not None and found.differing == (2, 4)
    assert (found.same.slots, found.free.slots) == (1, 4)


def test_an_answer_is_to_be_the_same_again_where_nothing_is_left_to_chance() -> None:
    (ask,) = asks("a")
    assert not repeatable([ask, ask._replace(seed=-1)])
    assert repeatable([ask, ask._replace(temperature=0)])
    assert repeatable([ask._replace(seed=0)])


@pytest.mark.parametrize(("most", "levels"), [(1, (1,)), (3, (1, 2)), (8, (1, 2, 4, 8))])
def test_levels_end_with_what_is_possible(most: int, levels: tuple[int, ...]) -> None:
    assert levels_up_to(most) == levels


def test_only_enough_work_pays_for_a_measurement() -> None:
    assert pays([ask._replace(n_predict=-1) for ask in asks(*"abcdefgh")])
    assert not pays([ask._replace(n_predict=4) for ask in asks(*"abcdefgh")])
    assert not pays(asks(*"abcdefg"))


def test_a_slow_engine_gets_short_answers_and_a_slower_one_none() -> None:
    def tokens(seconds: float) -> int | None:
        return tokens_for((1, 2, 4, 8), seconds, 30, 4, 16)

    assert tokens(0.001) == 16
    assert tokens(0.05) == 6
    assert tokens(1.0) is None


class Slow:
    """A server of which ``cores`` completions run at a time, by a clock of its own."""

    def __init__(self, cores: int, seconds: float = 0.03) -> None:
        self.cores = cores
        self.seconds = seconds
        self.now = 0.0
        self.bodies: list[dict[str, Any]] = []

    def __call__(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        return {"content": body["prompt"]}

    def measured(self, patch: pytest.MonkeyPatch, most: int, **how: float) -> Measured:
        patch.setattr(measuring, "in_flight", self.in_flight)
        patch.setattr(measuring, "time", self)
        return measure(self, most, **how)  # type: ignore[arg-type]

    def monotonic(self) -> float:
        return self.now

    def in_flight(
        self, jobs: Sequence[int], work: Callable[[int], Any], width: int, _waiting: object
    ) -> Iterator[tuple[int, Any]]:
        assert width == len(jobs)
        self.now += self.seconds * -(-len(jobs) // self.cores)
        return iter([(job, work(job)) for job in jobs])


def test_a_measurement_finds_how_many_run_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Slow(cores=2)
    found = server.measured(monkeypatch, 4)
    assert found.finding is not None and found.finding.free.slots == 2
    assert (found.rounds, found.is_full) == (ROUNDS, True)
    assert {body["temperature"] for body in server.bodies} == {0}
    assert min(body["n_predict"] for body in server.bodies) >= LEAST_TOKENS


def test_a_failure_of_the_server_ends_a_measurement() -> None:
    def fails(body: dict[str, Any]) -> dict[str, Any]:
        raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        measure(fails, 4)


def test_never_more_jobs_than_asked_for_are_at_work() -> None:
    busy: list[int] = []
    peak: list[int] = []
    lock = threading.Lock()

    def work(job: int) -> int:
        with lock:
            busy.append(job)
            peak.append(len(busy))
        time.sleep(0.005)
        with lock:
            busy.remove(job)
        return job * job

    assert dict(in_flight(range(20), work, 3)) == {job: job * job for job in range(20)}
    assert 1 < max(peak) <= 3


def test_after_a_failure_no_job_is_begun() -> None:
    begun: list[int] = []

    def work(job: int) -> int:
        begun.append(job)
        if job == 2:
            raise ValueError(job)
        return job

    with pytest.raises(ValueError, match="2"):
        list(in_flight(range(10), work, 1))
    assert begun == [0, 1, 2]


# Memory and command


MODEL = ModelFile("/m.gguf", 1000, "llama", "m", "i2_s", (), 4096, 10, 100, 1000, False)


def test_slots_have_to_fit_beside_the_model() -> None:
    buffers = 4 * 512 * (1000 + 100)
    room = 1000 + buffers + 3.6 * 4000 * 100
    assert memory.fitting_slots(MODEL, 100, None, int(room / memory.SHARE)) == 3
    assert memory.fitting_slots(MODEL, 100, 64, int(room / memory.SHARE)) == 8
    shared = MODEL._replace(heads=10, kv_width=50)
    assert memory.fitting_slots(shared, 100, None, int(room / memory.SHARE)) == 14
    assert memory.fitting_slots(MODEL, 100, None, 10) == 1
    assert memory.fitting_slots(MODEL, 100, None, None) is None
    assert memory.fitting_slots(MODEL._replace(layers=None), 100, None, 10**9) is None


def test_each_slot_has_the_context_of_a_single_run() -> None:
    assert context_of(Request(ctx_size=512), MODEL) == 512
    assert context_of(Request(ctx_size=0), MODEL) == 4096
    assert context_of(Request(ctx_size=0), MODEL._replace(context_length=None)) == 2048


PLAN = Plan(
    command=(),
    env={},
    cpus=None,
    threads=3,
    threads_batch=4,
    batch=None,
    ubatch=64,
    engine="/e",
    model="/m.gguf",
    reasons={},
    mlock=True,
    mmap=False,
    flash=True,
    poll=0,
)


def test_flags_go_only_to_a_server_that_lists_them() -> None:
    bare = Server(("s",), "/s", frozenset(), False)
    base = "s -m /m.gguf -t 3 -tb 4 -ngl 0 -c 1024 -np 2"
    end = "--host 127.0.0.1 --port 9 -x"
    request = Request(extra=("-x",))
    seats = Seats(2, 512)
    got = " ".join(server_command(PLAN, request, bare, seats, 9))
    assert got == f"{base} -ub 64 {end}"
    flags = ("-cb", "--no-context-shift", "--mlock", "--no-mmap", "-fa", "--poll")
    full = bare._replace(flags=frozenset(flags))
    got = " ".join(server_command(PLAN, request, full, seats, 9))
    tuned = "-ub 64 --no-mmap --mlock -fa --poll 0"
    assert got == f"{base} -cb --no-context-shift {tuned} {end}"


# The journal's text, and a file's end


RUN = journal.Run(asks("a", "b", "c"), "mark")
HEAD = b'{"schema": 1, "run": "mark", "prompts": 3}\n'


def entry(place: int, prompt: str) -> bytes:
    facts = {"id": place, "prompt": prompt, "text": "x"}
    return json.dumps({"place": place, "answer": facts}).encode() + b"\n"


@pytest.mark.parametrize(
    ("content", "places", "damaged"),
    [
        (b"", [], False),
        (HEAD, [], False),
        (HEAD + entry(2, "c") + entry(0, "a"), [2, 0], False),
        (HEAD + entry(0, "a") + entry(1, "b")[:-1], [0], False),
        (HEAD + entry(0, "a") + b"\0\0\n" + entry(1, "b"), [0], True),
        (HEAD + entry(1, "a"), [], True),
        (HEAD + entry(7, "a"), [], True),
        (HEAD.replace(b"mark", b"other") + entry(0, "a"), [], True),
        (entry(0, "a"), [], True),
        (b"\xff\n", [], True),
    ],
)
def test_a_journal_is_read_up_to_its_damage(
    content: bytes, places: list[int], damaged: bool
) -> None:
    found = journal.read(content, RUN)
    assert (list(found.answers), found.damaged) == (places, damaged)


A, B, C = (answer(ask) for ask in RUN.asks)
KNOWN = {0: A, 1: B, 2: C}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", Standing((), 0)),
        (A.line + B.line, Standing((A, B), 0)),
        (A.line + B.line + C.line[:-1], Standing((A, B), len(C.line) - 1)),
        (A.line + B.line + b"{", Standing((A, B), 1)),
        (b"other\n" + A.line, Standing((A,), 0)),
        (A.line + B.line + C.line + A.line, Standing((A,), 0)),
        (A.line + b"other\n", Standing((), 0)),
        (A.line + C.line, Standing((), 0)),
        (b"other", Standing((), 0, open_line=True)),
        (A.line + b"other", Standing((A,), 0, open_line=True)),
        (answer(RUN.asks[0], "another text").line, Standing((), 0)),
    ],
)
def test_a_file_tells_how_far_this_very_run_came(content: bytes, found: Standing) -> None:
    assert standing(content, RUN.asks, KNOWN) == found


def test_an_answer_that_the_journal_lost_is_taken_from_the_file() -> None:
    assert standing(A.line + B.line, RUN.asks, {0: A}) == Standing((A, B), 0)


def test_a_busy_machine_tries_fewer_levels_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Slow(cores=4).measured(monkeypatch, 4, budget=0.3)
    assert not found.is_full
