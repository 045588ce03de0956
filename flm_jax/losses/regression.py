"""Squared errors instead of the denoiser's cross entropy: the ablation of arXiv 2602.16813v3.

The meaning of the network's output is a setting (`denoising.PREDICTIONS`):

    probabilities   softmax of the logits, the denoiser as a point of the simplex
    denoiser        the output itself, a vector of R^V; the least-squares solution is the same D_t
    velocity        the output itself is b_t = E[x_1 - x_0 | x_t], and D_t = x_t + (1 - t) b_t

All have the same minimiser as a flow and differ in how well it is learnt. The last two hold
[B, L, V] in training and sampling.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Metrics, Params
from flm_jax.denoiser import tile_targets, tiled
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import Readout
from flm_jax.denoiser.tile_plan import plan_of
from flm_jax.flows.flow import Flow
from flm_jax.flows.noise import states_from_onehot
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, number_of, token_weights
from flm_jax.losses.denoising import DenoisingConfig
from flm_jax.losses.distillation.moving_target import squared


def squared_to_tokens(
    out: Readout, tokens: Int[Array, "b l"], weights: Float[Array, "b l"], net: Network
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Squared distance |softmax(logits) - onehot(x)|^2, computed tile by tile.

    Returns:
      Weighted sum, differentiable in `out`, and values [B, L] in [0, 2], without gradient.
    """
    plan = plan_of(net)
    fn, head = squared(tile_targets.token_target), (out.kernel, out.bias)
    return tiled.weighted_cross_entropy(plan, fn, out.features, head, weights, ((), (tokens,)))


def output(out: Readout) -> Float[Array, "b l v"]:
    """Output of the last layer itself, float32, without soft cap."""
    return tiled.head_logits(out.features, (out.kernel, out.bias), 0.0)


def regression_loss(
    params: Params,
    frozen: Frozen | None,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    flow: Flow,
    cfg: DenoisingConfig,
) -> tuple[jax.Array, Metrics]:
    """Squared distance, summed over the vocabulary, with tau low-discrepancy U(0, 1).

    The target is onehot(x), or for a velocity onehot(x) - eps.

    Args:
      params, frozen, batch, key, rows, net, flow, cfg: the same as for `denoising_loss`.

    Returns:
      Mean over valid tokens, and metrics {"squared_per_token"}, the same, and "counted".
    """
    del frozen  # no law of times is learnt by squared errors
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    tokens, table = batch["tokens"], net.table(params)
    tau = flow.draw_times(time_key, tokens.shape[0], rows)
    t, noise_key = flow.t(tau), rows.fold(noise_key)
    clean = jax.nn.one_hot(tokens, net.vocab_size, dtype=jnp.float32)
    if cfg.prediction == "velocity":
        eps = jax.random.normal(noise_key, clean.shape)
        (y_t,), target = states_from_onehot(flow.path, eps, t, tokens, table), clean - eps
    else:
        (y_t, _), target = flow.states(noise_key, t, tokens, table), clean
    out = forward(net, params, y_t, tau, tau, key=rows.fold(dropout_key))
    weights = token_weights(batch["mask"])
    if cfg.prediction == "probabilities":
        loss, _ = squared_to_tokens(out, tokens, weights, net)
    else:
        gap = output(out) - target
        if net.tokens:
            gap = jnp.where(tiled.standing(net.vocab_size, net.tokens), gap, 0.0)
        loss = jnp.sum(weights * jnp.sum(jnp.square(gap), axis=-1))
    return loss, {"squared_per_token": loss, "counted": number_of(batch["mask"])}
