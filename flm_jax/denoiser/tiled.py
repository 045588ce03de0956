"""Vocabulary-sized work in tiles of positions, on one device or over a mesh.

Logits [positions, V] exist for one tile only. Tiles are [B, tile, ...] slices along L: B is split
over the devices, so each tile holds rows of every device. Over a mesh (`Parallel`) the tile loops
run on local rows and local columns of the vocabulary; arrays with a V axis never leave their
device, except for one sum of the head's gradient over the batch axes after the loop.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from flm_jax.denoiser.logit_gradients import OneHot, logit_gradients, safely_capped
from flm_jax.denoiser.tile_plan import Plan, check_shapes, specs

Head = tuple[jax.Array, jax.Array]
_ALIGNED, _LARGE = 128, 4096
NONE = -1e9  # a logit of no probability; its square is finite in float32
# (heads, rows): heads of the target's own readouts and its [B, L, ...] arrays.
Target = tuple[tuple[Head, ...], tuple[jax.Array, ...]]


def head_logits(
    features: jax.Array,
    head: Head,
    softcap: float,
    columns: int = 0,
    vocab_axes: tuple[str, ...] = (),
) -> jax.Array:
    """Float32 logits [B, L, V], multiplied in the features' type, capped as c * tanh(l / c).

    If `columns` is not 0, columns beyond the first `columns` of the full vocabulary have no
    probability.
    """
    kernel, bias = head
    raw = jnp.matmul(features, kernel.astype(features.dtype), preferred_element_type=jnp.float32)
    raw = raw + bias[None, None]
    logits = softcap * jnp.tanh(raw / softcap) if softcap else raw
    if not columns:
        return logits
    return jnp.where(standing(kernel.shape[1], columns, vocab_axes), logits, NONE)


def standing(width: int, columns: int, vocab_axes: tuple[str, ...] = ()) -> jax.Array:
    """Mask of this device's columns that are among the first `columns` of all, [1, 1, width]."""
    index = jax.lax.broadcasted_iota(jnp.int32, (1, 1, width), 2)
    first = jax.lax.axis_index(vocab_axes) * width if vocab_axes else 0
    return index + first < columns


def planned_logits(features: jax.Array, head: Head, plan: Plan) -> jax.Array:
    """`head_logits` of this device's columns."""
    return head_logits(features, head, plan.softcap, plan.columns, plan.vocab_axes)


def _aligned(plan: Plan, dtype: jnp.dtype, heads: list[Head]) -> tuple[Plan, list[Head]]:
    """Pads heads by columns to a multiple of _ALIGNED, with a plan that records it.

    It is done for products of a 16-bit `dtype`. They are fast if rows begin at multiples of 16
    bytes; otherwise the compiler would copy the logits' gradients, [B, tile, V], for that in every
    tile. It is not done where the vocabulary is split over devices: then its size is chosen to
    divide.
    """
    size = heads[0][0].shape[1]
    extra = -size % _ALIGNED
    if not extra or size < _LARGE or plan.vocab_axes or dtype.itemsize != 2:
        return plan, heads
    wide = [(jnp.pad(k, ((0, 0), (0, extra))), jnp.pad(b, (0, extra))) for k, b in heads]
    return dataclasses.replace(plan, columns=plan.columns or size), wide


def _psum(x: Any, axes: tuple[str, ...]) -> Any:
    return jax.lax.psum(x, axes) if axes else x


def _vary(x: Any, axes: tuple[str, ...]) -> Any:
    """Marks x as differing between devices, so that sums over `axes` stay out of the tile loop."""
    return jax.lax.pcast(x, axes, to="varying") if axes else x


def _scatter(d_kernel: jax.Array, plan: Plan) -> jax.Array:
    """Sums [D, V] over the batch axes; each device keeps its shard of the head."""
    axis = plan.parallel and plan.parallel.embed_axis
    if not axis:
        return _psum(d_kernel, plan.batch_axes)
    part = jax.lax.psum_scatter(d_kernel, axis, scatter_dimension=0, tiled=True)
    return _psum(part, tuple(a for a in plan.batch_axes if a != axis))


