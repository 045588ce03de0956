"""Next-token cross entropy of a causal transformer: its exact negative log-likelihood."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.network import Network
from flm_jax.core.types import Key, Metrics, Params
from flm_jax.denoiser.forward import forward
from flm_jax.denoiser.head import cross_entropy
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, number_of, token_weights


@dataclasses.dataclass(frozen=True)
class AutoregressiveConfig:
    """Settings of the objective; there are none."""


def next_token_loss(
    params: Params,
    tokens: Int[Array, "b l"],
    weights: Float[Array, "b l"],
    *,
    net: Network,
    key: Key | None = None,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Negative log-likelihood -log p(x_l | x_<l), including the first token.

    Returns:
      Weighted sum (nats) and the value of each token [B, L] (nats, no gradient).
    """
    zeros = jnp.zeros(tokens.shape[0])
    out = forward(net, params, net.table(params)[tokens], zeros, zeros, key=key)
    return cross_entropy(out, tokens, weights, net)


def autoregressive_loss(
    params: Params,
    frozen: Frozen | None,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
) -> tuple[jax.Array, Metrics]:
    """Mean of `next_token_loss` over valid tokens.

    Args:
      params: parameters of a causal network.
      frozen: not used.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid.
      key: key for dropout.
      rows: indices of these rows in the global batch.
      net: causal network, whose features at position l see the tokens before l alone.

    Returns:
      nats/token, and metrics {"nll_nats_per_token", "counted"}.
    """
    del frozen
    weights = token_weights(batch["mask"])
    loss, _ = next_token_loss(params, batch["tokens"], weights, net=net, key=rows.fold(key))
    return loss, {"nll_nats_per_token": loss, "counted": number_of(batch["mask"])}
