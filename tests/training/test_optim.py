"""The optimizer: learning rates, Muon, averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from flm_jax.config.training import OptimConfig
from flm_jax.training.optim import learning_rate, make_optimizer, rate_change, update_ema
from helpers.runs import run, tiny_config


def test_learning_rate_warms_up_and_falls():
    cfg = OptimConfig(1e-2, 10, "cosine", 0.9, 0.99, 1e-8, 0.0, 1.0, 0.9)
    rate = learning_rate(cfg, 110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 5e-3, 1e-2], rtol=1e-6)
    np.testing.assert_allclose(rate(110), 1e-3, rtol=1e-5)


def test_clipping_is_that_of_optax():
    """To 1e-6, above and below the limit, with the norm given or not; 1 is exactly no change."""
    cfg = OptimConfig(1e-2, 0, "constant", 0.9, 0.99, 1e-8, 0.0, 1.0, 0.9)
    params = {"a": jnp.arange(1.0, 7.0).reshape(2, 3), "b": jnp.ones(4)}
    own, plain = make_optimizer(cfg, 1), optax.clip_by_global_norm(1.0)
    for scale in (1e-3, 10.0):
        grads = jax.tree.map(lambda x, s=scale: s * x, params)
        norm = optax.tree.norm(grads)
        expected, _ = plain.update(grads, plain.init(params))
        for known in ({}, {"grad_norm": norm}):
            _, state = own.update(grads, own.init(params), params, **known)
            for mu, g in zip(jax.tree.leaves(optax.tree.get(state, "mu")), expected.values()):
                np.testing.assert_allclose(mu, 0.1 * g, rtol=1e-6)
    _, state = own.update(params, own.init(params), params, grad_norm=jnp.asarray(2.0))
    np.testing.assert_allclose(optax.tree.get(state, "mu")["b"], 0.05, rtol=1e-6)


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


def test_a_rate_that_other_steps_move_is_told(tmp_path, capsys):
    """A cosine that had come down goes up again where the run is made longer."""
    config = tiny_config()
    config.optim.schedule, config.train.steps = "cosine", 4
    run(config, tmp_path)
    capsys.readouterr()
    config.train.steps = 8
    run(config, tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if "WARNING" in line]
    assert len(lines) == 1 and "at step 4 goes from 0.0001 to 0.000775" in lines[0], lines
    assert "config.train.steps is 8, was 4" in lines[0]
    run(config, tmp_path)
    assert "WARNING" not in capsys.readouterr().err


@pytest.mark.parametrize(("schedule", "told"), [("constant", False), ("cosine", True)])
def test_rates_of_several_updates_a_step(schedule, told):
    old, new = tiny_config(), tiny_config()
    for config, steps in ((old, 10), (new, 20)):
        config.optim.schedule, config.train.steps = schedule, steps
    assert bool(rate_change(old.to_dict(), new.to_dict(), 10, 4)) == told
    assert not rate_change(old.to_dict(), old.to_dict(), 10, 4)
    assert not rate_change(old.to_dict(), new.to_dict(), 0)
