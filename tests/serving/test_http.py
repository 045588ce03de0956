"""The application in this process: answers, streams, refusals, and clients that go away."""

import asyncio
import dataclasses
import threading

import numpy as np
import pytest

from flm_jax.inference.rows import RowSampler, Written
from flm_jax.serving.limits import Limits
from helpers.application import PATH, Server
from helpers.serving import LENGTH, call, served_model

pytest.importorskip("starlette", reason="needs starlette (extra serve)")
WAIT = 20.0


class Held:
    """Programs that run once they are let go, and write the seed of a row into it."""

    def __init__(self):
        self.begun, self.go, self.seeds = threading.Event(), threading.Event(), []

    def compiled(self, kind):
        return [1]

    def run(self, kind, rows, size, seen=None):
        self.begun.set()
        if seen is not None:
            seen(0, 0, np.full(kind.length, 97, np.int32))
        assert self.go.wait(WAIT)
        self.seeds += [row.seed for row in rows]
        written = np.full(kind.length, 65 + rows[0].seed % 26, np.int32)
        return [Written(written, written[None], 1)]


@pytest.fixture(scope="module")
def model():
    return served_model("semigroup")


@pytest.fixture(scope="module")
def server(model):
    made = Server(model, RowSampler(model), [4], Limits(body=3000, prompt=1500, steps=4))
    yield made
    assert made.worker.close(WAIT)


@pytest.fixture
def held(model):
    """A server whose one batch waits, with room for one more text."""
    programs = Held()
    limits = Limits(waiting=1, seconds=WAIT)
    made = Server(model, programs, [1], limits)
    made.programs = programs
    yield made
    programs.go.set()
    assert made.worker.close(WAIT)


async def a_request_waits(worker):
    while not worker.waiting:
        await asyncio.sleep(0.001)


def test_an_answer_has_the_texts_of_the_library(server):
    found = server.post(prompt=["ab", "wxyz"], n=2, seed=3, echo=True, max_tokens=LENGTH - 4)
    assert found.status == 200 and found.headers["content-type"] == "application/json"
    answer = found.json
    assert (answer["object"], answer["model"], answer["seed"]) == ("text_completion", "tiny", 3)
    assert [one["index"] for one in answer["choices"]] == [0, 1, 2, 3]
    decode = server.alone.tokenizer.decode
    for place, prompt in enumerate(["ab", "wxyz"]):
        drawn = server.alone.sample(2, 1, prompt=prompt, seed=3, batch_size=1)
        rows = drawn.tokens[:, : len(prompt) + LENGTH - 4]
        own = answer["choices"][2 * place : 2 * place + 2]
        assert [one["text"] for one in own] == [decode(row) for row in rows]
    assert {one["finish_reason"] for one in answer["choices"]} == {"length"}
    assert answer["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 4 * (LENGTH - 4),
        "total_tokens": 4 * (LENGTH - 4) + 6,
        "network_calls": 4,
    }
    whole = answer["choices"][0]["text"]
    stopped = server.post(prompt="ab", seed=3, max_tokens=LENGTH - 4, stop=[whole[5:7], "none"])
    (choice,) = stopped.json["choices"]
    assert (choice["text"], choice["finish_reason"]) == (whole[2:5], "stop")
    infilled = server.post(prompt="a", infill="{3}b{2}c", max_tokens=0, seed=1).json
    text = infilled["choices"][0]["text"]
    assert text[3] == "b" and text[6] == "c" and infilled["usage"]["prompt_tokens"] == 3


def test_what_is_asked_together_is_what_is_asked_alone(server):
    bodies = [
        {"prompt": "ab" * (i % 5), "seed": i % 7, "steps": 1 + i % 2, "max_tokens": 3} | more
        for i, more in enumerate([{}, {"temperature": 1.0}, {"n": 3}] * 8)
    ]
    before = server.worker.batches_done
    together = [reply.json["choices"] for reply in server.together(*bodies)]
    batches = server.worker.batches_done - before
    assert batches < sum(body.get("n", 1) for body in bodies) / 2
    assert together == [server.post(**body).json["choices"] for body in bodies]
    assert len({choices[0]["text"] for choices in together}) > 10


def test_a_stream_has_an_event_for_each_network_call(server):
    body = {"prompt": "ab", "seed": 5, "steps": 2, "n": 2}
    plain = server.post(**body).json
    found = server.post(**body, stream=True, stream_options={"include_usage": True})
    assert found.headers["content-type"].startswith("text/event-stream")
    *steps, usage = found.events
    assert sorted(one["step"] for one in steps) == [1, 1, 2, 2]
    assert usage["usage"] == plain["usage"] and usage["choices"] == []
    drawn = server.alone.sample(2, 2, prompt="ab", seed=5, batch_size=1)
    for index, choice in enumerate(plain["choices"]):
        own = [one["choices"][0] for one in steps if one["choices"][0]["index"] == index]
        # Clients that join what they get have the text, the others see it resolve.
        assert "".join(one["text"] for one in own) == choice["text"] == own[-1]["draft"]
        drafts = [server.alone.tokenizer.decode(row[2:]) for row in drawn.steps_tokens[:, index]]
        assert [one["draft"] for one in own] == drafts
        assert [one["finish_reason"] for one in own] == [None, "length"]
    assert len(server.post(**body, stream=True).events) == 4
    assert len(server.post(**(body | {"steps": 1}), stream=True).events) == 2


