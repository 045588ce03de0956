"""An upper bound on the negative log-likelihood of one-hot flows, from their denoiser alone.

x_t = t onehot(x) + (1-t) eps is a Gaussian channel of signal-to-noise ratio r^2, r = t / (1-t). The
continuous-time bound of Gaussian diffusion (Kingma et al., arXiv 2107.00630) for it is

    -log p(x) <= int_0^R r E|onehot(x) - D(x_t)|^2 dr  +  E[-log D(x_{t(R)})[x]],

summed over positions, for every R and every denoiser D with values in the simplex; the prior term
is 0, as r = 0 is pure noise. By the I-MMSE relation (Guo, Shamai and Verdu 2005) the expectation
over the data is the entropy for the exact posterior mean as R grows: the bound is then tight.

What it bounds is the law that D has as a diffusion, sampled with noise in many steps. The
probability flow and a flow map carry the same noise to data in other ways, with other likelihoods,
which coincide for the exact D alone. Of a flow map it uses the diagonal delta_tt.

The denoising cross entropy over the clock is no likelihood: it weighs each position's own posterior
by the clock, where this weighs its squared error by the growth of information.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from flm_jax.flows.clocks import Clock, decoding_clock, t_to_tau, tau_to_t
from flm_jax.flows.readout import cross_entropy, read
from flm_jax.flows.states import noisy_states
from flm_jax.losses.regression import squared_to_tokens
from flm_jax.types import Key, Network, Params

_END = 0.999  # of the decoding-error clock: what is left after it is in the second term


def make_flow_bound(net: Network, clock: Clock) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """row_nll(params, batch, tau, key): unbiased estimate of the bound, given tau ~ U(0, 1).

    r = tau R: in nats per unit of r the integrand is largest where tokens become readable, and
    small at both ends. Standard errors of `likelihood` hold; there is no bias but that of the
    bound itself. Two network calls a row.

    Args:
      net: a flow whose read-out is a softmax.
      clock: what its network is told.
    """
    t_end = tau_to_t(decoding_clock(net.vocab_size), jnp.float32(_END))
    r_end = t_end / (1.0 - t_end)

    def at(params: Params, batch: dict[str, jax.Array], r: jax.Array, key: Key):
        t = r / (1.0 + r)
        y_t, _ = noisy_states(key, t, batch["tokens"], net.table(params))
        tau = t_to_tau(clock, t)
        return read(net, params, y_t, tau, tau)

    def row_nll(params: Params, batch: dict[str, jax.Array], tau: jax.Array, key: Key):
        path_key, end_key = jax.random.split(key)
        mask = batch["mask"].astype(jnp.float32)
        r = tau * r_end
        _, gap = squared_to_tokens(at(params, batch, r, path_key), batch["tokens"], mask, net)
        end = at(params, batch, jnp.full_like(r, r_end), end_key)
        _, rest = cross_entropy(end, batch["tokens"], mask, net)
        nats = (r_end * r)[:, None] * gap + rest
        count = jnp.sum(mask, axis=1)
        return jnp.sum(nats * mask, axis=1) / jnp.maximum(count, 1.0), count > 0

    return row_nll
