"""Loads a server of its own with many clients, and checks and times every answer.

python launch/serve_load.py [--workdir=tales] [--steps=1,4] [--requests=1000] [--clients=50]
    [--streams]

Starts `flm_jax.serve` on a free port. For each step count the clients send the requests, one after
another each, with prompts of different lengths and a seed for each request. Then each request is
made in this process by `flm_jax.load(...).sample`, one by one, and its text compared; one that
differs is asked of the server again, alone, and must be what it was under load (products of
batches are summed in another order than a single row's). Prints requests a second and latencies
with 95% intervals: of the rate by a bootstrap of ten parts of the run, of latencies by a bootstrap
of requests; and the seconds of a processor that a request took, which other programs on the machine
change less (Linux). With --streams the same requests are sent once more as streams, whose texts
must be the same. Exit status 1 if an answer is lost, wrong or mixed up.
"""

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flm_jax.inference.language_model import LanguageModel, load
from flm_jax.metrics.intervals import interval

PROMPTS = (
    "Once upon a time",
    "The king said",
    "There was a poor woman who lived in a little house at the edge of the wood",
    "",
    "In the morning",
    "The fox and the crow sat in the old tree and looked at the",
    '"Come in," said',
    "He",
)
_PARTS = 10
_WAIT = 600.0


class Server(NamedTuple):
    """A server: its port, the id of its process, and how many clients it has."""

    port: int
    process: int
    clients: int


class Got(NamedTuple):
    """An answer: HTTP status, text with its prompt, why it ended, and when; seconds.

    Of a stream also when its first event came, and how many there were.
    """

    status: int
    text: str
    reason: str
    began: float
    ended: float
    first: float = 0.0
    events: int = 0


def bodies(number: int, steps: int, prompts: Sequence[str] = PROMPTS) -> list[dict[str, Any]]:
    """Requests with prompts in turn and seeds of their own."""
    return [
        {"prompt": prompts[place % len(prompts)], "seed": place, "steps": steps, "echo": True}
        for place in range(number)
    ]


def ask(connection: http.client.HTTPConnection, body: dict[str, Any]) -> Got:
    """Sends a request and waits for its answer."""
    began = time.monotonic()
    head = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body), head)
    reply = connection.getresponse()
    if body.get("stream") and reply.status == 200:
        return _streamed(reply, began)
    found, ended = json.loads(reply.read()), time.monotonic()
    (choice,) = found.get("choices", [{"text": str(found), "finish_reason": "error"}])
    return Got(reply.status, choice["text"], choice["finish_reason"], began, ended)


def _streamed(reply: http.client.HTTPResponse, began: float) -> Got:
    """The answer of a stream, read to its end."""
    lines = (line for line in reply if line.strip())
    events, first = [next(lines)], time.monotonic()
    events += lines
    ended = time.monotonic()
    found = json.loads(events[-2 if len(events) > 1 else 0].removeprefix(b"data: "))
    (choice,) = found.get("choices", [{"text": str(found), "finish_reason": "error"}])
    return Got(
        reply.status, choice["text"], choice["finish_reason"], began, ended, first, len(events) - 1
    )


def load_server(port: int, asked: Sequence[dict[str, Any]], clients: int) -> list[Got | None]:
    """Answers to requests that so many clients send; None for one that was lost."""
    got: list[Got | None] = [None] * len(asked)
    places, lock = iter(range(len(asked))), threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT)
        while True:
            with lock:
                place = next(places, None)
            if place is None:
                return connection.close()
            got[place] = ask(connection, asked[place])

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def alone(model: LanguageModel, body: dict[str, Any]) -> str:
    """Text of a request that is made in this process by itself."""
    how = {key: body[key] for key in ("prompt", "seed")}
    return model.sample(1, body["steps"], batch_size=1, **how).texts[0]


def equal(got: Got, text: str) -> bool:
    """Whether an answer is a text; one that ended early is its beginning."""
    return text.startswith(got.text) if got.reason == "stop" else text == got.text


def faults(
    port: int, asked: Sequence[dict], got: Sequence[Got | None], texts: Sequence[str]
) -> tuple[list[str], int]:
    """What is wrong with answers, and how many differ from `texts` by rounding alone."""
    wrong, rounded = [], 0
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_WAIT)
    for place, (body, one, text) in enumerate(zip(asked, got, texts)):
        if one is None or one.status != 200:
            wrong.append(f"request {place}: {one}")
        elif not equal(one, text):
            again = ask(connection, body)
            rounded += 1
            if again.text != one.text:
                wrong.append(f"request {place}: {one.text!r}, but alone {again.text!r}")
    connection.close()
    return wrong, rounded


