"""One position of four tokens with known shares: its exact flow, and a small network to train."""

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import onehot_flow
from flm_jax.flows.posterior import posterior_features, posterior_kernel

SIZE, TABLE = 4, jax.random.normal(jax.random.key(2), (4, 3))
SHARES = jnp.asarray([0.5, 0.3, 0.15, 0.05])
FLOW = onehot_flow(decoding_clock(SIZE))


def exact_flow():
    """D_t of one position with the law SHARES, in closed form."""
    features = lambda p, y, s, t, *, key=None: posterior_features(FLOW, y, FLOW.t(s), TABLE)
    readout = lambda p: (posterior_kernel(FLOW, TABLE), jnp.log(SHARES))
    return Network(lambda key: {}, features, readout, lambda p: TABLE, SIZE, 3, 1)


def learner(width=48):
    """Two hidden layers over state and both times."""

    def init(key):
        keys = jax.random.split(key, 3)
        draw = lambda k, n, m: jax.random.normal(k, (n, m)) / n**0.5
        hidden = {"one": draw(keys[0], 6, width), "two": draw(keys[1], width, width)}
        return hidden | {"out": draw(keys[2], width, SIZE), "bias": jnp.zeros(SIZE)}

    def features(p, y, s, t, *, key=None):
        del key
        s, t = (jnp.broadcast_to(x[:, None, None], (*y.shape[:2], 1)) for x in (s, t))
        h = jnp.concatenate([y, s, t, jnp.ones_like(s)], axis=-1)
        return jnp.tanh(jnp.tanh(h @ p["one"]) @ p["two"])

    readout = lambda p: (p["out"], p["bias"])
    return Network(init, features, readout, lambda p: TABLE, SIZE, 3, 1, two_time=True)
