"""What can be wrong with a request to `flm serve`, and what the server answers, for errors.md.

The application runs in this process, with a program that writes nothing until it is let go.
"""

import asyncio
import json
import re
import threading
from typing import Any, NamedTuple

import numpy as np

from flm_jax.build.sampler import model_sampler
from flm_jax.inference.rows import Written
from flm_jax.serving.batches import Worker
from flm_jax.serving.completions import Completions, Served
from flm_jax.serving.http import make_app
from flm_jax.serving.limits import Limits
from helpers.serving import call, served_model

PATH = "/v1/completions"
POST = f"POST {PATH}"
WAIT = 20.0
LIMITS = Limits(body=400, prompt=60, tokens=8, texts=4, steps=4, stops=2, waiting=4)

# (request, body, what is wrong); a body is an object, bytes, or None for one that never ends.
REQUESTS: list[tuple[str, Any, str]] = [
    (POST, b"{", "no JSON"),
    (POST, [1], "no object"),
    (POST, {"promt": "a"}, "an unknown field"),
    (POST, {"prompt": 3}, "a prompt that is no text"),
    (POST, {"prompt": []}, "no prompt in a list"),
    (POST, {"n": 0}, "no text"),
    (POST, {"steps": 0}, "no step"),
    (POST, {"steps": "x"}, "steps that are no number"),
    (POST, {"seed": -1}, "a seed below 0"),
    (POST, {"stop": [""]}, "an empty stop string"),
    (POST, {"stream": "yes"}, "a text for true or false"),
    (POST, {"stream_options": {"usage": True}}, "an unknown option of streams"),
    (POST, {"presence_penalty": 1}, "a field that the server lacks"),
    (POST, {"weak": "folder"}, "a file, named by a request"),
    (POST, {"model": "gpt"}, "another model"),
    ("GET /v1/models/gpt", b"", "another model"),
    ("GET /v1/chat/completions", b"", "an unknown path"),
    (f"GET {PATH}", b"", "another method"),
    (f"{POST}, Content-Type: text/plain", {}, "another type"),
    (f"{POST}, Host: evil.example", {}, "another name of the server"),
    (POST, {"prompt": "a" * 400}, "a body above --max_body=400"),
    (POST, {"prompt": "a" * 61}, "a prompt above --max_prompt=60"),
    (POST, {"prompt": "a" * 20}, "a prompt longer than the model's rows"),
    (POST, {"max_tokens": 9}, "more than --max_tokens=8"),
    (POST, {"n": 5}, "more than --max_texts=4"),
    (POST, {"steps": 5}, "more than --max_steps=4"),
    (POST, {"stop": ["a", "b", "c"]}, "more than two stop strings"),
    (POST, {"infill": "{99}"}, "a gap longer than the model's rows"),
    (POST, {"steps": "1/2"}, "a share with a sampler that has none"),
    (POST, {"sampler": "euler"}, "the sampler of another family"),
    (POST, {"gamma": 2}, "a value out of range"),
    (POST, {"block_length": 2}, "a setting of another sampler"),
    (POST, None, "a body that does not arrive within --max_seconds=0.2"),
    (f"{POST}, with --max_waiting=1", {"n": 2}, "more texts than may wait"),
    (f"{POST}, with --max_waiting=1", {}, "a third text at once: one is written, one waits"),
    (f"{POST}, with --rate=0.01 --burst=1", {}, "a second request at once"),
    (f"{POST}, with --max_seconds=0.2", {}, "no answer in that time"),
    (f"{POST}, with --closed", {"steps": 3}, "steps outside --warm"),
    (f"{POST}, with --closed", {"temperature": 0.5}, "a changed setting"),
    (f"{POST}, while it stops", {}, "a server that was sent SIGTERM"),
]


class Answer(NamedTuple):
    """A request that was tried, and the error that answered it."""

    request: str
    body: Any
    wrong: str
    status: int
    message: str
    param: str | None


class _Held:
    """Programs that write nothing until they are let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def compiled(self, kind) -> list[int]:
        return [1]

    def run(self, kind, rows, size, seen=None) -> list[Written]:
        assert self.go.wait(WAIT)
        nothing = np.zeros(kind.length, np.int32)
        return [Written(nothing, nothing[None], 1)]


def answers() -> list[Answer]:
    """All requests, each to a server of its own."""
    model = served_model("semigroup")
    return [asyncio.run(_answer(model, *one)) for one in REQUESTS]


async def _answer(model, request: str, body: Any, wrong: str) -> Answer:
    said = re.findall(r"--(\w+)(?:=([\d.]+))?", f"{request} {wrong}")
    flags = {key: float(value) for key, value in said if key in ("rate", "max_seconds")}
    flags |= {key: int(value) for key, value in said if key in ("burst", "max_waiting")}
    values = {key.removeprefix("max_"): value for key, value in flags.items()}
    limits = Limits(**(vars(LIMITS) | values))
    programs = _Held()
    worker = Worker(programs, [1], limits.waiting)
    fixed = (1,) if "--closed" in request else None
    served = Served(model, "tiny", model_sampler(model.config), 1, fixed)
    app = make_app(Completions(served, worker, limits), ("localhost",))
    method, path = re.match(r"(\w+) ([^ ,]+)", request).groups()
    headers = {k.lower(): v for k, v in re.findall(r"(Content-Type|Host): (\S+)", request)}
    if "stops" in request:
        worker.close(WAIT)
    earlier = []
    for place in range({"second": 1, "third": 2}.get(wrong.split()[1], 0)):
        earlier.append(asyncio.ensure_future(call(app, method, path, body)))
        # The first is written before the second comes: else both would wait.
        while not worker.running or worker.running + worker.waiting <= place:
            assert not earlier[-1].done(), earlier[-1].result()
            await asyncio.sleep(0.001)
    found = await call(app, method, path, body, headers=headers)
    programs.go.set()
    for one in earlier:
        await one
    worker.close(WAIT)
    error = found.json["error"]
    return Answer(request, body, wrong, found.status, error["message"], error["param"])


HEAD = """
## Requests to `flm serve`

Answers of [the server](../guides/serving.md) to requests that are wrong or come at a wrong time;
`tiny` is a flow map of 16 bytes a row. The message is that of `error.message`, the field
`error.param`; those that may be sent again (429, 503) have a header `Retry-After`. In a stream that
has begun, the same object is its last event.

| request | body | what is wrong | status | it says | field |
|---|---|---|---|---|---|
"""


def section(found: list[Answer]) -> str:
    """The end of docs/reference/errors.md."""
    lines = []
    for one in found:
        cells = [f"`{one.request}`", f"`{_shown(one.body)}`" if one.body != b"" else ""]
        cells += [one.wrong, str(one.status), f"`{_short(one.message)}`"]
        cells.append(f"`{one.param}`" if one.param else "")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return HEAD + "".join(lines)


def _shown(body: Any) -> str:
    text = body.decode() if isinstance(body, bytes) else "..." if body is None else json.dumps(body)
    return re.sub(r"a{17,}", "aaa...", text)


def _short(message: str) -> str:
    """A message that does not change with each field that the server gets."""
    return re.sub(r"valid: ([^,.]+), .*", r"valid: \1, ...", message.replace("`", "'"))
