"""Figures of alignment are sums over masked and unmasked positions."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.losses.alignment import AlignmentConfig
from flm_jax.metrics.alignment import compare_with_base, make_alignment_figures
from helpers.alignment import MASKED, NET, PARAMS, TOKENS


def test_figures_are_sums_over_masked_and_unmasked():
    figures = jax.jit(make_alignment_figures(NET, AlignmentConfig()))
    batch = {"tokens": TOKENS, "mask": jnp.ones((4, 6), bool), "prompt": ~MASKED}
    sums, counts = figures(PARAMS, batch, jax.random.key(0))
    both = "masked_squared_distance", "unmasked_squared_distance"
    assert sum(int(counts[name]) for name in both) == 12
    short = batch | {"mask": jnp.arange(6)[None] < jnp.full((4, 1), 5)}
    fewer = figures(PARAMS, short, jax.random.key(0))
    assert sum(int(fewer[1][name]) for name in both) == 8
    # What does not count is hidden all the same: the rest reads what it read.
    last = figures(PARAMS, batch | {"mask": short["mask"] ^ batch["mask"]}, jax.random.key(0))[0]
    for name in both:
        np.testing.assert_allclose(fewer[0][name] + last[name], sums[name], rtol=1e-4)
    found = compare_with_base(figures, PARAMS, PARAMS, [batch] * 2, jax.random.key(0))
    assert found["masked_nll_nats_per_token"] == found["base_masked_nll_nats_per_token"] > 1.0
    other = jax.tree.map(lambda x: 1.1 * x, PARAMS)
    found = compare_with_base(figures, PARAMS, other, [batch], jax.random.key(0))
    assert found["masked_nll_nats_per_token"] != found["base_masked_nll_nats_per_token"]
