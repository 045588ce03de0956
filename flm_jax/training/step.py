"""Train state and the pure train step: accumulate, clip, update, average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flm_jax.checkpoints.state import TrainState
from flm_jax.core.types import Key, Metrics
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Frozen, Objective, Tracker
from flm_jax.training.optim import update_ema


def step_key(seed: int, step: jax.Array) -> Key:
    """The key of one training step: a function of seed and step alone, so none is saved."""
    return jax.random.fold_in(jax.random.key(seed), step)


def _gradients(objective: Objective, params, frozen, batch, key, microbatches: int):
    """Mean gradient and metrics over `microbatches` interleaved parts of the batch."""
    rows = batch["tokens"].shape[0]

    def one(start, part):
        value_and_grad = jax.value_and_grad(objective, has_aux=True)
        (_, metrics), grads = value_and_grad(params, frozen, part, key, Rows(start, rows))
        return grads, metrics

    if microbatches == 1:
        return one(0, batch)
    size = rows // microbatches
    # Part m takes rows m, m + M, ...: on every device as many rows of each part.
    parts = jax.tree.map(
        lambda x: x.reshape(size, microbatches, *x.shape[1:]).swapaxes(0, 1), batch
    )
    starts = jnp.arange(microbatches) * size
    shapes = jax.eval_shape(one, starts[0], jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def accumulate(total, item):
        return jax.tree.map(jnp.add, total, one(*item)), None

    total, _ = jax.lax.scan(accumulate, zeros, (starts, parts))
    return jax.tree.map(lambda x: x / microbatches, total)


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

    def train_step(state: TrainState, teacher, batch):
        key = step_key(seed, state.step)
        frozen = Frozen(teacher, state.ema_params, state.tracked)
        grads, metrics = _gradients(objective, state.params, frozen, batch, key, microbatches)
        tracked = state.tracked
        if tracker:
            metrics = dict(metrics)
            # `_gradients` gives the mean over microbatches; sums are wanted.
            observed = jax.tree.map(lambda x: x * microbatches, metrics.pop("observed"))
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
