"""Samples of an exact chain follow it."""

import jax
import numpy as np

from flm_jax.samplers.autoregressive import sample_autoregressive
from flm_jax.samplers.base import nothing_given
from helpers.laws import CHAIN_FIRST, CHAIN_NEXT, KEY, PLAIN, VOCAB, exact_chain


def test_samples_of_the_exact_chain_follow_it():
    """Total variation over the 9 pairs of the first tokens at most 0.02 in 20,000 samples."""
    given = nothing_given(20_000, 2)
    draw = jax.jit(lambda: sample_autoregressive(KEY, exact_chain(), {}, given=given, choice=PLAIN))
    out = draw()
    share = np.zeros((VOCAB, VOCAB))
    np.add.at(share, tuple(np.asarray(out.tokens).T), 1 / 20_000)
    assert np.abs(share - CHAIN_FIRST[:, None] * CHAIN_NEXT).sum() / 2 < 0.02
    assert int(out.calls) == 2