def test_a_call_reaches_the_client_before_the_last_one_is_computed(model, held):
    async def run():
        arrived, sent = asyncio.Event(), []

        def sees(message):
            sent.append(message.get("body", b""))
            if b"data: " in sent[-1]:
                arrived.set()

        body = {"seed": 1, "steps": 3, "stream": True}
        asked = asyncio.ensure_future(call(held.app, "POST", PATH, body, sees=sees))
        await asyncio.wait_for(arrived.wait(), WAIT)
        assert not held.programs.go.is_set() and not asked.done()  # the batch still runs
        assert b'"draft": "aaa' in sent[-1] and b'"step": 1' in sent[-1]
        held.programs.go.set()
        return await asked

    first, last = asyncio.run(run()).events
    assert (first["step"], last["step"]) == (1, 3)
    assert last["choices"][0]["text"][:1] == "B" and last["choices"][0]["finish_reason"] == "length"


def test_a_stream_that_its_client_leaves_takes_its_texts_back(held):
    held.worker._most = 2  # one runs, and two may wait
    held.completions.limits = dataclasses.replace(held.completions.limits, waiting=2)

    async def run():
        gone, arrived = asyncio.Event(), asyncio.Event()
        sees = lambda message: arrived.set() if b"draft" in message.get("body", b"") else None
        body = {"seed": 1, "steps": 3, "n": 2, "stream": True}
        asked = asyncio.ensure_future(call(held.app, "POST", PATH, body, gone=gone, sees=sees))
        await asyncio.wait_for(arrived.wait(), WAIT)
        assert held.worker.waiting == 1
        gone.set()
        await asked
        assert held.worker.waiting == 0
        after = asyncio.ensure_future(call(held.app, "POST", PATH, {"seed": 3}))
        await asyncio.wait_for(a_request_waits(held.worker), WAIT)
        held.programs.go.set()
        return await asked, await after

    left, after = asyncio.run(run())
    assert left.status == 200 and b"[DONE]" not in left.body
    assert after.json["choices"][0]["text"][:1] == "D" and held.programs.seeds == [1, 3]


def test_a_stream_that_fails_has_a_status_before_its_first_event_and_an_event_after(model):
    programs = Held()
    slow = Server(model, programs, [1], Limits(seconds=3.0, waiting=1))
    late = slow.post(stream=True, steps=2)
    (line, error) = late.body.decode().split("data: ")[1:]
    assert late.status == 200 and "draft" in line and '"code": "timeout"' in error
    slow.completions.limits = dataclasses.replace(slow.completions.limits, seconds=0.05)
    silent = slow.post(stream=True, steps=2)  # its batch has not begun
    assert silent.status == 504 and silent.json["error"]["code"] == "timeout"
    assert slow.post(stream=True, steps=0).status == 400
    programs.go.set()
    assert slow.worker.close(WAIT)


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "the body is no JSON"),
        ({"promt": "a"}, 400, "did you mean 'prompt'?"),
        ({"model": "gpt"}, 404, "there is no model 'gpt'; this server has 'tiny'."),
        ({"prompt": "a" * 3000}, 413, "expected at most 3000 bytes"),
        ({"prompt": "a" * 1600}, 422, "1600 characters; expected at most 1500"),
        ({"prompt": "a" * 20}, 422, "the prompt takes 20 of 16 tokens"),
        ({"prompt": ["a", "a" * 20]}, 422, "prompt 1: the prompt takes 20"),
        ({"prompt": "a", "max_tokens": 16}, 422, "its answer 16"),
        ({"infill": "{99999999999999999999}"}, 422, "gap"),
        ({"steps": 5}, 422, "5 network calls for a text; expected at most 4"),
        ({"steps": "1/2"}, 422, "expected a whole number"),
        ({"block_length": 2}, 422, "block_length"),
        ({"sampler": "euler"}, 422, "expected flow_map or"),
        ({"sampler": "posterior_refinement"}, 422, "random clean context"),
        ({"gamma": 2}, 422, "sampler.gamma is 2"),
        ({"gamma": "high"}, 422, "sampler.gamma must be float"),
    ],
)
def test_a_bad_request_is_one_error(server, body, status, says):
    found = server.together(body)[0]
    error = found.json["error"]
    assert (found.status, error["message"].count("\n")) == (status, 0)
    assert says in error["message"] and {*error} == {"message", "type", "param", "code"}


