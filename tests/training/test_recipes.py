"""The shipped recipes of the phrase tasks reach valid one-step samples."""

import os
import subprocess
import sys

import numpy as np
import pytest

from flm_jax.build.data import open_data
from flm_jax.build.load import load_model
from flm_jax.inference import engine
from flm_jax.samplers.base import nothing_given


def _train(name, task, workdir, *flags):
    """The shipped recipe by its command, on one device."""
    command = [sys.executable, "-m", "flm_jax.train", f"--config=configs/{name}.py:{task}"]
    env = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    flags = [f"--workdir={workdir}", "--config.eval.every=0", *flags]
    done = subprocess.run([*command, *flags], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("task", ["phrases2", "phrases4"])
def test_one_step_flow_map_writes_valid_phrases(task, tmp_path):
    """At least 99% of 10,000 one-step samples are valid, TV to the true law at most 0.03.

    Words drawn independently, each from its own marginal, are valid half of the time or less.
    """
    _train("phrases/flm", task, tmp_path / "flm")
    teacher = f"--config.objective.teacher={tmp_path / 'flm'}"
    _train("phrases/fmlm", task, tmp_path / "fmlm", teacher)
    model = load_model(tmp_path / "fmlm")
    given = nothing_given(5000, 2)
    drawn = engine.draw(model, given, steps=1, num=10_000, seed=0)
    task = open_data(model.config).task
    report = task.report(drawn.tokens)
    print(task.name, report)
    assert report["valid"] >= 0.99
    assert report["total_variation"] <= 0.03
    other = np.random.default_rng(0).permutation(len(drawn.tokens))
    apart = np.stack([drawn.tokens[:, 0], drawn.tokens[other, 1]], axis=1)
    assert task.report(apart)["valid"] < 0.6


def _one_call(workdir):
    """(share of valid samples, total variation) of 5,000 in one call."""
    model = load_model(workdir)
    drawn = engine.draw(model, nothing_given(5000, 2), steps=1, num=5000, seed=0)
    report = open_data(model.config).task.report(drawn.tokens)
    return report["valid"], report["total_variation"]


@pytest.mark.slow
def test_distribution_matching_makes_one_call_of_a_flow_a_sample(tmp_path):
    """From a flow, without a flow map: in one call nearer to the law than the flow itself."""
    few = ["--config.train.steps=400", "--config.train.batch=128", "--config.optim.lr=2e-3"]
    _train("phrases/flm", "phrases2", tmp_path / "flm", *few)
    given = [f"--config.objective.teacher={tmp_path / 'flm'}", "--config.objective.start="]
    few = ["--config.train.steps=160", "--config.train.batch=384"]
    _train("phrases/dmd", "phrases2", tmp_path / "dmd", *given, *few)
    (valid, apart), (after, left) = (_one_call(tmp_path / name) for name in ("flm", "dmd"))
    print(valid, apart, after, left)
    assert after > valid + 0.02 and left < apart
