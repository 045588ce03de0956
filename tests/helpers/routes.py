"""A smooth two-time network with pairs of times, and a law of two sequences."""

import jax.numpy as jnp
import numpy as np

from flm_jax.core.network import Network
from flm_jax.losses.distillation.base import Pairs

FIRST = jnp.asarray([0, 1, 1])  # the other sequence is 1 - FIRST
SIGN = jnp.where(jnp.arange(2)[None] == FIRST[:, None], 1.0, -1.0)  # x^1 - x^2, [L, V]


# A smooth two-time network of float64 states, for finite differences.
B, L, D, V = 3, 4, 5, 7


def smooth_network(vocab=V, dim=D, cap=3.0):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape))
    params = {"mix": draw(dim, dim), "s": draw(dim), "t": draw(dim), "pos": 0.3 * draw(L, L)}
    params |= {"kernel": draw(dim, vocab), "bias": draw(vocab), "table": draw(vocab, dim)}

    def features(p, y, s, t, *, key=None):
        s, t = s.astype(p["s"].dtype), t.astype(p["t"].dtype)
        times = jnp.sin(3 * s)[:, None] * p["s"][None] + (t**2)[:, None] * p["t"][None]
        y = y + jnp.einsum("lm,bmd->bld", p["pos"], jnp.tanh(y))
        return jnp.tanh(jnp.einsum("bld,de->ble", y, p["mix"]) * (1 + times[:, None]))

    net = Network(
        lambda key: params,
        features,
        lambda p: (p["kernel"], p["bias"]),
        lambda p: p["table"],
        vocab,
        dim,
        L,
        logit_softcap=cap,
        two_time=True,
    )
    return net, params


def random_pairs(flow, rows=B, length=L, dim=D, dtype=jnp.float32):
    rng = np.random.default_rng(2)
    tau = np.sort(rng.random((2, rows)), axis=0).astype(np.float32)
    s, t = (flow.t(jnp.asarray(x)) for x in tau)
    y = jnp.asarray(rng.standard_normal((rows, length, dim)), dtype)
    weights = jnp.full((rows, length), 1 / (rows * length))
    return Pairs((y, y), jnp.asarray(tau[0]), jnp.asarray(tau[1]), s, t, weights)