def test_wrong_paths_methods_types_and_hosts_are_refused(server):
    assert server.get("/v1/chat/completions").status == 404
    wrong = server.get(PATH)
    assert (wrong.status, wrong.headers["allow"]) == (405, "POST")
    assert "no GET" in wrong.json["error"]["message"]
    form = server.get(PATH, "POST", headers={"content-type": "text/plain"})
    assert form.status == 415 and "text/plain" in form.json["error"]["message"]
    for host, status in {"localhost": 200, "LOCALHOST:1": 200, "evil.example:8000": 421}.items():
        assert server.get("/health", headers={"host": host}).status == status
    assert server.get(PATH, "POST", headers={"content-length": "9" * 20}).status == 413
    listed = server.get("/v1/models").json["data"]
    assert listed == [server.get("/v1/models/tiny").json]
    assert listed[0]["sampler"]["name"] == "flow_map" and "weak" not in listed[0]["sampler"]
    assert server.get("/v1/models/other").status == 404
    health = server.get("/health").json
    assert health["status"] == "ok" and health["waiting"] == health["running"] == 0


def test_a_full_queue_a_late_answer_and_a_fast_client_are_refused(model, held):
    async def run():
        first = asyncio.ensure_future(call(held.app, "POST", PATH, {"seed": 1}))
        await asyncio.to_thread(held.programs.begun.wait, WAIT)
        second = asyncio.ensure_future(call(held.app, "POST", PATH, {"seed": 2}))
        await asyncio.wait_for(a_request_waits(held.worker), WAIT)
        full = await call(held.app, "POST", PATH, {"seed": 3})
        short = dataclasses.replace(held.completions.limits, seconds=0.01)
        held.completions.limits = short
        silent = await call(held.app, "POST", PATH, None)
        held.programs.go.set()
        return full, silent, await first, await second

    full, silent, *answers = asyncio.run(run())
    assert full.status == 503 and int(full.headers["retry-after"]) >= 1
    assert full.json["error"]["code"] == "queue_full"
    assert silent.status == 408
    assert [one.json["choices"][0]["text"][:1] for one in answers] == ["B", "C"]
    programs = Held()
    slow = Server(model, programs, [1], Limits(seconds=0.05, rate=0.001, burst=2))
    assert slow.post().json["error"]["code"] == "timeout"
    late, limited = slow.together({"seed": 4}, {"seed": 5})
    assert late.status == 504 and limited.status == 429
    assert int(limited.headers["retry-after"]) > 100
    programs.go.set()
    assert slow.worker.close(WAIT) and len(programs.seeds) == 1


def test_what_a_client_asked_that_went_away_is_dropped(held):
    async def run():
        gone = asyncio.Event()
        first = asyncio.ensure_future(call(held.app, "POST", PATH, {"seed": 1}, gone=gone))
        await asyncio.to_thread(held.programs.begun.wait, WAIT)
        second = asyncio.ensure_future(call(held.app, "POST", PATH, {"seed": 2}, gone=gone))
        await asyncio.wait_for(a_request_waits(held.worker), WAIT)
        gone.set()
        assert [(await one).status for one in (first, second)] == [499, 499]
        assert held.worker.waiting == 0
        third = asyncio.ensure_future(call(held.app, "POST", PATH, {"seed": 3}))
        await asyncio.wait_for(a_request_waits(held.worker), WAIT)
        held.programs.go.set()
        return await third

    assert asyncio.run(run()).json["choices"][0]["text"][:1] == "D"
    assert held.programs.seeds == [1, 3] and held.completions.answered == 1


def test_a_closed_server_compiles_nothing_more(model):
    programs = Held()
    programs.go.set()
    closed = Server(model, programs, [1], hosts=(), steps=2, fixed=(2, 4))
    refused = {"steps": 3}, {"temperature": 0.7}, {"sampler": "posterior_refinement"}
    assert [one.status for one in closed.together(*refused)] == [422] * 3
    allowed = {"steps": 4}, {"temperature": 0.0}, {}
    assert [one.status for one in closed.together(*allowed)] == [200] * 3
    assert closed.get("/health", headers={"host": "any"}).status == 200
    assert closed.worker.close(WAIT)


def test_an_autoregressive_model_ignores_steps():
    programs = Held()
    programs.go.set()
    server = Server(served_model("autoregressive", "causal"), programs, [1], steps=LENGTH)
    found = server.post(steps=300, seed=0)
    assert found.status == 200 and found.json["steps"] == LENGTH
    assert server.worker.close(WAIT)


def test_a_program_that_fails_is_a_server_error_and_the_server_goes_on(model):
    programs = Held()
    programs.go.set()
    run, broken = programs.run, [RuntimeError("RESOURCE_EXHAUSTED: out of memory"), OSError("x")]
    programs.run = lambda *batch: run(*batch) if not broken else fail(broken.pop())
    server = Server(model, programs, [1])
    with pytest.raises(OSError):  # the server around the application logs it
        server.post()
    memory = server.post()
    assert memory.status == 500 and memory.json["error"]["code"] == "device_memory"
    assert server.post().status == 200
    assert server.worker.close(WAIT)


def fail(error):
    raise error
