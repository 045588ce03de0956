"""Guidance by a reward tilts an exact law along the reward's gradient."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.euler import EulerConfig
from flm_jax.samplers.guides import Guides
from flm_jax.samplers.reward_guidance import Reward, make_nudge
from helpers.networks import FLOW, KEY, denoiser, exact_network, matches, some_given, tiny_network
from helpers.steering import ONES, REWARD, steered_program


def test_reward_tilts_the_exact_law():
    """r = 1 for the second sequence, scale 2: its share is e^2/(1+e^2) = 0.88 instead of 1/2.

    The first-order denoiser comes near (within 0.06), and every text stays valid.
    """
    net, _ = exact_network()
    reward = Reward(lambda params: jnp.eye(5), lambda params, x: x[:, 0, 3])
    given, shares = nothing_given(2000, 3), []
    for scale in (0.0, 2.0, -2.0):
        cfg = EulerConfig(reward="x", reward_scale=scale)
        run = steered_program(net, 32, cfg, Guides(None, reward), exact=True)
        samples = run(KEY, {}, given, {"reward": {}})
        first, second = matches(samples.tokens)
        assert (first | second).mean() > 0.999
        assert samples.calls is None if scale == 0.0 else int(samples.calls) == 64
        shares.append(second.mean())
    want = 1 / (1 + np.exp([0.0, -2.0, 2.0]))
    np.testing.assert_allclose(shares, want, rtol=0, atol=0.06)


def test_nudge_is_the_gradient_in_the_one_hot_space():
    """c E^T E grad r(D_s(y)), against finite differences in R^V; given positions do not count."""
    net, params = tiny_network(False)
    given = Given(jnp.zeros((3, 6), jnp.int32), jnp.zeros((3, 6), bool).at[:, 0].set(True))
    table = params["table"]
    nudge = make_nudge(net, params, FLOW, ONES, REWARD["reward"], 2.0, table, given)
    y, s, t, tau = 0.3 * table[some_given().tokens], 0.3, 0.4, jnp.float32(0.2)
    moved = jax.jit(nudge)(y, y, tau, s, t) - y
    c = 2.0 * (t - s) * (1 - s) / s
    way = jax.random.normal(jax.random.key(8), (3, 6, 11)).at[:, 0].set(0.0)  # in R^V

    def reward(step):
        held = y + step * way @ table
        held = held.at[:, 0].set(s * table[:1] + (1 - s) * y[:, 0])
        probs = jax.nn.softmax(denoiser(net)(params, held, jnp.full(3, tau), jnp.full(3, tau)))
        return probs[:, 1:, 1].sum()

    slope = (reward(1e-3) - reward(-1e-3)) / 2e-3
    # moved = c G E for the gradient G in R^V; what of `way` E does not see does not count.
    gradient, seen = moved @ jnp.linalg.pinv(table) / c, way @ table @ jnp.linalg.pinv(table)
    np.testing.assert_allclose(jnp.sum(gradient * seen), slope, rtol=0.02)
