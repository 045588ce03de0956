"""The sampler of uniform-state diffusion on an exact network: its law, tails, given tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.losses.uniform_diffusion import UniformDiffusionConfig
from flm_jax.samplers import uniform_diffusion
from flm_jax.samplers.base import Given, nothing_given
from helpers.laws import KEY, LAW, LENGTH, SEQUENCES, VOCAB, exact_uniform_network

EXACT = exact_uniform_network()


@functools.lru_cache
def compiled(steps, net, cfg, told=True):
    objective = UniformDiffusionConfig(time_conditioning=told)
    how = {"net": net, "steps": steps, "cfg": cfg, "objective": objective}
    return jax.jit(lambda given: uniform_diffusion.sample(KEY, {}, given, **how))


def drawn(given, steps, net=EXACT, told=True, **more):
    cfg = uniform_diffusion.UniformSamplerConfig(**more)
    return jax.device_get(compiled(steps, net, cfg, told)(given))


def shares(tokens):
    return np.array([(tokens == row).all(axis=1).mean() for row in SEQUENCES])


def marginals():
    found = np.zeros((LENGTH, VOCAB))
    for row, weight in zip(SEQUENCES, LAW):
        found[np.arange(LENGTH), row] += weight
    return found


def test_many_steps_draw_the_law_and_one_step_its_marginals():
    """TV below 0.04 of 4,000 samples in 64 steps; in one step each token has its marginal law."""
    out = drawn(nothing_given(4000, LENGTH), 64)
    assert out.calls is None and out.steps_tokens.shape == (64, 4000, LENGTH)
    np.testing.assert_array_equal(out.tokens, out.steps_tokens[-1])
    found = shares(out.tokens)
    assert (np.abs(found - LAW).sum() + 1 - found.sum()) / 2 < 0.04
    one = drawn(nothing_given(4000, LENGTH), 1)
    share = (one.tokens[..., None] == np.arange(VOCAB)).mean(axis=0)
    np.testing.assert_allclose(share, marginals(), atol=0.03)


def test_a_greedy_tail_is_the_most_probable_token_of_the_last_call():
    """In one call that of the marginals; in two, of the law given what the first step drew."""
    one = drawn(nothing_given(64, LENGTH), 1, tail="greedy")
    np.testing.assert_array_equal(one.tokens, np.tile(marginals().argmax(axis=1), (64, 1)))
    out = drawn(nothing_given(512, LENGTH), 2, tail="greedy")
    state = jax.nn.one_hot(jnp.asarray(out.steps_tokens[0]), VOCAB)
    told = jnp.full(512, 1.0 - 1e-5)
    want = np.asarray(EXACT.features({}, state, told, told)).argmax(axis=-1)
    np.testing.assert_array_equal(out.tokens, want)
    levels = np.asarray(uniform_diffusion.noise_levels(4, "greedy"))
    np.testing.assert_allclose(levels, [1.0, 2 / 3, 1 / 3, 1e-5, 0.0], atol=2e-5)
    assert uniform_diffusion.noise_levels(4, "ancestral")[-2] == 0.25


def test_given_tokens_are_held_and_conditioned_on():
    tokens = jnp.tile(jnp.asarray([[0, 0, 0, 2]]), (400, 1))
    mask = jnp.tile(jnp.asarray([[False, False, False, True]]), (400, 1))
    out = drawn(Given(tokens, mask), 64)
    assert (out.steps_tokens[..., 3] == 2).all() and (out.steps_confidence[..., 3] == 1).all()
    # Only [1, 0, 2, 2] ends so, which 12% of texts are. The network is told of noise that given
    # tokens do not have: early steps take them for less than they say, and that is not undone.
    assert (out.tokens == [1, 0, 2, 2]).all(axis=1).mean() > 0.3


def test_temperature_top_p_the_signal_and_rows_beyond_the_tokens():
    free = nothing_given(256, LENGTH)
    cold = drawn(free, 1, temperature=0.0)
    np.testing.assert_array_equal(cold.tokens, np.tile(marginals().argmax(axis=1), (256, 1)))
    narrow = drawn(nothing_given(256, LENGTH), 1, top_p=0.5)
    assert (narrow.tokens[:, 0] == 0).all(), "the first token is 0 with probability 0.65"

    def features(params, x, s, t, *, key=None, visible=None):
        later = jnp.stack([s < 0.4, s >= 0.4, s < 0.0], axis=-1).astype(jnp.float32)
        return jnp.broadcast_to(50.0 * later[:, None], (*x.shape[:2], VOCAB))

    net = dataclasses.replace(EXACT, features=features)
    assert (drawn(free, 2, net=net).tokens == 1).all()
    assert (drawn(free, 2, net=net, told=False).tokens == 0).all()
    wide = jnp.eye(VOCAB, VOCAB + 2)
    padded = dataclasses.replace(
        EXACT,
        readout=lambda params: (wide, jnp.full(VOCAB + 2, 9.0).at[:VOCAB].set(0.0)),
        table=lambda params: wide.T,
        vocab_size=VOCAB + 2,
        tokens=VOCAB,
    )
    assert drawn(free, 3, net=padded).steps_tokens.max() < VOCAB
