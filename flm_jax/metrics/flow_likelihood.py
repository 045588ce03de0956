"""An upper bound on the negative log-likelihood of one-hot flows, from their denoiser alone.

y_t = t E[x] + (1-t) E^T eps, as the network sees it, is a Gaussian channel: with r = t / (1-t) and
C C^T = E^T E, C^-1 y_t / (1-t) is r C^-1 E[x] in white noise. The continuous-time bound of Gaussian
diffusion (Kingma et al., arXiv 2107.00630) for it is

    -log p(x) <= int_0^R r E|C^-1 (E[x] - E^T D(y_t))|^2 dr  +  E[-log D(y_{t(R)})[x]],

summed over positions, for every R and every denoiser D with values in the simplex; the prior term
is 0, as r = 0 is pure noise. By the I-MMSE relation (Guo, Shamai and Verdu 2005) the expectation
over the data is the entropy for the exact posterior mean as R grows: the bound is then tight. In
R^V the distance would be |onehot(x) - D|^2, of which this is the part in the columns of E.

What it bounds is the law that D has as a diffusion, sampled with noise in many steps. The
probability flow and a flow map carry the same noise to data in other ways, with other likelihoods,
which coincide for the exact D alone. Of a flow map it uses the diagonal delta_tt.

The denoising cross entropy over the clock is no likelihood: it weighs each position's own posterior
by the clock, where this weighs its squared error by the growth of information.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout, cross_entropy, expected_embedding
from flm_jax.flows.clocks import Clock, decoding_clock, t_to_tau, tau_to_t
from flm_jax.flows.gaussian_noise import whitened
from flm_jax.flows.noising import noisy_states

_END = 0.999  # of the clock: what is left after it is in the second term


def make_flow_bound(net: Network, clock: Clock) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """row_nll(params, batch, tau, key): unbiased estimate of the bound, given tau ~ U(0, 1).

    r = tau R: in nats per unit of r the integrand is largest where tokens become readable, and
    small at both ends. Standard errors of `likelihood` hold; there is no bias but that of the
    bound itself. Two network calls a row.

    Args:
      net: a flow whose read-out is a softmax.
      clock: what its network is told. R is where it ends, as the network knows no later times, or
        where the states can be read, if that is sooner.
    """
    clocks = (clock, decoding_clock(net.vocab_size, net.dim))
    t_end = jnp.minimum(*(tau_to_t(c, jnp.float32(_END)) for c in clocks))
    r_end = t_end / (1.0 - t_end)

    def at(params: Params, batch: dict[str, jax.Array], r: jax.Array, key: Key):
        t = r / (1.0 + r)
        y_t, _ = noisy_states(key, t, batch["tokens"], net.table(params))
        tau = t_to_tau(clock, t)
        return forward(net, params, y_t, tau, tau)

    def missed(params: Params, out: Readout, tokens: jax.Array):
        table = net.table(params)
        gap = table[tokens] - expected_embedding(out, table, net)
        flat = whitened(gap.reshape(-1, net.dim), table)
        return jnp.sum(jnp.square(flat), axis=1).reshape(tokens.shape)

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        path_key, end_key = jax.random.split(key)
        mask = batch["mask"].astype(jnp.float32)
        r = tau * r_end
        gap = missed(params, at(params, batch, r, path_key), batch["tokens"])
        end = at(params, batch, jnp.full_like(r, r_end), end_key)
        _, rest = cross_entropy(end, batch["tokens"], mask, net)
        nats = (r_end * r)[:, None] * gap + rest
        count = jnp.sum(mask, axis=1)
        return jnp.sum(nats * mask, axis=1) / jnp.maximum(count, 1.0), count > 0

    return row_nll
