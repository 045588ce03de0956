"""Computes logits, probabilities, expected embeddings and cross entropies from features.

The readout is (kernel [D, V], bias [V]) with an optional soft cap on the logits. With
`net.loss_tile` or `net.parallel` set, the losses and the expected embedding never hold [B, L, V]
(see `tiled`); `read` never does; all other functions of this module do.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import States, Times
from flm_jax.denoiser import tile_targets, tiled
from flm_jax.denoiser.tile_plan import plan_of, sampling_tile
from flm_jax.flows.shapes import over_features


class Readout(NamedTuple):
    """Features [B, L, D] with their head: kernel [D, V], bias [V]."""

    features: jax.Array
    kernel: jax.Array
    bias: jax.Array


def tempered(net: Network, temperature: float) -> Network:
    """Returns the network with its logits divided by a temperature, soft cap included.

    Since (c tanh(h / c)) / T = (c / T) tanh((h / T) / (c / T)), head and cap are both divided by T.

    Args:
      net: network to change.
      temperature: temperature T > 0; 1 returns `net` itself.
    """
    if temperature == 1.0:
        return net

    def readout(params):
        kernel, bias = net.readout(params)
        return kernel / temperature, bias / temperature

    changes = {"readout": readout, "logit_softcap": net.logit_softcap / temperature}
    if net.posterior_skip:  # the evidence is a part of the logits
        whole = net.evidence.kernel
        changes["evidence"] = net.evidence._replace(kernel=lambda table: whole(table) / temperature)
    return dataclasses.replace(net, **changes)


def logits(out: Readout, net: Network) -> Float[Array, "b l v"]:
    """Float32 logits [B, L, V] with the soft cap of `net`: c * tanh(l / c)."""
    head = (out.kernel, out.bias)
    return tiled.head_logits(out.features, head, net.logit_softcap, net.tokens)


def read(out: Readout, net: Network, fn: Callable[..., Any], *rows: jax.Array) -> Any:
    """Applies a function to each position's logits, tile by tile: [B, L, V] is never held.

    Args:
      out: features [B, L, D] and head.
      net: network, for its soft cap and its tile, if it has one; see `sampling_tile`.
      fn: function from (logits [B, T, V], rows [B, T, ...]) to arrays [B, T, ...], position by
        position.
      rows: further arrays [B, L, ...] over the positions, passed to `fn`.

    Returns:
      The arrays of `fn`, [B, L, ...].
    """
    head = (out.kernel.astype(out.features.dtype), out.bias)

    def body(_, tile):
        features, *more = tile
        found = tiled.head_logits(features, head, net.logit_softcap, net.tokens)
        return None, fn(found, *more)

    size = sampling_tile(out.features.shape[0], out.kernel.shape[1], net.loss_tile)
    return tiled.over_tiles(body, None, (out.features, *rows), size)[1]


def embed_probs(probs: Float[Array, "b l v"], table: Float[Array, "v d"]) -> States:
    """Expected embedding probs @ E of distributions over tokens, float32.

    With a table of 16-bit numbers it is a product of those, with float32 sums.
    """
    if table.dtype.itemsize == 2:
        parts = probs.astype(table.dtype)
        # Divided by the sum of the rounded numbers, so that rounding moves no mass.
        mass = jnp.sum(parts.astype(jnp.float32), axis=-1, keepdims=True)
        return jnp.matmul(parts, table, preferred_element_type=jnp.float32) / mass
    return jnp.matmul(probs, table.astype(jnp.float32), precision=jax.lax.Precision.HIGH)


def token_nll(logits_BLV: jax.Array, tokens: Int[Array, "b l"]) -> Float[Array, "b l"]:
    """Negative log likelihood -log softmax(logits)[token] in nats."""
    picked = jnp.take_along_axis(logits_BLV, tokens[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits_BLV, axis=-1) - picked


def _plan(net: Network) -> tiled.Plan | None:
    """Plan of tiles that `net` requests; None to hold all logits at once."""
    require(net.loss_tile >= 0, f"loss_tile is {net.loss_tile}, expected 0 (all at once) or more.")
    if net.loss_tile == 0 and net.parallel is None:
        return None
    return plan_of(net)


def cross_entropy(
    out: Readout, tokens: Int[Array, "b l"], weights: Float[Array, "b l"], net: Network
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Weighted cross entropy to tokens.

    Args:
      out: features [B, L, D] and head.
      tokens: targets.
      weights: weight of each position in the sum, float32; 0 switches a position off.
      net: network, for its soft cap and tiles.

    Returns:
      sum(weights * nll), differentiable in `out` and `weights`; nll [B, L] in nats, without
      gradient. With tiles only reverse mode is supported: `jax.jvp` raises.
    """
    if plan := _plan(net):
        head, target = (out.kernel, out.bias), ((), (tokens,))
        fn = tile_targets.one_hot_target
        return tiled.weighted_cross_entropy(plan, fn, out.features, head, weights, target)
    nll = token_nll(logits(out, net), tokens)
    return jnp.sum(weights * nll), jax.lax.stop_gradient(nll)


