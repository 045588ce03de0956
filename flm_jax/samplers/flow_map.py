"""Samplers of the one-hot flow: flow-map jumps and Euler steps, both linear in (state, delta).

Source: arXiv 2602.16813v3. From time s to t,  y <- w_y y + w_delta (probs @ E)  with
w_delta = (t-s)/(1-s): one Euler step of the ODE and one flow-map jump X_st have the same weights.
They differ only in the target time the network is told: t for a flow map, s for a denoiser.
"""

import jax
import jax.numpy as jnp

from flm_jax.flows.clocks import Clock, tau_to_t
from flm_jax.flows.flow_map import flow_map
from flm_jax.samplers.common import Given, Samples, call, clock_grid, start
from flm_jax.types import Key, Network, Params, States


def sample_from(
    y_0: States, net: Network, params: Params, *, clock: Clock, steps: int, given: Given
) -> Samples:
    """Carries the noise y_0 to data in `steps` network calls on a grid uniform in tau.

    Args:
      y_0: embedded noise [B, L, D].
      net: a two-time network takes flow-map jumps, a one-time network Euler steps.
      clock: tau(t) of the vocabulary.
      steps: K >= 1, network calls; static.
      given: prescribed tokens.

    Returns:
      Samples. The last step returns delta itself (X_{s,1} = delta_{s,1}).
    """
    taus = clock_grid(steps)
    times = tau_to_t(clock, taus)

    def step(y_s, now):
        tau_s, tau_t, s, t = now
        target = tau_t if net.two_time else tau_s
        y_s, delta, seen = call(net, params, y_s, s, (tau_s, target), given, y_0)
        return flow_map(y_s, delta, jnp.full(y_s.shape[0], s), jnp.full(y_s.shape[0], t)), seen

    grid = jnp.stack([taus[:-1], taus[1:], times[:-1], times[1:]], axis=1)
    y_s, early = jax.lax.scan(step, y_0, grid[:-1])
    # Alone, so that the compiler drops delta @ E of the last call, which nothing reads.
    _, last = step(y_s, grid[-1])
    tokens, confidence = (jnp.concatenate([a, b[None]]) for a, b in zip(early, last))
    return Samples(last[0], tokens, confidence)


def sample(
    key: Key, net: Network, params: Params, *, clock: Clock, steps: int, given: Given
) -> Samples:
    """Draws noise and carries it to data; see `sample_from`."""
    return sample_from(
        start(key, net, params, given), net, params, clock=clock, steps=steps, given=given
    )
