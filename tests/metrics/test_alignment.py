"""Figures of alignment are sums over masked and unmasked positions."""

import jax
import jax.numpy as jnp

from flm_jax.losses.alignment import AlignmentConfig
from flm_jax.metrics.alignment import compare_with_base, make_alignment_figures
from helpers.alignment import MASKED, NET, PARAMS, TOKENS


def test_figures_are_sums_over_masked_and_unmasked():
    figures = jax.jit(make_alignment_figures(NET, AlignmentConfig()))
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool), "prompt": ~MASKED}
    sums, counts = figures(PARAMS, batch, jax.random.key(0))
    both = "masked_squared_distance", "unmasked_squared_distance"
    assert sum(int(counts[name]) for name in both) == 12
    found = compare_with_base(figures, PARAMS, PARAMS, [batch] * 2, jax.random.key(0))
    assert found["masked_nll_nats_per_token"] == found["base_masked_nll_nats_per_token"] > 1.0
    other = jax.tree.map(lambda x: 1.1 * x, PARAMS)
    found = compare_with_base(figures, PARAMS, other, [batch], jax.random.key(0))
    assert found["masked_nll_nats_per_token"] != found["base_masked_nll_nats_per_token"]