def mixture_cross_entropy(
    out: Readout,
    targets: Sequence[tuple[Times, Readout]],
    weights: Float[Array, "b l"],
    net: Network,
    product: bool = False,
) -> tuple[jax.Array, Float[Array, "b l"]]:
    """Weighted cross entropy to a mixture sum_k w_k softmax(logits(out_k)) of other readouts.

    Args:
      out: features [B, L, D] and head of the student.
      targets: pairs (w_k [B] or [B, L], out_k); w_k sum to 1. No gradient flows into them.
      weights, net: the same as for `cross_entropy`; the soft cap is shared by all readouts.
      product: whether the target is the normalised product of softmax(logits(out_k))^w_k instead;
        weights may then be negative.

    Returns:
      sum(weights * ce), differentiable in `out` and `weights`; ce [B, L] in nats, without gradient.
      With tiles only reverse mode is supported: `jax.jvp` raises.
    """
    if plan := _plan(net):
        head = (out.kernel, out.bias)
        fn = tile_targets.product_target if product else tile_targets.mixture_target
        target = tile_targets.laid_out(targets, weights.shape)
        return tiled.weighted_cross_entropy(plan, fn, out.features, head, weights, target)
    log_probs = jax.nn.log_softmax(logits(out, net), axis=-1)
    if product:
        scores = sum(over_features(w) * logits(q, net) for w, q in targets)
        target = jax.nn.softmax(scores, axis=-1)
    else:
        target = sum(over_features(w) * probabilities(q, net) for w, q in targets)
    ce = -jnp.sum(jax.lax.stop_gradient(target) * log_probs, axis=-1)
    return jnp.sum(weights * ce), jax.lax.stop_gradient(ce)


def probabilities(out: Readout, net: Network) -> Float[Array, "b l v"]:
    """Probabilities softmax(logits), float32."""
    return jax.nn.softmax(logits(out, net), axis=-1)


def summary(
    out: Readout, table: Float[Array, "v d"], net: Network
) -> tuple[States, tuple[Int[Array, "b l"], Float[Array, "b l"]]]:
    """Expected embedding and most probable token of softmax(logits), which samplers need.

    Args:
      out: features [B, L, D] and head.
      table: embedding table E; of 16-bit numbers, it makes probs @ E a product of those.
      net: network, for its soft cap and tiles.

    Returns:
      E[x] = probs @ E, float32 [B, L, D], differentiable in both modes; and (tokens, confidence),
      each [B, L]: the most probable token and its probability, without gradient.
    """
    if plan := _plan(net):
        return tiled.summary(plan, out.features, (out.kernel, out.bias), table)
    values = logits(out, net)
    probs = jax.nn.softmax(values, axis=-1)
    confidence = jax.lax.stop_gradient(jnp.max(probs, axis=-1))
    return embed_probs(probs, table), (jnp.argmax(values, -1).astype(jnp.int32), confidence)


def expected_embedding(out: Readout, table: Float[Array, "v d"], net: Network) -> States:
    """Expected embedding of softmax(logits), the first part of `summary`."""
    return summary(out, table, net)[0]
