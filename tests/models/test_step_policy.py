"""Policies of step sizes: Beta laws, their draws and their ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from flm_jax.core.errors import UserError
from flm_jax.models import step_policy
from flm_jax.models.step_policy import Law, PolicyConfig
from helpers.networks import POLICY

MEANS, CONCENTRATIONS = np.linspace(0.05, 0.95, 7), np.array([2.0, 3.3, 10.0, 50.0])
ALPHA, BETA = (
    np.array([k * m for k in CONCENTRATIONS for m in MEANS]),
    np.array([k * (1 - m) for k in CONCENTRATIONS for m in MEANS]),
)
LAW = Law(jnp.asarray(ALPHA, jnp.float32), jnp.asarray(BETA, jnp.float32))


def test_the_expected_step_size_is_exact():
    got = jax.jit(lambda law: step_policy.expected_step_size(POLICY, law))(LAW)
    kummer = special.hyp1f1(ALPHA, ALPHA + BETA, np.log(256.0)) / 256.0
    np.testing.assert_allclose(got, kummer, rtol=0, atol=1e-6)
    for a, b, value in zip(ALPHA, BETA, np.asarray(got)):
        # The density may be infinite at 0 and 1: its powers are the weight of the quadrature.
        smooth = lambda u: 2.0 ** (-8.0 + 8.0 * u)
        total, _ = integrate.quad(smooth, 0, 1, weight="alg", wvar=(a - 1, b - 1), epsabs=1e-12)
        assert abs(total / special.beta(a, b) - value) < 1e-6


def test_log_probabilities_are_those_of_scipy():
    u = np.linspace(0.001, 0.999, 11)[:, None]
    got = jax.jit(step_policy.log_prob)(
        Law(*(jnp.broadcast_to(x, (11, len(ALPHA))) for x in LAW)),
        jnp.broadcast_to(jnp.asarray(u, jnp.float32), (11, len(ALPHA))),
    )
    np.testing.assert_allclose(got, stats.beta.logpdf(u, ALPHA, BETA), rtol=2e-5, atol=1e-4)


def test_draws_follow_the_law_and_step_sizes_their_range():
    law = Law(jnp.full(4000, 3.0), jnp.full(4000, 1.5))
    u = np.asarray(jax.jit(step_policy.draw)(jax.random.key(0), law))
    assert stats.kstest(u, stats.beta(3.0, 1.5).cdf).pvalue > 0.01
    a = step_policy.step_size(POLICY, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_allclose(a, [1 / 256, 1 / 16, 1.0], rtol=1e-5)


def test_laws_stay_in_their_ranges_and_start_where_told():
    made = step_policy.policy(POLICY)
    params = made.init(jax.random.key(0))
    features = jax.random.normal(jax.random.key(1), (3, 5, 8))
    law = made.law(params, features)
    mean = law.alpha / (law.alpha + law.beta)
    np.testing.assert_allclose(step_policy.step_size(POLICY, mean), 0.5, rtol=1e-5)
    for scale in (-100.0, 100.0):
        wild = jax.tree.map(lambda x, scale=scale: jnp.full_like(x, scale), params)
        law = made.law(wild, jnp.abs(features))
        mean, total = law.alpha / (law.alpha + law.beta), law.alpha + law.beta
        assert (mean > 0.049).all() and (mean < 0.951).all()
        assert (total > 1.99).all() and (total < 50.01).all()


@pytest.mark.parametrize("layers", [1, 2])
def test_two_heads_read_an_encoder(layers):
    """Against the same in NumPy; of older policies the encoder had one layer."""
    made = step_policy.policy(PolicyConfig(hidden=5, layers=layers))
    fresh = made.init(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(fresh)) == 45 + 30 * (layers - 1) + 12
    wild = jax.tree.map(lambda x: x + 0.3 * np.cos(np.arange(x.size)).reshape(x.shape), fresh)
    features = np.random.default_rng(0).random((7, 8))
    seen = features
    for name in ("hidden", "second")[:layers]:
        seen = seen @ np.asarray(wild[name]["kernel"]) + np.asarray(wild[name]["bias"])
        seen = seen / (1 + np.exp(-seen))
    f, g = (seen @ np.asarray(wild["out"]["kernel"]) + np.asarray(wild["out"]["bias"])).T
    law = made.law(wild, jnp.asarray(features, jnp.float32))
    total = law.alpha + law.beta
    np.testing.assert_allclose(total, 2 + 48 / (1 + np.exp(-g)), rtol=1e-5)
    share = (np.log(0.5 * 256) / np.log(256) - 0.05) / 0.9  # where a fresh policy starts
    mean = 0.05 + 0.9 / (1 + (1 / share - 1) * np.exp(-f))
    np.testing.assert_allclose(law.alpha / total, mean, rtol=1e-5)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(start=0.9), "reach from"),
        (dict(least_step=0.0), "least_step"),
        (dict(most_concentration=1.0), "concentrations"),
        (dict(hidden=0), "hidden"),
    ],
)
def test_impossible_policies_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        PolicyConfig(**values)
