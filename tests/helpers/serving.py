"""Tiny models to serve, and a client that calls an ASGI application in its own process."""

import asyncio
import json
from typing import Any, NamedTuple

import jax

from flm_jax.build.flow import make_flow
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import choose
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from helpers.runs import tiny_config

LENGTH = 16


def served_model(goal, name="dit", length=LENGTH, **values):
    """An untrained model of bytes whose texts differ."""
    config = tiny_config()
    choose(config, model=name, objective=goal)
    config.model.update({"length": length, "dim": 8, "depth": 1, "heads": 2, "vocab_size": 260})
    if goal == "semigroup":
        config.model.two_time, config.objective.teacher = True, "teacher"
    config.data.task, config.data.packing = "", "stream"
    config.update_from_flattened_dict(values)
    config = check(config)
    net = make_network(config)
    leaves, tree = jax.tree.flatten(net.init(jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = tree.unflatten([x + 0.3 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])
    return Model(config, net, params, make_flow(config, 260), ByteTokenizer(), 0)


class Reply(NamedTuple):
    """An answer of the application."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """Data of server-sent events, without the end."""
        *found, last, rest = self.body.decode().split("\n\n")
        assert last == "data: [DONE]" and rest == ""
        return [json.loads(one.removeprefix("data: ")) for one in found]


async def call(
    app, method, path, body=None, *, headers=None, gone=None, client="1.2.3.4", sees=None
):
    """Sends a request; `gone` is an event after which the client has gone away.

    `sees` is called with each message as it is sent. The body is an object, bytes, or
    None for one that never ends.
    """
    given = {"host": "localhost:8000", "content-type": "application/json"} | (headers or {})
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    parts = [content[i : i + 1000] for i in range(0, len(content), 1000)] or [b""]
    last = len(parts) - 1
    messages = [
        {"type": "http.request", "body": part, "more_body": body is None or place < last}
        for place, part in enumerate(parts)
    ]
    sent = []

    async def receive():
        if messages:
            return messages.pop(0)
        await (gone or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)
        if sees is not None:
            sees(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        "client": (client, 1),
        "server": ("localhost", 8000),
    }
    await app(scope, receive, send)
    head = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    return Reply(sent[0]["status"], head, b"".join(one.get("body", b"") for one in sent[1:]))
