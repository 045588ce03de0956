"""Networks that use the posterior of each token given its own noisy state: as input or output.

As input it replaces the state; as output its logits are added to the head's, the closed-form skip
connection of arXiv 2604.11748.
"""

import dataclasses

import jax.numpy as jnp

from flm_jax.core.network import Evidence, Network
from flm_jax.core.types import Params, States, Times
from flm_jax.denoiser.head import Readout, expected_embedding
from flm_jax.flows.flow import Flow
from flm_jax.flows.posterior import posterior_features, posterior_kernel


def with_posterior(net: Network, flow: Flow, *, read: bool, skip: bool, dtype: str) -> Network:
    """Adds the posterior of a flow to a network, as its input (`read`), in its output, or both.

    Args:
      net: network without it.
      flow: flow whose states it reads.
      read, skip: whether the posterior is its input, and part of its output.
      dtype: type in which the network computes. Posteriors are float32; in a 16-bit type their
        product with the table is one of 16-bit numbers, with float32 sums.
    """
    evidence = Evidence(
        features=lambda table, y, tau: posterior_features(flow, y, flow.t(tau), table),
        kernel=lambda table: posterior_kernel(flow, table),
        dtype=dtype,
    )
    parallel = net.parallel
    if skip and parallel:
        # A kernel of more than D rows lies over the vocabulary's devices alone.
        parallel = dataclasses.replace(parallel, embed_axis=None)
    more = {"posterior_input": read, "posterior_skip": skip, "parallel": parallel}
    return dataclasses.replace(net, evidence=evidence, **more)


def posterior_embedding(net: Network, params: Params, y_s: States, tau: Times) -> States:
    """Embedding E^T p(. | y_s) of each state's posterior at network time tau, float32."""
    table = net.table(params)
    found, kernel = net.evidence.features(table, y_s, tau), net.evidence.kernel(table)
    # A kernel of D + 1 rows lies over the vocabulary's devices alone.
    parallel = net.parallel and dataclasses.replace(net.parallel, embed_axis=None)
    plain = dataclasses.replace(net, logit_softcap=0.0, parallel=parallel)
    out = Readout(found, kernel, jnp.zeros(net.vocab_size))
    return expected_embedding(out, table.astype(net.evidence.dtype), plain)
