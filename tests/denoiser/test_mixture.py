"""Weighted sums of read-outs are formed and drawn from by tiles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.denoiser.head import Readout, probabilities
from flm_jax.denoiser.mixture import Part, mixture
from flm_jax.samplers.categorical import Choice, choose
from helpers.networks import KEY, tiny_network


def test_read_outs_are_summed_and_drawn_by_tiles():
    """Tiles of 4 of 6 positions: the same tokens, and the same sum with a negative weight."""
    net, params = tiny_network(False)
    tiled = dataclasses.replace(net, loss_tile=4)
    head = net.readout(params)
    first, second = (Readout(x, *head) for x in jax.random.normal(KEY, (2, 3, 6, 8)))
    pick = jax.vmap(
        lambda at, x: choose(jax.random.fold_in(KEY, at), x, Choice(1.0, 1.0)),
        in_axes=(0, 1),
        out_axes=1,
    )

    @jax.jit
    def both():
        return [
            mixture([Part(1.5, first, own), Part(-0.5, second, own)], params["table"], pick)
            for own in (net, tiled)
        ]

    (mean, seen), (tiled_mean, tiled_seen) = both()
    np.testing.assert_array_equal(seen[0], tiled_seen[0])
    want = 1.5 * probabilities(first, net) - 0.5 * probabilities(second, net)
    for got in (mean, tiled_mean):
        np.testing.assert_allclose(got, want @ params["table"], rtol=0, atol=1e-4)
    share = jnp.maximum(want, 0.0) / jnp.maximum(want, 0.0).sum(-1, keepdims=True)
    picked = jnp.take_along_axis(share, seen[0][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(seen[1], picked, rtol=1e-3)
    assert (seen[0] != jnp.argmax(want, axis=-1)).any()
