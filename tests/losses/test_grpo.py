"""Group-relative policy optimisation: advantages, its gradient, clipped ratios."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.losses.grpo import clipped_loss, group_advantages, token_rewards


# Group-relative optimisation.
def test_advantages_are_normalised_within_groups_token_by_token():
    rng = np.random.default_rng(0)
    answers, reached = rng.random(6), rng.random((6, 4))
    rewards = token_rewards(jnp.asarray(answers), jnp.asarray(reached), 0.3)
    want = (answers[:, None] + 0.3 * reached).reshape(2, 3, 4)
    want = ((want - want.mean(1, keepdims=True)) / want.std(1, keepdims=True)).reshape(6, 4)
    np.testing.assert_allclose(group_advantages(rewards, 3), want, rtol=1e-4)
    assert not group_advantages(jnp.full((6, 4), 0.7), 3).any()


def test_the_gradient_is_that_of_the_expected_reward_with_two_actions():
    """A group that holds both actions as often as the policy takes them: the surrogate's gradient
    is that of the expected reward over its standard deviation, for each token."""
    theta = jnp.log(3.0)  # the first action has probability 3/4
    actions = jnp.array([1.0, 1.0, 1.0, 0.0])[:, None] * jnp.ones((1, 2))
    values = jnp.array([[0.2, 0.9], [1.0, 0.4]])  # of action 0 and 1, for two tokens
    rewards = jnp.where(actions == 1.0, values[1:2], values[:1])
    advantages = group_advantages(rewards, 4)

    def log_prob(theta):
        return jnp.where(actions == 1.0, jax.nn.log_sigmoid(theta), jax.nn.log_sigmoid(-theta))

    def surrogate(theta, token):
        counted = jnp.zeros((1, 4, 2), bool).at[:, :, token].set(True)
        before = jax.lax.stop_gradient(log_prob(jnp.log(3.0)))[None]
        return -clipped_loss(log_prob(theta)[None], before, advantages, counted, 0.2)[0]

    def expected(theta, token):
        p = 1.0 / (1.0 + np.exp(-theta))
        return p * float(values[1, token]) + (1 - p) * float(values[0, token])

    for token in (0, 1):
        got = jax.grad(surrogate)(theta, token)
        h, at = 1e-4, float(theta)
        slope = (expected(at + h, token) - expected(at - h, token)) / (2 * h)
        deviation = float(jnp.std(rewards[:, token]))
        np.testing.assert_allclose(got, slope / deviation, rtol=1e-4)


def test_ratios_are_clipped_where_that_lowers_the_gain():
    before = jnp.zeros((1, 1, 4))
    log_probs = jnp.log(jnp.array([[[2.0, 0.5, 2.0, 0.5]]]))
    advantages = jnp.array([[1.0, 1.0, -1.0, -1.0]])
    counted = jnp.ones((1, 1, 4), bool)
    loss, metrics = clipped_loss(log_probs, before, advantages, counted, 0.2)
    # min(2, 1.2), min(.5, .8), min(-2, -1.2), min(-.5, -.8)
    np.testing.assert_allclose(loss, -(1.2 + 0.5 - 2.0 - 0.8) / 4, rtol=1e-6)
    np.testing.assert_allclose(metrics["clipped_share"], 0.5)
    alone = clipped_loss(log_probs, before, advantages, counted.at[..., 1:].set(False), 0.2)[0]
    np.testing.assert_allclose(alone, -1.2, rtol=1e-6)
