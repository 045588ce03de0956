"""Self-conditioning: a denoiser with its own estimate as input, and its fixed point.

A self-conditioned denoiser D_t(y; c) takes an estimate c = delta @ E of the clean text besides the
state, 0 for none. Repeated calls at one state, c_0 = 0, c_k+1 = D_t(y; c_k) @ E, are a fixed-point
iteration (arXiv 2607.00714), whose K-th result is an ordinary denoiser of y and t.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import expected_embedding


def estimated(
    net: Network,
    params: Params,
    y_t: States,
    taus: tuple[Times, Times],
    estimate: States | None,
    visible: jax.Array | None = None,
) -> States:
    """Computes the next estimate, D_t(y; c) @ E [B, L, D], without gradient."""
    params, y_t = jax.lax.stop_gradient((params, y_t))
    out = forward(net, params, y_t, *taus, estimate=estimate, visible=visible)
    return jax.lax.stop_gradient(expected_embedding(out, net.table(params), net))


def fixed_point(net: Network, iterations: int) -> Network:
    """Returns the network of the last of `iterations` calls at each state; the first has c = 0.

    Gradients flow through the last call alone.

    Raises:
      UserError: iterations below 1, or a network that takes no estimate.
    """
    require(iterations >= 1, f"got iterations={iterations}; expected at least 1.")
    require(
        net.self_conditioned,
        f"got iterations={iterations} for a network without self-conditioning; expected one "
        "trained with config.model.self_conditioning = True.",
    )

    inner = dataclasses.replace(net, posterior_input=False)  # x_s is what its blocks read

    def features(params: Params, x_s, s: Times, t: Times, *, key=None, visible=None):
        def again(estimate, _):
            return estimated(inner, params, x_s, (s, t), estimate, visible), None

        none = jnp.zeros(x_s.shape, jnp.float32)
        estimate, _ = jax.lax.scan(again, none, length=iterations - 1)
        more = {} if visible is None else {"visible": visible}
        return net.features(params, x_s, s, t, key=key, estimate=estimate, **more)

    return dataclasses.replace(net, features=features, self_conditioned=False)
