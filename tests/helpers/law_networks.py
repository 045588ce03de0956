"""Exact denoisers of small laws of sequences, on any path with Gaussian noise."""

import jax
import jax.numpy as jnp
import numpy as np

from flm_jax.core.network import Network
from flm_jax.flows.clocks import identity_clock
from flm_jax.flows.flow import ClockTold, Flow, Uniform
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.noise import OneHotNoise

LATEST = 0.99  # of what the networks are told: a clean token leaves no doubt there either


def law_flow(path, noise):
    """A flow on a path whose time is told as it is."""
    return Flow(path, noise, Uniform(), ClockTold(identity_clock()))


LINEAR = law_flow(Linear(), OneHotNoise())


def law_network(sequences, probs, table, flow, any_order=False):
    """The denoiser of some sequences [N, L] with probabilities [N], in embeddings [V, D]."""
    size = table.shape[0]
    onehot = jax.nn.one_hot(jnp.asarray(sequences), size)
    sigma = table.T @ table if isinstance(flow.noise, OneHotNoise) else np.eye(table.shape[1])
    pulled = jnp.asarray(np.linalg.solve(sigma, table.T))  # Sigma^-1 E^T, [D, V]
    half = 0.5 * jnp.einsum("vd,dv->v", jnp.asarray(table), pulled)[None, None]

    def features(params, y, s, t, *, key=None):
        del params, t, key
        s = s if s.ndim == 2 else s[:, None]
        a, _, c = flow.path.coefficients(flow.t(jnp.minimum(s, LATEST)))
        gain, square = (x[..., None] for x in (a / c**2, (a / c) ** 2))
        scores = jnp.einsum("blv,nlv->bn", gain * (y @ pulled) - square * half, onehot)
        after = jax.nn.softmax(scores + jnp.log(jnp.asarray(probs))[None], axis=-1)
        return jnp.log(jnp.einsum("bn,nlv->blv", after, onehot) + 1e-30)

    return Network(
        init=lambda key: {},
        features=features,
        readout=lambda params: (jnp.eye(size), jnp.zeros(size)),
        table=lambda params: jnp.asarray(table),
        vocab_size=size,
        dim=table.shape[1],
        max_length=len(sequences[0]),
        any_order=any_order,
    )
