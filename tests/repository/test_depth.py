"""From a command's `main` to the network there are at most nine calls."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.runs import run, tiny_config

ROOT = Path(__file__).parents[2]
MOST = 9
SMALL = """
    --config=configs/phrases/flm.py --config.data.task_size=64 --config.model.dim=16
    --config.model.depth=1 --config.model.heads=2 --config.model.cond_dim=16 --config.train.batch=16
    --config.train.steps=1 --config.eval.sample_steps=2
"""


def stacks(folder, module, flags):
    """Stacks of flm_jax at each call of the network, while a command runs."""
    out = folder / "stacks.json"
    line = [sys.executable, str(ROOT / "tests/helpers/depth.py"), str(out), module, *flags.split()]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    "more",
    ["", "--config.model.two_time=True --config.objective.name=semigroup"],
    ids=["flow", "flow map"],
)
def test_training_takes_nine_calls(more, tmp_path):
    found = stacks(tmp_path, "flm_jax.train", f"{SMALL} {more} --workdir={tmp_path / 'run'}")
    training = [stack for stack in found if any("train_step" in frame for frame in stack)]
    assert training and {stack[0] for stack in training} == {"train.py:main"}
    assert max(map(len, training)) <= MOST, max(training, key=len)


def test_sampling_takes_nine_calls(tmp_path):
    config = tiny_config()
    config.train.steps = 1
    run(config, tmp_path / "run")
    found = stacks(tmp_path, "flm_jax.sample", f"--workdir={tmp_path / 'run'} --num_samples=2")
    assert found and {stack[0] for stack in found} == {"sample.py:main"}
    assert max(map(len, found)) <= MOST, max(found, key=len)
