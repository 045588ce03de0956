"""FLM training: cross entropy of the denoiser (arXiv 2602.16813v3)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from flm_jax.flows.clocks import Clock, tau_to_t
from flm_jax.flows.readout import cross_entropy, read
from flm_jax.flows.states import NoiseKind, noisy_states
from flm_jax.flows.times import Rows, stratified_uniform
from flm_jax.types import Key, Metrics, Network, Params, States, Times


@dataclasses.dataclass(frozen=True)
class DenoisingConfig:
    """noise: how eps is drawn, "projected" or "onehot"."""

    noise: NoiseKind = "projected"


def token_weights(mask: Shaped[Array, "b l"]) -> Float[Array, "b l"]:
    """Weights of the mean over valid positions: mask / sum(mask), float32."""
    mask = mask.astype(jnp.float32)
    return mask / jnp.maximum(jnp.sum(mask), 1.0)


def denoising_loss_at(
    params: Params,
    y_t: States,
    tau: Times,
    tokens: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """CE(x, delta_tt(y_t)) at given states and clock times.

    Returns:
      Weighted sum (nats) and the cross entropy per token [B, L] (nats, no gradient).
    """
    out = read(net, params, y_t, tau, tau, key=key)
    return cross_entropy(out, tokens, weights, net)


def denoising_loss(
    params: Params,
    batch: dict[str, jax.Array],
    key: Key,
    *,
    net: Network,
    clock: Clock,
    cfg: DenoisingConfig,
    rows: Rows,
) -> tuple[jax.Array, Metrics]:
    """CE(x, delta_tt(y_t)) with tau low-discrepancy U(0, 1) over the global batch.

    Args:
      params: network parameters; gradients reach the embedding through clean data and noise.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid.
      key: for times, noise and dropout.
      net, clock: the denoiser and tau(t) of its vocabulary.
      rows: which rows of the global batch these are.

    Returns:
      Mean over valid tokens, nats/token, and metrics {"nll_nats_per_token"}.
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    tokens = batch["tokens"]
    tau = stratified_uniform(time_key, tokens.shape[0], rows)
    noise_key, dropout_key = rows.fold(noise_key), rows.fold(dropout_key)
    y_t, _ = noisy_states(
        noise_key, tau_to_t(clock, tau), tokens, net.table(params), noise=cfg.noise
    )
    weights = token_weights(batch["mask"])
    loss, _ = denoising_loss_at(params, y_t, tau, tokens, weights, net=net, key=dropout_key)
    return loss, {"nll_nats_per_token": loss}
