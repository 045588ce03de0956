"""FLM training: cross entropy of the denoiser (arXiv 2602.16813v3)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params, States, Times
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import cross_entropy
from flm_jax.denoiser.self_conditioning import estimated
from flm_jax.flows.flow import Flow
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, number_of, row_means, token_weights
from flm_jax.losses.clean_context import at_clean, clean_context, counted
from flm_jax.losses.flow_settings import WeightedSettings
from flm_jax.losses.time_weighting import time_weights

PREDICTIONS = ("probabilities", "denoiser", "velocity")


@dataclasses.dataclass(frozen=True)
class DenoisingConfig(WeightedSettings):
    """Settings of denoising; predictions and squared errors are defined in `losses.regression`."""

    prediction: str = setting(
        "probabilities",
        "Meaning of the network's output: probabilities (its softmax), denoiser or velocity "
        "(the output itself, a vector in R^V).",
        choices=PREDICTIONS,
    )
    form: str = setting(
        "default",
        "Loss: ce (cross entropy) or mse (squared error); default is ce for probabilities, "
        "else mse.",
        choices=("default", "ce", "mse"),
    )


def denoising_loss_at(
    params: Params,
    y_t: States,
    tau: Times,
    tokens: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    key: Key | None = None,
    estimate: States | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """CE(x, delta_tt(y_t)) at given states and network times.

    Args:
      estimate: estimate of the clean text, for self-conditioned networks.

    Returns:
      Weighted sum (nats) and the cross entropy per token [B, L] (nats, no gradient).
    """
    out = forward(net, params, y_t, tau, tau, key=key, estimate=estimate)
    return cross_entropy(out, tokens, weights, net)


def _half_estimated(net: Network, params: Params, y_t: States, tau: Times) -> States:
    """Estimates of every second row, from a call without an estimate; zeros for the others."""
    # Every second row rather than the first half: stratified times rise along the rows (up to
    # their cyclic shift), so a half of neighbours would hold half of the range; every second row
    # is itself a stratified draw, of strata twice as wide.
    first = lambda x: x.reshape(-1, 2, *x.shape[1:])[:, 0]
    found = estimated(net, params, first(y_t), (first(tau), first(tau)), None)
    return jnp.stack([found, jnp.zeros_like(found)], axis=1).reshape(y_t.shape)


def denoising_loss(
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
    """CE(x, delta_tt(y_t)) with tau drawn from the flow's times, low-discrepancy over the batch.

    The noisy positions of a row share one time; positions of a clean context have time 1. The input
    of a self-conditioned network has its own estimate in every second row, and none in the others.

    Args:
      params: network parameters; gradients reach the embedding through clean data and noise.
      frozen: state of learnt times.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid.
      key: key for times, noise and dropout.
      rows: indices of these rows in the global batch.
      net, flow: denoiser, and the flow for which it is trained.

    Returns:
      Mean over valid tokens that are not clean, nats/token, weighted over times if the network has
      such weights; and metrics {"nll_nats_per_token"}, the mean itself, and "counted".
    """
    flow = flow if frozen is None else flow.settled(frozen.tracked)
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    tokens = batch["tokens"]
    tau = flow.draw_times(time_key, tokens.shape[0], rows)
    noise_key, dropout_key = rows.fold(noise_key), rows.fold(dropout_key)
    # `key` was split above; clean_context folds a constant into it, which makes a fourth key.
    clean = clean_context(key, batch, cfg.clean, rows)
    mask = counted(batch["mask"], clean)
    weights = token_weights(mask)
    scaled, penalty = time_weights(net, params, weights, tau, tau)
    drawn = tau
    tau, t = at_clean(clean, tau, flow.t(tau))
    y_t, _ = flow.states(noise_key, t, tokens, net.table(params))
    estimate = _half_estimated(net, params, y_t, tau) if net.self_conditioned else None
    loss, nll = denoising_loss_at(
        params, y_t, tau, tokens, scaled, net=net, key=dropout_key, estimate=estimate
    )
    metrics = {"nll_nats_per_token": jnp.sum(weights * nll), "counted": number_of(mask)}
    seen, number = row_means(nll, mask)
    observed = flow.times.observe(drawn, seen, (number > 0).astype(jnp.float32))
    return loss + penalty, metrics if observed is None else metrics | {"observed": observed}
