"""Commands that several processes run together: equal parts, one writer, the results of one."""

import json
import socket

import jax
import numpy as np
import pytest

from flm_jax.build.export import save_model
from flm_jax.build.flow import make_flow
from flm_jax.build.load import Model
from flm_jax.build.model import make_network
from flm_jax.config.check import check
from flm_jax.config.schema import base_config, choose
from flm_jax.data.tokenizers.builtin import ByteTokenizer
from helpers.command_server import run_commands

RECORD = {"question": "1+1?", "answer": "So.\n#### 2"}


def model_of(goal):
    config = base_config()
    choose(config, model="causal" if goal == "autoregressive" else "dit", objective=goal)
    config.model.update({"length": 64, "dim": 8, "depth": 1, "heads": 2, "vocab_size": 260})
    config.data.packing, config.model.scan_blocks = "stream", True
    config = check(config)
    net = make_network(config)
    leaves, tree = jax.tree.flatten(jax.eval_shape(net.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    params = tree.unflatten([rng.normal(size=x.shape).astype(np.float32) for x in leaves])
    return Model(config, net, params, make_flow(config, 260), ByteTokenizer(), 0)


def _port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def together(words, count=2):
    """A command as `count` processes run it."""
    where = f"localhost:{_port()}"
    env = {"JAX_COORDINATOR_ADDRESS": where, "JAX_NUM_PROCESSES": str(count)}
    return [{"words": words, "env": env | {"JAX_PROCESS_ID": str(i)}} for i in range(count)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(working folder, outcomes of 3 commands by two processes, then by one)."""
    folder = tmp_path_factory.mktemp("shared")
    save_model(folder / "md", model_of("masked_diffusion"))
    save_model(folder / "ar", model_of("autoregressive"))
    text = "\n".join(f"{n} lines to be scored, and more of it" for n in range(60))
    (folder / "text.txt").write_text(text)
    records = [RECORD | {"question": f"{n}+1?"} for n in range(5)]
    (folder / "q.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records))
    prepare = "prepare_data --source=text --path=text.txt --split_documents=line --out=data"
    run_commands([{"words": [*prepare.split(), "--tokenizer=bytes", "--workers=1"]}], folder)
    sample = "sample --workdir=md --steps=2 --num_samples=5 --batch_size=2"
    corpus = "evaluate --workdir=ar --corpus=data --split=train --batch_size=8"
    bench = "run_benchmark --workdir=ar --task=gsm8k --data=q.jsonl --batch_size=2"
    commands = [(sample, "out"), (corpus, "json"), (bench, "out")]
    words = lambda to: [
        f"{line} --{flag}={to}_{i}".split() for i, (line, flag) in enumerate(commands)
    ]
    both = [one for each in words("two") for one in together(each)]
    alone = [{"words": one} for one in words("one")]
    return folder, run_commands([*both, *alone], folder)


def test_several_processes_give_the_results_of_one(outcomes):
    folder, found = outcomes
    assert [one.status for one in found] == [0] * 9, "\n".join(one.err[-900:] for one in found)
    for name in ("0", "1"):
        assert (folder / f"two_{name}").read_text() == (folder / f"one_{name}").read_text()
    records = [(folder / f"{who}_2/records.jsonl").read_text() for who in ("two", "one")]
    assert records[0] == records[1] and records[0].count("\n") == 5


def test_the_first_process_alone_speaks(outcomes):
    _, found = outcomes
    first, second, alone = found[0:6:2], found[1:6:2], found[6:]
    assert not any(lines(one) for one in second)
    for together, one in zip(first, alone):
        assert lines(together) == [line.replace("one_", "two_") for line in lines(one)] != []


def lines(outcome):
    """What a command printed; Gloo, by which processes on CPUs talk, prints as well."""
    found = outcome.out.splitlines()
    return [x for x in found if "[Gloo]" not in x and "s per 1000 tokens" not in x]
