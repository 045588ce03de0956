"""The projected noise has the law of E^T eps, alone and through two tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.flows.gaussian_noise import (
    cholesky_factor,
    embedded_noise,
    gram,
    joint_embedded_noise,
    leverages,
)
from helpers.networks import table_of

DRAWS = 100_000


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


@pytest.mark.parametrize("vocab_size, dim, rank", [(40, 12, 12), (7, 12, 7)])
def test_leverages_sum_to_the_rank(vocab_size, dim, rank):
    """As of the exact pseudo-inverse, and whatever basis the table is written in."""
    rng = np.random.default_rng(0)
    table = rng.standard_normal((vocab_size, dim)) * rng.uniform(0.5, 2.0, (vocab_size, 1))
    found = leverages(jnp.asarray(table, jnp.float32))
    np.testing.assert_allclose(found.sum(), rank, rtol=1e-4)
    np.testing.assert_allclose(found, np.diag(table @ np.linalg.pinv(table)), rtol=1e-3)
    turned = jnp.asarray(table @ rng.standard_normal((dim, dim)), jnp.float32)
    np.testing.assert_allclose(leverages(turned), found, rtol=1e-2)
