"""A network linear in its state, and the batch that it is asked about."""

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow

V, L, D, B = 7, 4, 5, 6
KEY = jax.random.key(3)
TOKENS = jax.random.randint(jax.random.key(1), (B, L), 0, V)
FLOW = onehot_flow(decoding_clock(V))


def linear_net(tile=0):
    """Features are the state and the time; a small head, enough to tell outputs apart."""
    kernel = jax.random.normal(jax.random.key(5), (D + 1, V))

    def features(params, x_s, s, t, *, key=None):
        del t, key
        time = jnp.broadcast_to(s[:, None, None], (*x_s.shape[:2], 1))
        return jnp.concatenate([x_s, time], axis=-1)

    return Network(
        init=lambda key: {"table": jax.random.normal(key, (V, D)), "kernel": kernel},
        features=features,
        readout=lambda params: (params["kernel"], jnp.linspace(-1.0, 1.0, V)),
        table=lambda params: params["table"],
        vocab_size=V,
        dim=D + 1,
        max_length=L,
        logit_softcap=3.0,
        loss_tile=tile,
    )


NET = linear_net()
PARAMS = NET.init(KEY)
