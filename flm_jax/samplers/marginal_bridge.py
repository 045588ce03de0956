"""Marginal-conditioned bridges: steps towards tokens drawn from the flow's own probabilities.

Source: arXiv 2605.13681. Euler's step moves the state towards D, the mean of the tokens that the
network holds possible. Here each step draws a token x for each position from the network's
probabilities, then draws the next state from the bridge that is pinned at the present state and at
E[x] (`Interpolant.bridge_weights`). Temperature and top-p act on these draws in every step.

With the exact denoiser of one position, y_s and x are a draw of the true pair, so that y_t has its
true distribution: the tokens are samples of the data's marginal after any number of steps. Of
several positions each step draws the tokens independently given y_s; its error is their
multi-information given y_s, which falls as s grows and steps get shorter.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.settings import setting
from flm_jax.core.types import Key, States
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import Samples
from flm_jax.samplers.categorical import Choice
from flm_jax.samplers.euler import step_key
from flm_jax.samplers.guidance import GREEDY, Denoiser
from flm_jax.samplers.steering import IteratedConfig
from flm_jax.samplers.watching import show

ENDS = ("drawn", "mean")


@dataclasses.dataclass(frozen=True)
class MarginalBridgeConfig(IteratedConfig):
    """Bridges to drawn tokens, on a grid uniform in the quantiles of times; one call a step."""

    temperature: float = setting(
        1.0,
        "Temperature at which the tokens of every step are drawn, the last included; 0 for the "
        "most probable ones.",
        range="[0, inf)",
    )
    end: str = setting(
        "drawn",
        "End of the bridge of a step: drawn (tokens drawn from the network's probabilities) or "
        "mean (the mean of their embeddings, which is stochastic Euler; tokens are drawn at the "
        "last step alone).",
        choices=ENDS,
    )
    bridge_noise: bool = setting(
        True,
        "Whether the Gaussian noise of the bridge is added; else each step takes the bridge's "
        "mean.",
    )


def bridge_steps(
    key: Key,
    xi: States,
    denoiser: Denoiser,
    *,
    flow: Flow,
    steps: int,
    choice: Choice,
    end: str,
    bridge_noise: bool,
) -> Samples:
    """Transports the noise xi to data in `steps` steps on the grid of the flow's times.

    Args:
      key: key of drawn tokens, of the noise of the bridges and of dropout.
      xi: noise [B, L, W] of the first state.
      denoiser: denoiser of one time, plain or guided.
      flow: path and times.
      steps: number K >= 1 of evaluations of the denoiser; static.
      choice: rule by which tokens are drawn.
      end, bridge_noise: settings, see `MarginalBridgeConfig`.

    Returns:
      Samples with the tokens of every step; the last step's are the result.
    """
    taus = flow.grid(steps)
    times = flow.t(taus)
    early = choice if end == "drawn" else GREEDY

    def ask(y_s, k, tau, s, choice):
        draw_key, noise_key = jax.random.split(step_key(key, k))
        return noise_key, denoiser.ask(xi, y_s, s, (tau, tau), draw_key, choice)

    def step(y_s, now):
        k, tau, s, t = now
        noise_key, (y_s, mean, seen) = ask(y_s, k, tau, s, early)
        pinned = denoiser.table[seen[0]] if end == "drawn" else mean
        noise = denoiser.noise(noise_key) if bridge_noise else None
        ends = (jnp.full(y_s.shape[0], time) for time in (s, t))
        y_t = flow.path.bridge(y_s, pinned, *ends, anchor=denoiser.anchor, noise=noise)
        return show(k, seen[0], y_t), seen

    grid = (jnp.arange(steps - 1), taus[:-2], times[:-2], times[1:-1])
    y, seen = jax.lax.scan(step, denoiser.start(xi), grid)
    _, (_, _, last) = ask(y, jnp.asarray(steps - 1), taus[-2], times[-2], choice)
    tokens, confidence = (jnp.concatenate([a, b[None]]) for a, b in zip(seen, last))
    return Samples(last[0], tokens, confidence)
