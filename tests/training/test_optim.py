"""The optimizer: learning rates, Muon, averages."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.training.optim import learning_rate, make_optimizer, update_ema
from flm_jax.training.settings import OptimConfig


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
