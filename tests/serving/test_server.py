"""The process: its address, a signal while it answers, and what it says without its extra."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from flm_jax.core.errors import UserError
from flm_jax.inference.language_model import LanguageModel
from flm_jax.serving.http import make_app
from flm_jax.serving.server import Address, batch_sizes, open_socket, quiet_stop
from helpers.compiling import FAST
from helpers.launching import load
from helpers.serving import served_model

WAIT = 120.0


class Process:
    """`python -m flm_jax.serve`, and requests to it."""

    def __init__(self, folder):
        line = [sys.executable, "-m", "flm_jax.serve", f"--workdir={folder}", "--port=0"]
        env = os.environ | {"XLA_FLAGS": FAST, "PYTHONUNBUFFERED": "1"}
        self.running = subprocess.Popen(
            [*line, "--max_batch=2", "--any_rounding"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.said = self.running.stdout.readline()
        assert "is served at http://127.0.0.1:" in self.said, self.running.communicate()
        self.port = int(self.said.split("127.0.0.1:")[1].split("/")[0])

    def ask(self, method, path, **body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        found = reply.status, json.loads(reply.read())
        connection.close()
        return found

    def stream(self, **body):
        """The lines of a stream, as they come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)
        body = json.dumps(body | {"stream": True})
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        yield from (line.decode() for line in connection.getresponse() if line.strip())
        connection.close()


def test_a_signal_ends_the_process_when_all_is_answered(tmp_path):
    for package in ("starlette", "uvicorn"):
        pytest.importorskip(package, reason=f"needs {package} (extra serve)")
    model = LanguageModel(served_model("semigroup"))
    model.save_pretrained(tmp_path / "model")
    server = Process(tmp_path / "model")
    assert "texts at a time: 1, 2" in server.said
    status, answer = server.ask("POST", "/v1/completions", prompt="ab", seed=3, steps=2)
    want = model.sample(1, 2, prompt="ab", seed=3, batch_size=1).tokens[0, 2:]
    assert (status, answer["choices"][0]["text"]) == (200, model.tokenizer.decode(want))
    assert server.ask("GET", "/nowhere")[0] == 404
    # The load test, small: it finds an answer that is lost, and one that is another's.
    loads = load("serve_load")
    asked = loads.bodies(6, 2, ["ab", "", "wxyz"])
    got = loads.load_server(server.port, asked, clients=3)
    texts = [loads.alone(model, body) for body in asked]
    assert loads.faults(server.port, asked, got, texts)[0] == []
    mixed = [got[1], None, *got[2:]]
    wrong, _ = loads.faults(server.port, asked, mixed, texts)
    assert [one.split(":")[0] for one in wrong] == ["request 0", "request 1"]
    # When the signal comes, one request waits for a compilation, and one is being streamed.
    found, streamed = [], {"prompt": "ab", "seed": 4, "steps": 250}
    whole = server.ask("POST", "/v1/completions", **streamed)[1]["choices"][0]["text"]
    late = {"prompt": "ab", "seed": 4, "steps": 3}
    asking = threading.Thread(
        target=lambda: found.append(server.ask("POST", "/v1/completions", **late))
    )
    asking.start()
    while not server.ask("GET", "/health")[1]["waiting"]:
        time.sleep(0.01)
    lines = server.stream(**streamed)
    events = [next(lines)]
    assert '"step": 1,' in events[0]
    server.running.send_signal(signal.SIGTERM)
    events += lines
    assert len(events) == 251 and events[-1] == "data: [DONE]\n"
    assert json.loads(events[-2][6:])["choices"][0]["text"] == whole
    out, err = server.running.communicate(timeout=WAIT)
    asking.join(WAIT)
    assert found[0][0] == 200 and len(found[0][1]["choices"]) == 1
    assert server.running.returncode == 0, err
    assert out == "stopped: 11 requests answered, 11 texts\n" and not err.strip(), err
    with pytest.raises(ConnectionRefusedError):
        server.ask("GET", "/health")


def test_a_signal_before_it_is_up_ends_it_without_an_error():
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGINT):
        with pytest.raises(SystemExit) as caught, quiet_stop():
            os.kill(os.getpid(), number)
            time.sleep(1)
        assert caught.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_address_is_taken_before_the_model_is_loaded():
    first = open_socket(Address(port=0))
    first.listen()
    port = first.getsockname()[1]
    for wrong in (Address(port=port), Address("host.invalid", 0), Address("192.0.2.1", 0)):
        with pytest.raises(UserError, match="cannot listen at .*give --host and --port"):
            open_socket(wrong)
    first.close()


def test_sizes_are_powers_of_two_up_to_the_largest():
    assert [batch_sizes(most) for most in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]
    with pytest.raises(UserError, match="at least 1"):
        batch_sizes(0)


def test_without_the_extra_one_line_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "starlette", None)
    with pytest.raises(UserError, match=r"the server needs .* pip install 'flm-jax\[serve\]'"):
        make_app(None)
