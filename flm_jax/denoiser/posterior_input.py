"""Networks that read the posterior of each token in place of its noisy state."""

import dataclasses

import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Params, States, Times
from flm_jax.denoiser.head import Readout, expected_embedding
from flm_jax.flows.posterior import token_posterior


def posterior_embedding(net: Network, params: Params, y_s: States, tau: Times) -> States:
    """E^T p(. | y_s), float32: what each state says of its own token, read at network time tau."""
    table = net.table(params)
    found, kernel = token_posterior(y_s, net.interpolant_time(tau), table)
    # A kernel of D + 1 rows lies over the vocabulary's devices alone.
    parallel = net.parallel and dataclasses.replace(net.parallel, embed_axis=None)
    plain = dataclasses.replace(net, logit_softcap=0.0, parallel=parallel)
    return expected_embedding(Readout(found, kernel, jnp.zeros(net.vocab_size)), table, plain)
