"""The loss of projected noise has the expected gradient of the one-hot loss."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.noise import OneHotNoise
from flm_jax.losses.denoising import denoising_loss_at
from flm_jax.models.dit import DiTConfig, dit

# The law of the loss and of its gradient, tested with a small random DiT.
NETWORK = dit(
    DiTConfig(
        vocab_size=24,
        length=3,
        dim=4,
        depth=1,
        heads=1,
        cond_dim=4,
        mlp_ratio=1,
        dropout=0.0,
        two_time=False,
        attention_softcap=50.0,
        logit_softcap=30.0,
        dtype="float32",
        remat="none",
        scan_blocks=True,
    )
)
GRADIENT_DRAWS = 40_000
DIRECTIONS = 8


def random_params(net, seed, scale):
    shapes = jax.eval_shape(net.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten([scale * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def make_loss_statistics(draw):
    """A program for the mean of the loss and of projections of its gradient.

    Args:
      draw: (key, t, tokens, table, *change) -> states.

    Returns:
      (seed, *change) -> means and squared standard errors. Entry 0 is the loss, then the gradient
      along DIRECTIONS random directions in the embedding table, in the head's kernel and in all
      the parameters.
    """
    params = random_params(NETWORK, 7, 0.6)
    tokens, tau, t = jnp.asarray([[3, 17, 20]]), jnp.asarray([0.5]), jnp.asarray([0.5])
    directions = [random_params(NETWORK, 100 + i, 1.0) for i in range(DIRECTIONS)]
    stack = jax.tree.map(lambda *leaves: jnp.stack([x.ravel() for x in leaves]), *directions)

    def loss(params, key, change):
        y_t = draw(key, t, tokens, params["table"], *change)
        weights = jnp.full(tokens.shape, 1 / tokens.size)
        return denoising_loss_at(params, y_t, tau, tokens, weights, net=NETWORK)[0]

    def statistics(key, change):
        value, gradient = jax.value_and_grad(loss)(params, key, change)
        along = jax.tree.map(lambda d, g: d @ g.ravel(), stack, gradient)
        groups = (along["table"], along["head"]["kernel"], sum(jax.tree.leaves(along)))
        return jnp.concatenate([value[None], *groups])

    @jax.jit
    def of_keys(keys, change):
        return jax.lax.map(lambda key: statistics(key, change), keys, batch_size=1000)

    def run(seed, *change):
        values = of_keys(jax.random.split(jax.random.key(seed), GRADIENT_DRAWS), change)
        values = np.asarray(values, np.float64)
        return values.mean(axis=0), values.var(axis=0) / len(values)

    return run


def test_projected_loss_has_the_expected_gradient_of_the_onehot_loss():
    """Equal mean loss and mean gradient of the two paths, from 40,000 draws of each.

    25 two-sample z-scores must stay below 4 (by chance exceeded in 1 of 600 choices of the seed).
    Power: noise of covariance 1.1 E^T E, and noise through which no gradient reaches E, must each
    give a z-score above 7 (they give about 10 and 40).
    """

    def onehot(key, t, tokens, table):
        return OneHotNoise(in_vocabulary=True).states(key, Linear(), t, tokens, table, None)[0]

    def projected(key, t, tokens, table, scale, through):
        """Covariance times `scale`; gradient through the noise times `through`."""
        e = through * table + (1 - through) * jax.lax.stop_gradient(table)
        y_t = OneHotNoise().states(key, Linear(), t, tokens, e, None)[0]
        right = Linear().at(t, e[tokens])
        return Linear().at(t, table[tokens]) + jnp.sqrt(scale) * (y_t - right)

    mean, variance = make_loss_statistics(onehot)(11)
    statistics = make_loss_statistics(projected)

    def deviation(scale, through):
        other_mean, other_variance = statistics(12, scale, through)
        return np.abs(other_mean - mean) / np.sqrt(variance + other_variance)

    assert deviation(1.0, 1.0).max() < 4
    assert deviation(1.1, 1.0).max() > 7
    assert deviation(1.0, 0.0).max() > 7
