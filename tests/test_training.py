"""Training: determinism, stopping and continuing, devices, non-finite steps, the phrase tasks."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.build.load import load_model
from flm_jax.checkpoints.state import new_state
from flm_jax.config.check import check
from flm_jax.config.schema import base_config
from flm_jax.data import loading
from flm_jax.flows.time_sampling import Rows
from flm_jax.inference import engine
from flm_jax.samplers.base import nothing_given
from flm_jax.training.optim import learning_rate, make_optimizer, update_ema
from flm_jax.training.settings import OptimConfig
from flm_jax.training.step import make_train_step
from flm_jax.training.trainer import train_run


def tiny_config():
    config = base_config()
    config.data.task = "phrases2"
    config.data.task_size = 512
    config.model.length = 2
    config.model.dim = 16
    config.model.depth = 1
    config.model.heads = 2
    config.model.cond_dim = 16
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 2
    config.train.steps = 8
    config.train.batch = 16
    config.train.checkpoint_every = 4
    config.train.log_every = 2
    config.eval.sample_steps = 2
    config.mesh.data = 1
    config.mesh.fsdp = 8  # the tests run on 8 devices
    return config


def run(config, workdir):
    return train_run(check(config), str(workdir))


def final_params(workdir):
    return jax.tree.map(np.asarray, load_model(workdir).params)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


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
    env = os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
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


def _quadratic(params, frozen, batch, key, rows):
    del frozen, key, rows
    loss = jnp.sum(params["w"] * jnp.mean(batch["tokens"]))
    return loss, {"nll_nats_per_token": loss}


def test_a_non_finite_step_changes_nothing_and_is_counted():
    optimizer = optax.adam(0.1)
    step = make_train_step(_quadratic, optimizer, seed=0, microbatches=1, ema_decay=0.9)
    state = new_state({"w": jnp.ones(3)}, optimizer)
    good = {"tokens": jnp.ones((4, 2))}
    state, _ = step(state, {}, good)
    after, metrics = step(state, {}, {"tokens": jnp.full((4, 2), jnp.nan)})
    assert_equal(after._replace(step=0, skipped=0), state._replace(step=0, skipped=0))
    assert int(after.skipped) == 1 and int(after.step) == 2
    assert int(metrics["skipped_in_a_row"]) == 1
    after, _ = step(after, {}, good)
    assert int(after.skipped) == 0
    assert not np.array_equal(after.params["w"], state.params["w"])


def test_microbatches_average_gradients_over_disjoint_rows():
    seen = []

    def objective(params, frozen, batch, key, rows):
        del frozen, key
        seen.append(rows)
        loss = jnp.sum(params["w"]) * jnp.mean(batch["tokens"])
        return loss, {"nll_nats_per_token": loss}

    optimizer = optax.sgd(1.0)
    batch = {"tokens": jnp.arange(8.0).reshape(8, 1)}
    states = []
    for parts in (1, 4):
        step = make_train_step(objective, optimizer, seed=0, microbatches=parts, ema_decay=0.9)
        states.append(step(new_state({"w": jnp.ones(3)}, optimizer), {}, batch)[0])
    np.testing.assert_allclose(states[0].params["w"], states[1].params["w"], rtol=1e-6)
    assert all(rows.total == 8 for rows in seen if not isinstance(rows.start, int))


def test_stratified_times_cover_the_global_batch_from_microbatches():
    from flm_jax.flows.time_sampling import stratified_uniform

    key = jax.random.key(3)
    parts = [stratified_uniform(key, 8, Rows(start, 32)) for start in range(0, 32, 8)]
    shift = jax.random.uniform(jax.random.fold_in(key, 0))
    strata = np.floor(np.mod(np.concatenate(parts) - shift, 1.0) * 32 + 1e-4)
    assert len(set(strata.tolist())) >= 31  # one row may sit on the rounding of an edge


def test_learning_rate_warms_up_and_falls():
    cfg = OptimConfig(1e-2, 10, "cosine", 0.9, 0.99, 1e-8, 0.0, 1.0, 0.9)
    rate = learning_rate(cfg, 110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 5e-3, 1e-2], rtol=1e-6)
    np.testing.assert_allclose(rate(110), 1e-3, rtol=1e-5)


def test_muon_orthogonalises_the_matrices_of_blocks_alone():
    """Each layer's step has equal singular values, at AdamW's size; all else steps as AdamW."""
    adamw = OptimConfig(1e-2, 0, "constant", 0.9, 0.99, 1e-8, 0.0, 0.0, 0.9)
    muon = dataclasses.replace(adamw, name="muon")
    draw = lambda i, shape: jax.random.normal(jax.random.key(i), shape)
    grads = {
        "blocks": {
            "qkv": {"kernel": draw(0, (2, 12, 36)) * jnp.array([1.0, 100.0])[:, None, None]},
            "modulation": {"kernel": draw(1, (2, 4, 8))},
        },
        "head": {"kernel": draw(2, (12, 7)), "bias": draw(3, (7,))},
    }
    steps = []
    for cfg in (adamw, muon):
        optimizer = make_optimizer(cfg, 10)
        steps.append(optimizer.update(grads, optimizer.init(grads), grads)[0])
    values = jnp.linalg.svd(steps[1]["blocks"]["qkv"].pop("kernel"), compute_uv=False)
    assert values.shape == (2, 12)
    # Five steps of its iteration leave them within a third of each other.
    assert (values.max(axis=1) < 1.8 * values.min(axis=1)).all()
    size = jnp.sqrt(jnp.sum(jnp.square(values), axis=1) / (12 * 36))
    np.testing.assert_allclose(size, 0.2 * 1e-2, rtol=0.25)
    first = jnp.linalg.svd(steps[0]["blocks"]["qkv"].pop("kernel"), compute_uv=False)
    assert (first.max(axis=1) > 2.0 * first.min(axis=1)).all()
    jax.tree.map(np.testing.assert_array_equal, *steps)


def test_ema_starts_fast_and_settles_at_its_decay():
    one, zero = {"w": jnp.ones(())}, {"w": jnp.zeros(())}
    np.testing.assert_allclose(update_ema(one, zero, 0.9999, 0)["w"], 0.1, rtol=1e-6)
    np.testing.assert_allclose(update_ema(one, zero, 0.99, 10**6)["w"], 0.99, rtol=1e-6)


def _train(name, task, workdir, *flags):
    """The shipped recipe by its command, on one device."""
    command = [sys.executable, "-m", "flm_jax.train", f"--config=configs/{name}.py:{task}"]
    env = os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    flags = [f"--workdir={workdir}", "--config.eval.every=0", *flags]
    done = subprocess.run([*command, *flags], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("task", ["phrases2", pytest.param("phrases4", marks=pytest.mark.slow)])
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
    task = loading.open_data(model.config).task
    report = task.report(drawn.tokens)
    print(task.name, report)
    assert report["valid"] >= 0.99
    assert report["total_variation"] <= 0.03
    other = np.random.default_rng(0).permutation(len(drawn.tokens))
    apart = np.stack([drawn.tokens[:, 0], drawn.tokens[other, 1]], axis=1)
    assert task.report(apart)["valid"] < 0.6
