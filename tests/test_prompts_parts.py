"""Parts of ``--prompts``: parsing, the order of answers, slots, memory, the command line."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from typing import Any

import pytest

from bitnet_tuning.errors import UsageError
from bitnet_tuning.model.types import ModelFile
from bitnet_tuning.plan.facts import Plan, Request
from bitnet_tuning.plan.memory import context_of
from bitnet_tuning.plan.setting import Setting
from bitnet_tuning.serve import prompts as serving
from bitnet_tuning.serve.prompts import Answer, AnswerStream, Prompt, parse
from bitnet_tuning.serve.server import (
    MEMORY_SHARE,
    Server,
    choose_slots,
    fitting_slots,
    server_command,
)
from bitnet_tuning.serve.session import in_flight

REQUEST = Request()


def prompts(*prompts: str) -> tuple[Prompt, ...]:
    return parse("\n".join(map(json.dumps, prompts)).encode(), REQUEST)


# Lines


def test_a_line_is_a_string_or_an_object_and_blank_lines_are_skipped() -> None:
    content = '\ufeff"a"\r\n\n  \n{"prompt": "b", "id": "x", "top_p": 0.5}'.encode()
    first, second = parse(content, Request(n_predict=3, temperature=0.0, seed=5))
    assert (first.id, first.text) == (0, "a")
    assert (first.n_predict, first.temperature, first.seed) == (3, 0.0, 5)
    assert (second.id, second.text, second.top_p) == ("x", "b", 0.5)


def test_only_a_newline_ends_a_line() -> None:
    (prompt,) = parse('"a\u2028b\u0085c\x0cd"'.replace("\x0c", "").encode(), REQUEST)
    assert prompt.text == "a\u2028b\u0085cd"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{", "it is not JSON"),
        (b'"\xff"', "it is not JSON"),
        (b"3", "3 is not an object"),
        (b"[]", "[] is not an object"),
        (b"{}", "prompt: missing"),
        (b'""', "prompt: must not be empty"),
        (b'{"prompt": null}', "prompt: null is not a string"),
        (b'"\\ud800"', "prompt: must not contain an unpaired surrogate"),
        (b'{"prompt": "a", "promt": 1}', "promt: unknown"),
        (b'{"prompt": "a", "id": true}', "id: must be a string or a number"),
        (b'{"prompt": "a", "id": null}', "id: must be a string or a number"),
        (b'{"prompt": "a", "id": NaN}', "JSON has no NaN"),
        (b'{"prompt": "a", "id": -1e999}', "id: must be a finite number"),
        (b'{"prompt": "a", "id": 7}', "id: 7 is also that of line 1"),
        (b'{"prompt": "a", "n_predict": 1.5}', "n_predict: 1.5 is not a whole number"),
        (b'{"prompt": "a", "n_predict": -3}', "n_predict: -3 is less than -2"),
        (b'{"prompt": "a", "temperature": "0"}', 'temperature: "0" is not a number'),
        (b'{"prompt": "a", "temperature": true}', "temperature: true is not a number"),
        (b'{"prompt": "a", "temperature": 1e999}', "temperature: must be a finite number"),
        (b'{"prompt": "a", "top_p": 1.1}', "top_p: 1.1 is more than 1"),
        (b"[" * 5000, "it is not JSON"),
    ],
)
def test_the_error_for_a_bad_line_has_its_number_and_the_cause(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=r"line 3: ") as caught:
        parse(b'{"prompt": "good", "id": 7}\n\n' + line, REQUEST)
    assert words in str(caught.value)


def test_a_file_without_a_prompt_is_an_error() -> None:
    with pytest.raises(UsageError, match="no prompt"):
        parse(b"\n \n", REQUEST)


# Answers


def test_answers_are_printed_in_the_order_of_the_prompts(capfd: pytest.CaptureFixture[str]) -> None:
    stream = AnswerStream(prompts(*"abcde"), nullcontext)
    for place in (3, 2, 0, 1, 4):
        stream.add(Answer({"id": place}))
    written = [json.loads(line)["id"] for line in capfd.readouterr().out.splitlines()]
    assert written == [0, 1, 2, 3, 4]
    assert stream.answered == {0, 1, 2, 3, 4}


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
def test_the_reason_of_the_end_is_read_from_servers_of_either_generation(
    said: dict[str, Any], stop: str
) -> None:
    reply = {"content": "t", "tokens_predicted": 2, "tokens_evaluated": 3, **said}
    facts = serving.from_reply(prompts("a")[0], reply).facts
    assert facts["stop"] == stop
    assert (facts["tokens"], facts["prompt_tokens"]) == (2, 3)


@pytest.mark.parametrize("reply", [{}, {"content": "t"}, {"content": "t", "tokens_predicted": []}])
def test_a_reply_that_is_not_a_completion_is_an_error(reply: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not a completion"):
        serving.from_reply(prompts("a")[0], reply)


# Slots


def test_an_answer_is_reproducible_with_temperature_0_or_a_seed() -> None:
    (prompt,) = prompts("a")
    assert not prompt.is_reproducible
    assert not prompt._replace(seed=-1).is_reproducible
    assert prompt._replace(temperature=0).is_reproducible
    assert prompt._replace(seed=0).is_reproducible


def test_there_are_no_more_slots_than_prompts_and_than_fit_in_memory() -> None:
    def chosen(asked: int | None, fitting: int | None, count: int = 9) -> int:
        return choose_slots(asked, prompts(*"abcdefghi"[:count]), fitting)[0]

    assert chosen(None, None) == chosen(None, 100) == 4
    assert chosen(None, 2) == chosen(None, 4, 2) == 2
    assert chosen(9, 2, 1) == 9
    assert "more would not fit in memory" in choose_slots(None, prompts(*"abcd"), 3)[1]


# In flight


def test_no_more_jobs_than_asked_for_run_at_a_time() -> None:
    together = threading.Barrier(3)  # broken, unless three jobs run at the same time
    running: list[int] = []
    peak: list[int] = []

    def work(job: int) -> int:
        running.append(job)
        together.wait(60)
        peak.append(len(running))
        together.wait(60)
        running.remove(job)
        return job * job

    assert sorted(in_flight(range(21), work, 3)) == [job * job for job in range(21)]
    assert max(peak) == 3


def test_no_job_starts_after_a_failure() -> None:
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


def test_the_slots_must_fit_in_memory_with_the_model() -> None:
    buffers = 4 * 512 * (1000 + 100)
    room = 1000 + buffers + 3.6 * 4000 * 100
    assert fitting_slots(MODEL, 100, None, int(room / MEMORY_SHARE)) == 3
    assert fitting_slots(MODEL, 100, 64, int(room / MEMORY_SHARE)) == 8
    shared = MODEL._replace(heads=10, kv_width=50)
    assert fitting_slots(shared, 100, None, int(room / MEMORY_SHARE)) == 14
    assert fitting_slots(MODEL, 100, None, 10) == 1
    assert fitting_slots(MODEL, 100, None, None) is None
    assert fitting_slots(MODEL._replace(layers=None), 100, None, 10**9) is None


def test_each_slot_has_the_context_of_a_single_run() -> None:
    assert context_of(512, MODEL) == 512
    assert context_of(0, MODEL._replace(context_length=3000)) == 3000
    assert context_of(0, MODEL._replace(context_length=None)) == 4096


PLAN = Plan(Setting(3, 4, ubatch=64, mlock=True, mmap=False, flash=True, poll=0), {})


def test_a_server_gets_only_flags_that_it_lists() -> None:
    bare = Server(("s",), frozenset(), False)
    base = "s -m /m.gguf -t 3 -tb 4 -ngl 0 -c 1024 -np 2"
    end = "--host 127.0.0.1 --port 9 -x"
    request = Request(extra=("-x",))
    sizes: dict[str, Any] = {"model": "/m.gguf", "slots": 2, "context": 512, "port": 9}
    got = " ".join(server_command(PLAN, request, bare, **sizes))
    assert got == f"{base} -ub 64 {end}"
    flags = ("-cb", "--no-context-shift", "--mlock", "--no-mmap", "-fa", "--poll")
    full = bare._replace(flags=frozenset(flags))
    got = " ".join(server_command(PLAN, request, full, **sizes))
    tuned = "-ub 64 --no-mmap --mlock -fa --poll 0"
    assert got == f"{base} -cb --no-context-shift {tuned} {end}"
