"""Training: determinism, stopping and continuing, devices."""

import json
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import flm_jax
from flm_jax.core.errors import UserError
from helpers.compiling import FAST
from helpers.runs import assert_equal, changed, distilling, final_params, run, tiny_config


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole") / "run"
    config = tiny_config()
    config.train.batch = 16
    assert run(config, workdir) == 0
    return workdir


def test_continued_run_is_bit_equal_to_an_uninterrupted_one(uninterrupted, tmp_path):
    config = tiny_config()
    config.train.steps = 5
    run(config, tmp_path / "run")
    config.train.steps = 8
    run(config, tmp_path / "run")
    assert_equal(final_params(uninterrupted), final_params(tmp_path / "run"))
    lines = [json.loads(s) for s in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    whole = [json.loads(s) for s in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    losses = lambda rows: {r["step"]: r.get("train/nll_nats_per_token") for r in rows}
    assert losses(lines)[8] == losses(whole)[8]


def test_another_seed_gives_other_parameters(uninterrupted, tmp_path):
    config = tiny_config()
    config.seed = 1
    run(config, tmp_path / "run")
    same = jax.tree.map(np.array_equal, final_params(uninterrupted), final_params(tmp_path / "run"))
    assert not all(jax.tree.leaves(same))


def test_a_run_starts_from_the_averages_of_another(uninterrupted, tmp_path):
    """Of the same objective, with clean context added; what does not fit is refused."""
    config = tiny_config()
    config.train.start = str(uninterrupted)
    config.train.steps, config.optim.lr = 1, 1e-30
    config.objective.context = 0.5
    run(config, tmp_path / "own")
    apart = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)
    jax.tree.map(apart, final_params(tmp_path / "own"), final_params(uninterrupted))
    flm_jax.load(tmp_path / "own").save_pretrained(tmp_path / "folder")
    assert str(tmp_path) not in (tmp_path / "folder" / "config.json").read_text()
    other = str(uninterrupted)
    for change, message in (
        ({"objective.name": "masked_diffusion"}, "of objective denoising; expected masked_diff"),
        ({"model.dim": 32}, "the student must have the start's sizes"),
        ({"flow.clock": "identity"}, "config.flow.clock"),
    ):
        wrong = changed(tiny_config(), {"train.start": other} | change)
        with pytest.raises(UserError, match=message):
            run(wrong, tmp_path / "no")
    wrong = changed(distilling(tiny_config(), "semigroup", other), {"train.start": other})
    with pytest.raises(UserError, match="starts from another model"):
        run(wrong, tmp_path / "no")


@pytest.mark.parametrize("mesh", [(8, 1, 1), (1, 1, 8), (2, 2, 2)])
def test_meshes_agree(uninterrupted, tmp_path, mesh):
    config = tiny_config()
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
    run(config, tmp_path / "run")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        final_params(uninterrupted),
        final_params(tmp_path / "run"),
    )


def test_a_run_continues_on_another_mesh(uninterrupted, tmp_path):
    config = tiny_config()
    config.train.steps = 4
    run(config, tmp_path / "run")
    config.train.steps = 8
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 2, 2, 2
    run(config, tmp_path / "run")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5),
        final_params(uninterrupted),
        final_params(tmp_path / "run"),
    )


def test_muon_continues_on_another_mesh_and_agrees(tmp_path):
    """Its momenta are saved and cut like the rest; whole runs are compared on other devices."""
    for name, mesh, stops in (("whole", (1, 8, 1), [6]), ("parts", (2, 2, 2), [3, 6])):
        for steps in stops:
            config = tiny_config()
            config.optim.name = "muon"
            config.train.steps = steps
            config.mesh.data, config.mesh.fsdp, config.mesh.tensor = mesh
            run(config, tmp_path / name)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4),
        final_params(tmp_path / "whole"),
        final_params(tmp_path / "parts"),
    )


def _start(workdir, steps=400):
    """A training process; it has taken at least one step when this returns."""
    command = [sys.executable, "-u", "-m", "flm_jax.train", "--config=configs/phrases/flm.py"]
    flags = {
        "data.task_size": 512,
        "model.dim": 16,
        "model.depth": 1,
        "model.heads": 2,
        "train.batch": 16,
        "train.steps": steps,
        "train.log_every": 1,
        "train.checkpoint_every": 20,
        "eval.every": 0,
        "optim.schedule": "constant",
    }
    command += [f"--config.{k}={v}" for k, v in flags.items()] + [f"--workdir={workdir}"]
    env = os.environ | {"XLA_FLAGS": FAST, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def _until(process, word):
    lines = []
    for line in process.stdout:
        lines.append(line)
        if word in line:
            return
    raise AssertionError("".join(lines))


@pytest.fixture(scope="module")
def whole_process(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("process") / "run"
    process = _start(workdir)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return workdir


def test_sigterm_saves_and_exits_75_and_the_run_continues(whole_process, tmp_path):
    process = _start(tmp_path / "run")
    _until(process, "step 30/")
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 75, output
    assert "SIGTERM: saved step" in output
    process = _start(tmp_path / "run")
    assert "continuing" in process.communicate(timeout=300)[0]
    assert_equal(final_params(whole_process), final_params(tmp_path / "run"))


def test_sigkill_loses_only_what_follows_the_last_checkpoint(whole_process, tmp_path):
    process = _start(tmp_path / "run")
    _until(process, "step 45/")
    process.kill()
    process.communicate()
    process = _start(tmp_path / "run")
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert_equal(final_params(whole_process), final_params(tmp_path / "run"))
