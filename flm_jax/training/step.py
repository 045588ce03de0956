"""Train state and the pure train step: accumulate, clip, update, average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flm_jax.checkpoints.state import TrainState
from flm_jax.core.types import Key, Metrics, Tracker
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, Objective
from flm_jax.training.optim import update_ema


def step_key(seed: int, step: jax.Array) -> Key:
    """The key of one training step: a function of seed and step alone, so none is saved."""
    return jax.random.fold_in(jax.random.key(seed), step)


def _accumulated(gradients: Callable, state: TrainState, frozen: Frozen, batch, key, parts: int):
    """Gradients, metrics and observed sums over `parts` interleaved parts of the batch.

    Part m takes rows m, m + M, ...: on every device as many rows of each part. A part counts by
    its number of positions ("counted" in its metrics), so that the result is the mean over the
    positions of the whole batch.
    """
    rows = batch["tokens"].shape[0]
    size = rows // parts
    split = jax.tree.map(lambda x: x.reshape(size, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def one(start, part):
        (_, metrics), grads = gradients(state.params, frozen, part, key, Rows(start, rows))
        metrics, number, observed = _read(metrics)
        return jax.tree.map(lambda x: x * number, (grads, metrics)), number, observed

    starts = jnp.arange(parts) * size
    shapes = jax.eval_shape(one, starts[0], jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def accumulate(total, item):
        return jax.tree.map(jnp.add, total, one(*item)), None

    (sums, number, observed), _ = jax.lax.scan(accumulate, zeros, (starts, split))
    # A batch in which nothing counts has no gradient.
    grads, metrics = jax.tree.map(lambda x: x / jnp.maximum(number, 1.0), sums)
    return grads, metrics, observed


def _read(metrics: Metrics) -> tuple[Metrics, jax.Array, Any]:
    """(metrics proper, number of positions that count, sums for a tracker or None)."""
    proper = dict(metrics)
    number = proper.pop("counted", jnp.ones(()))
    return proper, number, proper.pop("observed", None)


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    microbatches: int,
    ema_decay: float,
    tracker: Tracker | None = None,
) -> Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """train_step(state, teacher, batch) -> (state, metrics), to be jitted with `state` donated.

    `teacher` holds its parameters, or is {}.

    A non-finite loss or gradient leaves parameters, moments, average and statistics as they were;
    the step still counts, and `skipped` counts such steps in a row.
    """

    gradients = jax.value_and_grad(objective, has_aux=True)

    def train_step(state: TrainState, teacher, batch):
        key = step_key(seed, state.step)
        frozen = Frozen(teacher, state.ema_params, state.tracked)
        if microbatches == 1:
            rows = Rows(0, batch["tokens"].shape[0])
            (_, metrics), grads = gradients(state.params, frozen, batch, key, rows)
            metrics, _, observed = _read(metrics)
        else:
            found = _accumulated(gradients, state, frozen, batch, key, microbatches)
            grads, metrics, observed = found
        tracked = state.tracked
        if tracker:
            tracked = tracker.update(tracked, observed, state.step)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.all(
            jnp.stack([jnp.isfinite(m) for m in metrics.values()])
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema_params = update_ema(state.ema_params, params, ema_decay, state.step)
        new = (params, ema_params, opt_state, tracked)
        old = (state.params, state.ema_params, state.opt_state, state.tracked)
        *kept, tracked = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)
        skipped = jnp.where(finite, 0, state.skipped + 1)
        return (
            TrainState(state.step + 1, *kept, skipped, tracked),
            metrics | {"grad_norm": norm, "skipped_in_a_row": skipped},
        )

    return train_step
