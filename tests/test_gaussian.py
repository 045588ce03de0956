"""The projected noise has the law of E^T eps, and so has everything computed from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.gaussian_noise import cholesky_factor, embedded_noise, gram, joint_embedded_noise
from flm_jax.flows.interpolants import interpolate, linear
from flm_jax.flows.noising import noisy_states
from flm_jax.losses.denoising import denoising_loss_at
from flm_jax.models.dit import DiTConfig, dit

DRAWS = 100_000


def table_of(vocab_size, dim, seed=0):
    return jax.random.normal(jax.random.key(seed), (vocab_size, dim))


def z_scores(samples, covariance):
    """Deviation of the sample covariance (mean known to be 0) in standard errors, entrywise."""
    samples, covariance = np.asarray(samples, np.float64), np.asarray(covariance, np.float64)
    found = samples.T @ samples / len(samples)
    variances = np.diag(covariance)
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / len(samples))
    return (found - covariance) / error


@pytest.mark.parametrize("vocab_size, dim", [(9, 6), (12, 6), (200, 6)])
def test_covariance_is_the_gram_matrix(vocab_size, dim):
    """Both branches, V <= 2 D and V > 2 D; every entry within 4.5 standard errors (1.5% of it).

    By chance one of the 63 entries would fail in 1 of 2000 choices of the seed.
    """
    table = table_of(vocab_size, dim)
    samples = embedded_noise(jax.random.key(1), table, (DRAWS,))
    assert np.abs(z_scores(samples, gram(table))).max() < 4.5
    assert np.abs(z_scores(1.05 * samples, gram(table))).max() > 9, "5% would pass unnoticed"


def test_factor_and_gram():
    table = table_of(50, 4)
    np.testing.assert_allclose(gram(table), np.asarray(table).T @ np.asarray(table), rtol=1e-5)
    factor = cholesky_factor(gram(table))
    np.testing.assert_allclose(factor @ factor.T, gram(table), rtol=0, atol=2e-5 * 50)
    assert (jnp.triu(factor, 1) == 0).all()


@pytest.mark.parametrize("vocab_size", [5, 300])
def test_shapes_and_dtype(vocab_size):
    table = table_of(vocab_size, 3).astype(jnp.bfloat16)
    y = embedded_noise(jax.random.key(0), table, (2, 7))
    assert (y.shape, y.dtype) == ((2, 7, 3), jnp.float32)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_rank_deficient_table(rank):
    """Values and gradients stay finite, and the covariance right up to the jitter."""
    table = table_of(200, 3)[:, jnp.asarray([0, 1, 2, 0, 1, 2])] * (jnp.arange(6) % 3 < rank)[None]
    samples = embedded_noise(jax.random.key(1), table, (DRAWS,))
    assert jnp.isfinite(samples).all()
    error = np.abs(np.asarray(samples.T @ samples / DRAWS - gram(table))).max()
    assert error <= 0.03 * np.asarray(gram(table)).max()
    gradient = jax.grad(lambda e: jnp.sum(embedded_noise(jax.random.key(1), e, (10,)) ** 2))(table)
    assert jnp.isfinite(gradient).all()


@pytest.mark.parametrize("vocab_size", [9, 200])
@pytest.mark.parametrize("width", [4, 6, 9])
def test_joint_covariance_is_the_joint_gram_matrix(vocab_size, width):
    """Tables of other widths too; 4.8 standard errors of 100,000 draws, in all entries."""
    table, other = table_of(vocab_size, 6), table_of(vocab_size, width, seed=3)
    first, second = joint_embedded_noise(jax.random.key(1), table, other, (DRAWS,))
    both = jnp.concatenate([table, other], axis=1)
    assert np.abs(z_scores(jnp.concatenate([first, second], axis=1), gram(both))).max() < 4.8
    np.testing.assert_array_equal(first, embedded_noise(jax.random.key(1), table, (DRAWS,)))


@pytest.mark.parametrize("vocab_size, tolerance", [(9, 0.0), (200, 3e-3)])
def test_joint_views_through_one_table_agree(vocab_size, tolerance):
    """E' = E: the views differ by the jitter alone, sqrt(4 D eps32) = 0.17% of their size at D = 6.

    Bound on the root mean square of the difference over that of the noise.
    """
    table = table_of(vocab_size, 6)
    first, second = joint_embedded_noise(jax.random.key(1), table, table, (1000,))
    ratio = jnp.sqrt(jnp.mean((first - second) ** 2) / jnp.mean(first**2))
    assert ratio <= tolerance


def test_joint_views_of_dependent_tables():
    """A table that is a linear image of the other, E' = E M, sees the image of the noise."""
    table, matrix = table_of(300, 6), table_of(6, 8, seed=4)
    first, second = joint_embedded_noise(jax.random.key(1), table, table @ matrix, (1000,))
    ratio = jnp.sqrt(jnp.mean((first @ matrix - second) ** 2) / jnp.mean(second**2))
    assert ratio < 4e-3


@pytest.mark.parametrize("vocab_size", [9, 200])
def test_joint_noise_is_differentiable_in_the_first_table_alone(vocab_size):
    table, other = table_of(vocab_size, 6), table_of(vocab_size, 6, seed=3)

    def power(table, other):
        first, second = joint_embedded_noise(jax.random.key(1), table, other, (10,))
        return jnp.sum(first**2), jnp.sum(second**2)

    of_first, of_second = jax.jacrev(power, argnums=(0, 1))(table, other)
    assert jnp.abs(of_first[0]).max() > 0
    if vocab_size > 12:  # the one-hot branch has nothing to stop in `table`
        assert (of_second[0] == 0).all()
    assert (of_first[1] == 0).all()
    assert (of_second[1] == 0).all()


@pytest.mark.parametrize("vocab_size", [9, 200])
def test_states_through_two_tables_of_different_width(vocab_size):
    table, other = table_of(vocab_size, 6), table_of(vocab_size, 4, seed=3)
    tokens = jnp.asarray([[0, 3, 8]])
    for noise in ("projected", "onehot"):
        pair = noisy_states(jax.random.key(0), jnp.ones(1), tokens, table, other, noise=noise)
        for view, e in zip(pair, (table, other)):
            np.testing.assert_allclose(view, e[tokens], rtol=1e-5, atol=1e-6)


# The law of the loss and of its gradient, tested with a small random DiT.
NETWORK = dit(
    DiTConfig(
        vocab_size=24,
        max_length=3,
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
        return noisy_states(key, t, tokens, table, noise="onehot")[0]

    def projected(key, t, tokens, table, scale, flow):
        """Covariance times `scale`; gradient through the noise times `flow`."""
        e = flow * table + (1 - flow) * jax.lax.stop_gradient(table)
        y_t = noisy_states(key, t, tokens, e, noise="projected")[0]
        right = interpolate(linear, t, e[tokens])
        return interpolate(linear, t, table[tokens]) + jnp.sqrt(scale) * (y_t - right)

    mean, variance = make_loss_statistics(onehot)(11)
    statistics = make_loss_statistics(projected)

    def deviation(scale, flow):
        other_mean, other_variance = statistics(12, scale, flow)
        return np.abs(other_mean - mean) / np.sqrt(variance + other_variance)

    assert deviation(1.0, 1.0).max() < 4
    assert deviation(1.1, 1.0).max() > 7
    assert deviation(1.0, 0.0).max() > 7
