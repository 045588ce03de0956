"""Samplers of masked diffusion on an exact network: laws, calls, blocks, given tokens."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flm_jax.samplers import masked_diffusion
from flm_jax.samplers.base import Given, nothing_given
from flm_jax.samplers.windows import BlocksConfig
from helpers.laws import EXACT, KEY, LAW, LENGTH, PLAIN, SEQUENCES, VOCAB


def variation(tokens):
    """Total variation of samples from LAW."""
    tokens = np.asarray(tokens)
    share = [(tokens == row).all(axis=1).mean() for row in SEQUENCES]
    return (np.abs(share - LAW).sum() + 1 - sum(share)) / 2


def masked_draw(
    given, steps, method=masked_diffusion.sample_ancestral, choice=PLAIN, net=EXACT, **more
):
    how = {"steps": steps, "given": given, "choice": choice, "time_conditioning": False}
    if method is masked_diffusion.sample_confident:
        how["blocks"] = BlocksConfig()
    run = lambda: method(KEY, net, {}, **how | more)
    return jax.device_get(jax.jit(run)())


def test_ancestral_samples_of_the_exact_denoiser():
    """Many steps draw the law (TV below 0.03 of 4,000 samples); one step draws the marginals."""
    free = nothing_given(4000, LENGTH)
    assert variation(masked_draw(free, 256).tokens) < 0.03
    one = masked_draw(free, 1)
    marginals = np.zeros(len(LAW))
    for i, row in enumerate(SEQUENCES):
        marginals[i] = np.prod([LAW[SEQUENCES[:, j] == row[j]].sum() for j in range(LENGTH)])
    share = [(one.tokens == row).all(axis=1).mean() for row in SEQUENCES]
    np.testing.assert_allclose(share, marginals, atol=0.03)
    assert one.calls == 1


def test_steps_that_reveal_nothing_make_no_call():
    """A row of 4 tokens takes at most 4 calls however many steps; many rows take them all."""
    alone = masked_draw(nothing_given(1, LENGTH), 64)
    assert 1 <= alone.calls <= LENGTH
    assert masked_draw(nothing_given(512, LENGTH), 16).calls == 16
    done = Given(jnp.asarray(SEQUENCES), jnp.ones(SEQUENCES.shape, bool))
    held = masked_draw(done, 4)
    assert held.calls == 0
    np.testing.assert_array_equal(held.tokens, SEQUENCES)


def test_confident_samples_reveal_the_same_number_each_step():
    free = nothing_given(512, LENGTH)
    out = masked_draw(free, LENGTH, masked_diffusion.sample_confident)
    valid = [(out.tokens == row).all(axis=1) for row in SEQUENCES]
    assert np.any(valid, axis=0).all(), "one token a step, exact posterior: always valid"
    known = (out.steps_confidence == 1.0).sum(axis=2)
    assert (np.diff(known, axis=0) >= 1).all() or out.calls == LENGTH
    two = masked_draw(free, 2, masked_diffusion.sample_confident)
    assert two.calls == 2


def test_blocks_are_written_in_turn():
    """With blocks of 2 and 2 steps, the first call settles the first block alone."""
    free = nothing_given(256, LENGTH)
    out = masked_draw(free, 2, masked_diffusion.sample_confident, blocks=BlocksConfig(2))
    np.testing.assert_array_equal(out.steps_tokens[1][:, :2], out.steps_tokens[0][:, :2])
    assert (out.steps_tokens[1][:, 2:] != out.steps_tokens[0][:, 2:]).any()
    np.testing.assert_array_equal(out.steps_confidence[1][:, :2], 1.0)
    np.testing.assert_array_equal(out.tokens, out.steps_tokens[1])
    three = masked_draw(free, 3, masked_diffusion.sample_confident, blocks=BlocksConfig(2))
    whole = [(three.steps_confidence[k][:, :2] == 1.0).all() for k in range(3)]
    assert whole == [False, False, True] and three.calls == 3  # two calls, then one


@pytest.mark.parametrize(
    "method", [masked_diffusion.sample_ancestral, masked_diffusion.sample_confident]
)
def test_given_tokens_are_held_and_conditioned_on(method):
    """Last token 2: of LAW only [1, 0, 2, 2] ends so, and the prefix must follow from it."""
    tokens = jnp.tile(jnp.asarray([[0, 0, 0, 2]]), (200, 1))
    mask = jnp.tile(jnp.asarray([[False, False, False, True]]), (200, 1))
    out = masked_draw(Given(tokens, mask), 2, method)
    np.testing.assert_array_equal(out.tokens, np.tile([1, 0, 2, 2], (200, 1)))
    assert (out.steps_tokens[:, :, 3] == 2).all()
    # Held, not only likely: also where the network would write something else there.
    flat = dataclasses.replace(EXACT, logit_softcap=1e-3)
    out = masked_draw(Given(tokens, mask), 2, method, net=flat)
    assert (out.tokens[:, 3] == 2).all() and (out.steps_tokens[:, :, 3] == 2).all()
    assert len(np.unique(out.tokens[:, :3])) == VOCAB


def test_the_progress_is_told_where_it_was_trained():
    """A network that writes 1 from progress 0.5 on and 0 before: the second of two steps."""

    def features(params, x_s, s, t, *, key=None):
        del params, t, key
        later = 50.0 * jnp.stack([s < 0.5, s >= 0.5, s < 0.0], axis=-1).astype(jnp.float32)
        return jnp.broadcast_to(later[:, None], (*x_s.shape[:2], VOCAB))

    net = dataclasses.replace(EXACT, features=features)

    @functools.partial(jax.jit, static_argnums=0)
    def draw(conditioned):
        options = dict(steps=2, given=nothing_given(64, LENGTH), choice=PLAIN)
        return masked_diffusion.sample_ancestral(
            KEY, net, {}, time_conditioning=conditioned, **options
        )

    assert (draw(False).tokens == 0).all()
    told = draw(True)
    seen = told.steps_confidence == 1.0
    assert 0.4 < float(told.tokens.mean()) < 0.6 and seen.any()