def _said(statistic, values, unit: str) -> str:
    found = interval(statistic, np.asarray(values))
    value, low, high = (f"{x:.0f}" if found.value >= 100 else f"{x:.3g}" for x in found)
    return f"{value} [{low}, {high}] {unit}"


def rates(ends: Sequence[float], began: float) -> str:
    """Events a second, with the interval of ten parts of the run."""
    number = max(1, len(ends) // _PARTS)
    each = np.diff(np.concatenate([[began], np.sort(ends)[number - 1 :: number]]))
    return _said(lambda seconds: number / seconds.mean(), each, "requests/s")


def latencies(seconds: Sequence[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    each = 1e3 * np.asarray(seconds)
    median, late = (_said(lambda x, q=q: np.quantile(x, q), each, "ms") for q in (0.5, 0.95))
    return f"median {median}, p95 {late}"


def processor_seconds(process: int) -> float:
    """Seconds that the threads of a process have computed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def loaded(server: Server, asked: Sequence[dict[str, Any]]) -> list[Got | None]:
    """Loads the server and prints the figures; returns its answers."""
    number, (port, process, clients) = len(asked), server
    began, used = time.monotonic(), processor_seconds(process)
    got = load_server(port, asked, clients)
    used = processor_seconds(process) - used
    found = [one for one in got if one is not None]
    print(f"  {rates([one.ended for one in found], began)}, {used / number:.3f} s of a processor")
    print(f"  {latencies([one.ended - one.began for one in found])}", flush=True)
    return got


def measure_streams(
    server: Server, asked: Sequence[dict[str, Any]], got: Sequence[Got | None]
) -> list[str]:
    """Sends requests as streams and prints the figures; returns texts that differ from `got`."""
    print("  as streams:")
    streamed = loaded(server, [body | {"stream": True} for body in asked])
    found = [one for one in streamed if one is not None]
    print(f"  to the first event: {latencies([one.first - one.began for one in found])}")
    print(f"  {np.mean([one.events for one in found]):.2f} events a stream", flush=True)
    ends = lambda one: one and (one.status, one.text, one.reason)
    each = enumerate(zip(got, streamed))
    return [f"stream {i}: {b}, expected {a}" for i, (a, b) in each if ends(a) != ends(b)]


def measure(
    server: Server, model: LanguageModel, steps: int, number: int, streams: bool = False
) -> list[str]:
    """Loads the server at one step count and prints the figures; returns what is wrong."""
    asked, (port, _, clients) = bodies(number, steps), server
    print(f"{steps} calls, {number} requests of {clients} clients, batched:")
    got, other = loaded(server, asked), []
    found = [one for one in got if one is not None]
    if streams:
        other = measure_streams(server, asked, got)
    alone(model, asked[0])  # compiles
    texts, ends, began, used = [], [], time.monotonic(), time.process_time()
    for body in asked:
        texts.append(alone(model, body))
        ends.append(time.monotonic())
    used = time.process_time() - used
    print(f"  one by one: {rates(ends, began)}, {used / number:.3f} s of a processor")
    print(f"  {latencies(np.diff([began, *ends]))}", flush=True)
    wrong, rounded = faults(port, asked, got, texts)
    print(f"  {len(found)} answers, {len(wrong)} wrong; {number - rounded} equal one by one")
    return wrong + other


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", default="tales")
    parser.add_argument("--steps", default="1,4")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--streams", action="store_true", help="send the requests as streams too")
    args = parser.parse_args()
    line = [sys.executable, "-m", "flm_jax.serve", f"--workdir={args.workdir}", "--port=0"]
    line += [f"--warm={args.steps}", f"--max_seconds={_WAIT:.0f}"]
    server = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        said = server.stdout.readline()
        print(said.strip(), flush=True)
        port = int(said.split("/v1/")[0].rpartition(":")[2])
        model, wrong = load(args.workdir), []
        for steps in map(int, args.steps.split(",")):
            place = Server(port, server.pid, args.clients)
            wrong += measure(place, model, steps, args.requests, args.streams)
    finally:
        server.send_signal(signal.SIGTERM)
        rest, _ = server.communicate()
    print(f"{rest.strip()}; exit status {server.returncode}")
    print("\n".join(wrong[:5]))
    return int(bool(wrong) or server.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
