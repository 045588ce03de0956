"""Squared errors in place of the cross entropy are their definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.noise import states_from_onehot
from flm_jax.flows.time_sampling import Rows, stratified_uniform
from flm_jax.losses.denoising import DenoisingConfig
from flm_jax.losses.regression import regression_loss
from helpers.linear import KEY, NET, PARAMS, TOKENS, B, L, V, linear_net

FLOW = onehot_flow(decoding_clock(V), in_vocabulary=True)
BATCH = {"tokens": TOKENS, "mask": (jnp.arange(L)[None] < jnp.array([4, 4, 2, 4, 0, 3])[:, None])}


def by_hand(params, prediction):
    """The loss with every array held, from its definition."""
    time_key, noise_key, _ = jax.random.split(KEY, 3)
    rows = Rows(0, B)
    tau = stratified_uniform(time_key, B, rows)
    t, noise_key = FLOW.t(tau), rows.fold(noise_key)
    clean = jax.nn.one_hot(TOKENS, V)
    eps = jax.random.normal(noise_key, (B, L, V))
    (y_t,) = states_from_onehot(FLOW.path, eps, t, TOKENS, params["table"])
    raw = (
        NET.features(params, y_t, tau, tau) @ params["kernel"] + jnp.linspace(-1, 1, V)[None, None]
    )
    got = jax.nn.softmax(3.0 * jnp.tanh(raw / 3.0)) if prediction == "probabilities" else raw
    x_t = t[:, None, None] * clean + (1 - t)[:, None, None] * eps
    wanted = FLOW.path.velocity(x_t, clean, t) if prediction == "velocity" else clean
    mask = BATCH["mask"].astype(jnp.float32)
    return jnp.sum(jnp.sum(jnp.square(got - wanted), axis=-1) * mask) / jnp.sum(mask)


@pytest.mark.parametrize(
    ("prediction", "tile"),
    [("probabilities", 0), ("probabilities", 3), ("denoiser", 0), ("velocity", 0)],
)
def test_squared_errors_are_their_definition(prediction, tile):
    """Values and gradients within 1e-4, whole and by tiles."""
    cfg, net = DenoisingConfig(prediction=prediction), linear_net(tile)

    def loss(params):
        settings = dict(net=net, flow=FLOW, cfg=cfg, rows=Rows(0, B))
        return regression_loss(params, None, BATCH, KEY, **settings)[0]

    want, wanted = jax.jit(jax.value_and_grad(lambda p: by_hand(p, prediction)))(PARAMS)
    got, grads = jax.jit(jax.value_and_grad(loss))(PARAMS)
    np.testing.assert_allclose(got, want, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
