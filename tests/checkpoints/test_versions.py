"""What one version of Python and JAX wrote, another reads and continues, and back.

FLM_JAX_OTHER_PYTHON names the interpreter of an environment with the other versions and the
dependencies of this package; `.ci/run` sets it. Without it these tests are skipped.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
OTHER = os.environ.get("FLM_JAX_OTHER_PYTHON", "")
pytestmark = pytest.mark.skipif(not OTHER, reason="FLM_JAX_OTHER_PYTHON names no interpreter")

TRAIN = """
    --config=phrases/flm:phrases2 --config.data.task_size=64 --config.model.dim=16
    --config.model.depth=1 --config.model.heads=2 --config.train.batch=16
    --config.train.log_every=1 --config.train.checkpoint_every=3 --config.eval.every=0
    --config.optim.lr=0.01 --config.optim.warmup_steps=2 --config.optim.schedule=constant
"""
SCORE = """
import json, sys, flm_jax, jax
scores = flm_jax.load(sys.argv[1]).score(["diego san", "san diego"])
versions = [sys.version, jax.__version__]
print(json.dumps({"nats": scores.nats.tolist(), "versions": versions}))
"""


def _run(python, *words):
    done = subprocess.run(
        [python, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _train(python, workdir, steps):
    """Losses of the steps that were trained, by their number."""
    words = [f"--workdir={workdir}", *TRAIN.split(), f"--config.train.steps={steps}"]
    output = _run(python, "-m", "flm_jax.train", *words)
    found = re.findall(r"step (\d+)/\d+  nll_nats_per_token ([\d.]+)", output)
    return {int(step): float(loss) for step, loss in found}


def _score(python, folder):
    return json.loads(_run(python, "-c", SCORE, folder).splitlines()[-1])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of three steps that the other version wrote."""
    folder = tmp_path_factory.mktemp("versions") / "run"
    assert list(_train(OTHER, folder, 3)) == [1, 2, 3]
    return folder


def test_a_run_goes_on_from_version_to_version(run, tmp_path):
    losses = []
    for python in (OTHER, sys.executable):
        copy = shutil.copytree(run, tmp_path / f"copy{len(losses)}")
        losses.append(_train(python, copy, 6))
    assert list(losses[0]) == list(losses[1]) == [4, 5, 6]
    # The losses are printed with four digits.
    np.testing.assert_allclose(list(losses[1].values()), list(losses[0].values()), rtol=2e-3)
    assert list(_train(OTHER, tmp_path / "copy1", 7)) == [7]  # what this version has written


def test_models_and_exported_folders_score_alike(run, tmp_path):
    scores = [_score(python, run) for python in (OTHER, sys.executable)]
    assert scores[0]["versions"] != scores[1]["versions"]
    for writer, reader in ((OTHER, sys.executable), (sys.executable, OTHER)):
        folder = tmp_path / f"exported{len(scores)}"
        _run(writer, "-m", "flm_jax.convert", f"--export={folder}", f"--workdir={run}")
        scores.append(_score(reader, folder))
        _run(reader, "-m", "flm_jax.sample", f"--workdir={folder}", "--num_samples=2", "--steps=2")
    for score in scores[1:]:
        np.testing.assert_allclose(score["nats"], scores[0]["nats"], rtol=1e-5)