def total(x: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Sum over the full vocabulary, [..., 1], from this device's columns."""
    return _psum(jnp.sum(x, axis=-1, keepdims=True), axes)


def _high(logits: jax.Array, vocab_axes: tuple[str, ...], softcap: float) -> jax.Array | float:
    """Value to subtract from all logits before exp: the cap, else the largest, without gradient."""
    if safely_capped(softcap):
        return softcap
    high = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    return jax.lax.pmax(high, vocab_axes) if vocab_axes else high


def log_partition(
    logits: jax.Array, vocab_axes: tuple[str, ...], softcap: float = 0.0
) -> jax.Array:
    """Computes logsumexp over the full vocabulary, [B, T, 1], from this device's columns.

    Args:
      logits: logits [B, T, V].
      vocab_axes: mesh axes over which V is split.
      softcap: soft cap of the logits, which spares a pass to find the largest; 0 for unknown.
    """
    high = _high(logits, vocab_axes, softcap)
    return high + jnp.log(total(jnp.exp(logits - high), vocab_axes))


def over_tiles(body: Callable, carry: Any, rows: Any, tile: int) -> tuple[Any, Any]:
    """Scans `body` over tiles of positions.

    Args:
      body: function from (carry, rows of one tile [B, tile, ...]) to (carry, outputs [B, tile,
        ...]).
      carry: sums to accumulate.
      rows: arrays [B, L, ...]; a last, shorter tile is filled with zeros.
      tile: number of positions in a tile; 0 for all L.

    Returns:
      The final carry and the outputs [B, L, ...].
    """
    length = jax.tree.leaves(rows)[0].shape[1]
    tile = min(tile, length) or length
    count = -(-length // tile)

    def split(x):
        # Filled rows have weight 0 too, so that they add nothing to the sums of losses.
        fill = [(0, 0), (0, count * tile - length)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, fill).reshape(x.shape[0], count, tile, *x.shape[2:])
        return jnp.moveaxis(x, 1, 0)

    def join(x):
        x = jnp.moveaxis(x, 0, 1)
        return x.reshape(x.shape[0], count * tile, *x.shape[3:])[:, :length]

    carry, outputs = jax.lax.scan(body, carry, jax.tree.map(split, rows))
    return carry, jax.tree.map(join, outputs)


# (logits, log_z, target, plan) -> (q, this device's part of the cross entropy [B, T]).
TargetFn = Callable[[jax.Array, jax.Array, Target, Plan], tuple[jax.Array | OneHot, jax.Array]]


def _values(plan: Plan, target_fn: TargetFn, features, head, weights, target):
    """Computes sum(weights * ce) and ce [B, L] on local rows and columns."""

    def body(_, rows):
        h, rest = rows
        logits = planned_logits(h, head, plan)
        log_z = log_partition(logits, plan.vocab_axes, plan.softcap)
        return None, target_fn(logits, log_z, (target[0], rest), plan)[1]

    _, ce = over_tiles(body, None, (features, target[1]), plan.tile)
    ce = _psum(ce, plan.vocab_axes)
    return _psum(jnp.sum(weights * ce), plan.batch_axes), ce


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _products(h: jax.Array, ones: jax.Array, dlogits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gradients [D, V] and [V] of a head, from rows [B, T, D], [B, T, 1] and [B, T, V]."""
    bias = _product("bl,blv->v", ones[..., 0], dlogits)
    return _product("bld,blv->dv", h, dlogits), bias


def _joined_products(
    h: jax.Array, ones: jax.Array, dlogits: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The same by one product: a CPU takes a product of one row by one core, without blocks."""
    both = _product("bld,blv->dv", jnp.concatenate([h, ones], axis=-1), dlogits)
    return both[:-1], both[-1]


def _values_and_gradients(plan: Plan, target_fn: TargetFn, features, head, weights, target):
    """Computes `_values` and the gradients of the sum in features and head, in one pass."""
    dtype, (kernel, bias) = features.dtype, head

    def body(sums, rows):
        h, w, rest = rows
        logits = planned_logits(h, head, plan)
        log_z = log_partition(logits, plan.vocab_axes, plan.softcap)
        q, ce = target_fn(logits, log_z, (target[0], rest), plan)
        dlogits, factor = logit_gradients(logits, log_z, q, w, plan, dtype == jnp.float32)
        dlogits = dlogits.astype(dtype)
        scaled = (lambda x: x) if factor is None else (lambda x: x * factor)
        d_h = scaled(_product("blv,dv->bld", dlogits, kernel))
        # A product with ones: jnp.sum here costs the CPU 1.4 times the whole pass.
        ones = scaled(jnp.ones((*w.shape, 1), dtype))
        d_kernel, d_bias = jax.lax.platform_dependent(
            scaled(h), ones, dlogits, cpu=_joined_products, default=_products
        )
        return (sums[0] + d_kernel, sums[1] + d_bias), (ce, d_h)

    zeros = (jnp.zeros(kernel.shape, jnp.float32), jnp.zeros(bias.shape, jnp.float32))
    zeros = _vary(zeros, plan.batch_axes + plan.vocab_axes)
    sums, (ce, d_features) = over_tiles(body, zeros, (features, weights, target[1]), plan.tile)
    ce, d_features = _psum((ce, d_features), plan.vocab_axes)
    d_head = (_scatter(sums[0], plan), _psum(sums[1], plan.batch_axes))
    loss = _psum(jnp.sum(weights * ce), plan.batch_axes)
    return (loss, ce), (d_features.astype(dtype), d_head)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def weighted_cross_entropy(
    plan: Plan,
    target_fn: TargetFn,
    features: jax.Array,
    head: Head,
    weights: jax.Array,
    target: Target,
) -> tuple[jax.Array, jax.Array]:
    """Computes sum(weights * ce), and ce [B, L] (nats) to `target_fn` of `target`, by tiles.

    The weights are known beforehand, so that the forward rule completes the gradients of each tile
    (three products of its size in total, as without tiles) and keeps those alone: [B, L, D] in the
    features' type, [D, V] and [V] in float32. The backward rule scales them.

    Returns:
      The sum, differentiable in features, head and weights; ce without gradient. No gradient flows
      to the target. Only reverse mode is supported: `jax.jvp` raises.
    """
    return _run(_values, plan, target_fn, features, head, weights, target)


def _run(local: Callable, plan: Plan, target_fn: TargetFn, features, head, weights, target):
    """Runs `local` (`_values` or `_values_and_gradients`) here, or on every device of the mesh."""
    # Cast here, before any gathering of kernels, and once for all tiles.
    # Rows of targets with heads alternate, (weight, features, ...): odd entries are features.
    heads = [(k.astype(h.dtype), b) for (k, b), h in zip(target[0], target[1][1::2])]
    head = (head[0].astype(features.dtype), head[1])
    width = head[0].shape[1]
    plan, (head, *heads) = _aligned(plan, features.dtype, [head, *heads])
    args = (features, head, weights, (tuple(heads), target[1]))
    fn = functools.partial(local, plan, target_fn)
    if plan.parallel is None:
        return _narrowed(fn(*args), width)
    check_shapes(plan.parallel, features, head[0])
    rows, columns = specs(plan)
    outputs = (PartitionSpec(), rows)
    if local is _values_and_gradients:
        scattered = PartitionSpec(plan.parallel.embed_axis, plan.vocab_axes)
        outputs = (outputs, (rows, (scattered, columns[1])))
    inputs = (rows, columns, rows, (tuple(columns for _ in heads), rows))
    run = jax.shard_map(fn, mesh=plan.parallel.mesh, in_specs=inputs, out_specs=outputs)
    return _narrowed(run(*args), width)


def _narrowed(result: Any, width: int) -> Any:
    """Removes the columns of `_aligned` from the head's gradient in a result of `_run`, if any."""
    loss, rest = result
    if not isinstance(rest, tuple):
        return result
    d_features, (d_kernel, d_bias) = rest
    return loss, (d_features, (d_kernel[:, :width], d_bias[:width]))


def _forward(plan, target_fn, features, head, weights, target):
    result, grads = _run(_values_and_gradients, plan, target_fn, features, head, weights, target)
    # Zero-sized, for the types of the cotangents.
    kinds = tuple(jnp.zeros((0,), x.dtype) for x in (*head, weights))
    return result, (*grads, result[1], kinds)


def _backward(plan, target_fn, saved, cotangents):
    g = cotangents[0]
    d_features, (d_kernel, d_bias), ce, kinds = saved
    scaled = (g * d_kernel, g * d_bias, g * ce)
    d_kernel, d_bias, d_weights = (x.astype(kind.dtype) for x, kind in zip(scaled, kinds))
    d_features = (g * d_features.astype(jnp.float32)).astype(d_features.dtype)
    return d_features, (d_kernel, d_bias), d_weights, None


weighted_cross_entropy.defvjp(_forward, _backward)


def _best(logits: jax.Array, vocab_axes: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    """Largest logit of the full vocabulary and its first column, each [B, T]."""
    high = jnp.max(logits, axis=-1)
    index = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    if not vocab_axes:
        return high, index
    whole = jax.lax.pmax(high, vocab_axes)
    index = index + jax.lax.axis_index(vocab_axes) * logits.shape[-1]
    # Of devices that share the largest logit, the one with the first column counts.
    none = jnp.iinfo(jnp.int32).max
    return whole, jax.lax.pmin(jnp.where(high == whole, index, none), vocab_axes)


_MEAN = "mean"  # of a tile, [B, T, D]: kept for the backward pass, which needs it
_KEPT = jax.checkpoint_policies.save_only_these_names(_MEAN)


def summary(
    plan: Plan, features: jax.Array, head: Head, table: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Computes softmax(logits) @ table and the most probable token, tile by tile.

    Returns:
      The mean, float32 [B, L, D], from a product of 16-bit numbers if the features or the table are
      of such a type, differentiable in both modes (reverse mode recomputes the logits of a tile
      instead of keeping them); and, without gradient, (tokens int32, their probabilities float32),
      each [B, L]. Of equal logits the first column counts.
    """

    def local(features, head, table):
        head, table = _vary((head, table), plan.batch_axes)
        features = _vary(features, plan.vocab_axes)

        @functools.partial(jax.checkpoint, prevent_cse=False, policy=_KEPT)
        def body(_, h):
            logits = planned_logits(h, head, plan)
            high = _high(logits, plan.vocab_axes, plan.softcap)
            # Divided by the sum after the product, which passes once less over [B, T, V]; by the
            # sum of the rounded numbers, so that rounding moves no mass.
            parts = jnp.exp(logits - high).astype(table.dtype)
            mass = total(parts.astype(jnp.float32), plan.vocab_axes)
            mean = jnp.matmul(parts, table, precision=exact, preferred_element_type=jnp.float32)
            mean = checkpoint_name(mean, _MEAN)
            best, tokens = _best(jax.lax.stop_gradient(logits), plan.vocab_axes)
            sure = jnp.exp(best[..., None] - high) / jax.lax.stop_gradient(mass)
            return None, (mean / mass, tokens, jax.lax.stop_gradient(sure)[..., 0])

        mean, tokens, confidence = over_tiles(body, None, features, plan.tile)[1]
        return _psum(mean, plan.vocab_axes), (tokens, confidence)

    # A network of 16-bit numbers reads its states, and so the table, in those alone.
    narrow = next((x.dtype for x in (features, table) if x.dtype.itemsize == 2), None)
    exact = None if narrow else jax.lax.Precision.HIGH
    table = table.astype(narrow or jnp.float32)
    head = (head[0].astype(features.dtype), head[1])
    plan, (head,) = _aligned(plan, table.dtype, [head])
    table = jnp.pad(table, ((0, head[0].shape[1] - table.shape[0]), (0, 0)))
    if plan.parallel is None:
        return local(features, head, table)
    check_shapes(plan.parallel, features, head[0])
    rows, columns = specs(plan)
    inputs, out = (rows, columns, PartitionSpec(plan.vocab_axes)), (rows, (rows, rows))
    fn = jax.shard_map(local, mesh=plan.parallel.mesh, in_specs=inputs, out_specs=out)
    return fn(features, head, table)


def probability_rate(
    features: jax.Array, tangent: jax.Array, head: Head, plan: Plan
) -> tuple[jax.Array, jax.Array]:
    """Computes softmax(logits) and its derivative [B, T, V] along a tangent of the features."""
    logits = planned_logits(features, head, plan)
    rate = head_logits(tangent, (head[0], jnp.zeros_like(head[1])), 0.0)
    if plan.softcap:
        rate = rate * (1.0 - jnp.square(logits / plan.softcap))
    probs = jnp.exp(logits - log_partition(logits, plan.vocab_axes, plan.softcap))
    # d softmax_i = p_i (d l_i - <p, d l>).
    return probs, probs * (rate - total(probs * rate, plan.vocab_axes))


def squared_rate(plan: Plan, features: jax.Array, tangent: jax.Array, head: Head) -> jax.Array:
    """Squared norm [B, L] of the derivative of softmax(logits) along a tangent, tile by tile.

    The result is differentiable in features, tangent and head; reverse mode recomputes each tile.
    """

    def local(features, tangent, head):
        head = _vary(head, plan.batch_axes)
        features, tangent = _vary((features, tangent), plan.vocab_axes)

        @functools.partial(jax.checkpoint, prevent_cse=False)
        def body(_, rows):
            rate = probability_rate(*rows, head, plan)[1]
            return None, jnp.sum(jnp.square(rate), axis=-1)

        return _psum(over_tiles(body, None, (features, tangent), plan.tile)[1], plan.vocab_axes)

    if plan.parallel is None:
        return local(features, tangent, head)
    check_shapes(plan.parallel, features, head[0])
    rows, columns = specs(plan)
    fn = jax.shard_map(
        local, mesh=plan.parallel.mesh, in_specs=(rows, rows, columns), out_specs=rows
    )
    return fn(features, tangent, head)
