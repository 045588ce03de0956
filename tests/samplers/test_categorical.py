"""Tokens from logits: temperature, top-p, rare tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.core.errors import UserError
from flm_jax.denoiser.head import logits
from flm_jax.samplers.categorical import Choice, choose, choose_at, gumbel, keep_top
from helpers.heads import B, L, head_network, readout
from helpers.laws import KEY, PLAIN


def test_top_p_keeps_the_smallest_sufficient_set():
    probs = jnp.asarray([0.1, 0.4, 0.2, 0.3])
    for top_p, want in ((0.05, [1]), (0.4, [1]), (0.41, [1, 3]), (0.69, [1, 3]), (0.95, range(4))):
        kept = np.isfinite(keep_top(jnp.log(probs), top_p))
        assert np.flatnonzero(kept).tolist() == sorted(want), top_p
    even = np.isfinite(keep_top(jnp.zeros((2, 4)), 0.5))
    np.testing.assert_array_equal(even, [[True, True, False, False]] * 2)
    # Many equal ones, against their order; 9 of 40 values, so that ties stand at every edge.
    values = np.random.default_rng(0).integers(0, 9, (50, 40)) / 4.0
    order = np.argsort(-values, axis=1, kind="stable")
    probs = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    sums = np.cumsum(np.take_along_axis(probs, order, axis=1), axis=1)
    for row, number in enumerate((sums < 0.8).sum(1) + 1):
        kept = np.flatnonzero(np.isfinite(keep_top(jnp.asarray(values[row]), 0.8)))
        assert set(kept) == set(order[row, :number])


def test_temperature_and_top_p_shape_the_draws():
    """Frequencies of 50,000 draws within 0.01 of softmax(logits / T), inside the nucleus."""
    probs = jnp.asarray([0.1, 0.4, 0.2, 0.3])
    many = jnp.broadcast_to(jnp.log(probs), (50_000, 4))
    share = lambda choice: np.bincount(choose(KEY, many, choice)[0], minlength=4) / 50_000
    np.testing.assert_allclose(share(PLAIN), probs, atol=0.01)
    np.testing.assert_allclose(share(Choice(0.5, 1.0)), probs**2 / jnp.sum(probs**2), atol=0.01)
    np.testing.assert_allclose(share(Choice(1.0, 0.6)), [0, 4 / 7, 0, 3 / 7], atol=0.01)
    tokens, confidence = choose(KEY, many, Choice(0.5, 1.0))
    np.testing.assert_allclose(confidence, probs[tokens], rtol=1e-5)


def test_temperature_to_zero_is_greedy():
    values = jax.random.normal(KEY, (64, 11))
    for temperature in (0.0, 1e-300, 1e-40, 1e-36, 1e-20, 1e-4):
        tokens = choose(KEY, values, Choice(temperature, 1.0))[0]
        np.testing.assert_array_equal(tokens, jnp.argmax(values, axis=-1))
    assert (choose(KEY, values, PLAIN)[0] != jnp.argmax(values, axis=-1)).any()


def test_rare_tokens_are_drawn_as_often_as_they_should():
    """8,192 tokens e^-14 as probable as the other: within 4 standard deviations in 8 M chances."""
    count, draws = 8192, 1024
    values = jnp.concatenate([jnp.zeros((1,)), jnp.full((count,), -14.0)])
    tokens = choose(KEY, jnp.broadcast_to(values, (draws, count + 1)), PLAIN)[0]
    share = count / (count + np.exp(14.0))
    assert abs(int((tokens > 0).sum()) - draws * share) < 4 * np.sqrt(draws * share)


def test_the_noise_is_fine_where_it_is_large():
    """The largest 1,000 of 4 M are distinct: of 23 bits, many equal others."""
    noise = np.sort(np.asarray(gumbel(KEY, (1 << 22,))))
    assert len(np.unique(noise[-1000:])) > 990
    np.testing.assert_allclose(noise.mean(), np.euler_gamma, atol=0.003)
    coarse = np.sort(np.asarray(jax.random.gumbel(KEY, (1 << 22,), mode="low")))
    assert len(np.unique(coarse[-1000:])) < 850


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"temperature": -1.0}, "temperature is -1.0; expected 0"),
        ({"top_p": 0.0}, "top_p is 0.0; expected a share"),
        ({"top_p": 1.5}, "top_p is 1.5; expected a share"),
    ],
)
def test_bad_choices_are_refused(choice, message):
    with pytest.raises(UserError, match=message):
        Choice(**({"temperature": 1.0, "top_p": 1.0} | choice))


def test_draws_of_a_position_do_not_depend_on_what_else_is_read():
    """Tile by tile, or of some places of a row alone: the same tokens and probabilities."""
    net = head_network(logit_softcap=5.0)
    out, places = readout(0), jnp.tile(jnp.arange(L)[None], (B, 1))
    choice = Choice(1.0, 0.9)
    run = lambda net, out, places: jax.jit(lambda: choose_at(KEY, out, net, places, choice))()
    whole = run(net, out, places)
    tiled = run(dataclasses.replace(net, loss_tile=2), out, places)
    part = run(net, out._replace(features=out.features[:, 1:4]), places[:, 1:4])
    for want, again, some in zip(whole, tiled, part):
        np.testing.assert_allclose(again, want, rtol=1e-6)
        np.testing.assert_allclose(some, want[:, 1:4], rtol=1e-6)
    best, sure = choose_at(KEY, out, net, places, Choice(0.0, 1.0))
    probs = jax.nn.softmax(logits(out, net), axis=-1)
    np.testing.assert_array_equal(best, jnp.argmax(probs, axis=-1))
    np.testing.assert_allclose(sure, probs.max(axis=-1), rtol=1e-5)
    assert (whole[0] != best).any()
