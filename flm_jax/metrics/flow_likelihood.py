"""An upper bound on the negative log-likelihood of flows from noise, from their denoiser alone.

y_t = a E[x] + c xi, as the network sees it, is a Gaussian channel: with r = a/c and C C^T = Sigma,
C^-1 y_t / c is r C^-1 E[x] in white noise. The continuous-time bound of Gaussian diffusion (Kingma
et al., arXiv 2107.00630) for it is

    -log p(x) <= int_0^R r E|C^-1 (E[x] - E^T D(y_t))|^2 dr  +  E[-log D(y_{t(R)})[x]],

summed over positions, for every R and every denoiser D with values in the simplex; the prior term
is 0, as r = 0 is pure noise. By the I-MMSE relation (Guo, Shamai and Verdu 2005) the expectation
over the data is the entropy for the exact posterior mean as R grows: the bound is then tight. In
R^V the distance would be |onehot(x) - D|^2, of which this is the part in the columns of E.

The bound holds for the distribution of D as a diffusion, sampled with noise in many steps. The
probability flow and a flow map transport the same noise to data in other ways, with other
likelihoods, which coincide only for the exact D. For a flow map it uses the diagonal delta_tt.

The denoising cross entropy over the clock is no likelihood: it weights each position's own
posterior by the clock, while the bound weights its squared error by the growth of information.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import cross_entropy, expected_embedding
from flm_jax.flows.clocks import decoding_clock, tau_to_t
from flm_jax.flows.flow import ClockTold, Flow, GammaTold
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.losses.base import row_means

_END = 0.999  # of the clock: what is left after it is in the second term
_TINY = 1e-12


class Signal(NamedTuple):
    """Draws r = a/c for u ~ U(0, 1): r, and r dr/du, the weight of a squared distance."""

    at: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    first: float
    last: jax.Array


def _by_clock(net: Network, flow: Flow, told: ClockTold) -> Signal:
    """Signal r = u R: in nats per unit of r the integrand is largest where tokens get decodable.

    R is the end of the clock, since the network knows no later times, or the point where states are
    decodable, if that is earlier.
    """
    readable = Linear().odds(tau_to_t(decoding_clock(net.vocab_size, net.dim), jnp.float32(_END)))
    a, _, c = flow.path.coefficients(told.t(jnp.float32(_END)))
    r_end = jnp.minimum(a / c, readable)
    # dr/du = R.
    return Signal(lambda u: (u * r_end, r_end * (u * r_end)), 0.0, r_end)


def _by_gamma(told: GammaTold) -> Signal:
    """Signal with gamma = -2 log r uniform from the highest of the network to the lowest."""
    half = 0.5 * (told.high - told.low)

    def at(u: jax.Array) -> tuple[jax.Array, jax.Array]:
        r = jnp.exp(-0.5 * told.gamma(u))
        # r = e^(-gamma/2) with gamma linear in u: dr/du = half r.
        return r, half * jnp.square(r)

    first, last = (jnp.exp(-0.5 * gamma) for gamma in (told.high, told.low))
    return Signal(at, first, last)


def make_flow_bound(net: Network, flow: Flow) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """Returns row_nll(params, batch, tau, key), an unbiased estimate of the bound over tau.

    Here tau ~ U(0, 1). Positions outside of "visible" in the batch, [B, L], if present, do not
    belong to the row. tau determines r, see `Signal`. Standard errors of `likelihood` hold; there
    is no bias except that of the bound itself. It takes two network calls for each row.

    Args:
      net: network of a flow whose output is a softmax.
      flow: path, noise and time variable of the flow.
    """
    told = flow.told
    signal = _by_gamma(told) if isinstance(told, GammaTold) else _by_clock(net, flow, told)

    def at(params: Params, batch: dict[str, jax.Array], r: jax.Array, key: Key):
        t = flow.path.time_at(-2.0 * jnp.log(jnp.maximum(r, _TINY)))
        y_t, _ = flow.states(key, t, batch["tokens"], net.table(params))
        tau = flow.tau(t)
        return forward(net, params, y_t, tau, tau, visible=batch.get("visible"))

    def white(vectors: jax.Array, table: jax.Array) -> jax.Array:
        flat = flow.noise.whitened(vectors.reshape(-1, net.dim), table)
        return jnp.sum(jnp.square(flat), axis=1).reshape(vectors.shape[:2])

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        path_key, end_key = jax.random.split(key)
        mask, table = batch["mask"].astype(jnp.float32), net.table(params)
        clean, (r, weight) = table[batch["tokens"]], signal.at(tau)
        out = at(params, batch, r, path_key)
        gap = white(clean - expected_embedding(out, table, net), table)
        end = at(params, batch, jnp.full_like(r, signal.last), end_key)
        _, rest = cross_entropy(end, batch["tokens"], mask, net)
        # Up to the first r the denoiser 0 bounds the integral.
        nats = weight[:, None] * gap + 0.5 * signal.first**2 * white(clean, table) + rest
        return row_means(nats, mask)

    return row_nll
