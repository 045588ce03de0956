"""The pure train step: accumulates, clips, updates and averages, also for a companion network."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flm_jax.checkpoints.state import AuxiliaryState, TrainState
from flm_jax.core.types import Key, Metrics, Params, Tracker
from flm_jax.flows.time_sampling import Rows
from flm_jax.losses.base import Auxiliary, Frozen, Objective, Renewal
from flm_jax.training.optim import update_ema


def step_key(seed: int, step: jax.Array) -> Key:
    """Key of one training step, which depends on seed and step alone, so that none is saved."""
    return jax.random.fold_in(jax.random.key(seed), step)


class Companion(NamedTuple):
    """An `Auxiliary` with its optimizer."""

    auxiliary: Auxiliary
    optimizer: optax.GradientTransformation


def interleaved(batch: dict[str, jax.Array], parts: int) -> dict[str, jax.Array]:
    """Reshapes arrays [B, ...] to [parts, B / parts, ...].

    Part m takes rows m, m + M, ..., so that every device has the same number of rows of each part.
    """
    size = batch["tokens"].shape[0] // parts
    return jax.tree.map(lambda x: x.reshape(size, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def _gradients(objective: Objective, parts: int) -> Callable:
    """Returns `jax.value_and_grad` of an objective, or the same accumulated over batch parts."""
    gradients = jax.value_and_grad(objective, has_aux=True)
    return gradients if parts == 1 else functools.partial(_accumulated, gradients, parts)


def _accumulated(
    gradients: Callable, parts: int, params: Params, frozen: Frozen, batch, key: Key, whole: Rows
):
    """Accumulates ((None, metrics), gradients) of a batch over `parts` interleaved parts of it.

    A part is weighted by its number of positions ("counted" in its metrics), so that the result is
    the mean over the positions of the complete batch.
    """
    rows, split = whole.total, interleaved(batch, parts)

    def one(start, part):
        # One key for all parts: times are low-discrepancy over the batch, and what must differ
        # between the parts is folded with their rows.
        (_, metrics), grads = gradients(params, frozen, part, key, Rows(start, rows))
        metrics, number, observed = _read(metrics)
        return jax.tree.map(lambda x: x * number, (grads, metrics)), number, observed

    starts = jnp.arange(parts) * (rows // parts)
    # Shapes alone, so that the sums start from zeros and every part is one run of the same body.
    shapes = jax.eval_shape(one, starts[0], jax.tree.map(lambda x: x[0], split))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    def accumulate(total, item):
        return jax.tree.map(jnp.add, total, one(*item)), None

    (sums, number, observed), _ = jax.lax.scan(accumulate, zeros, (starts, split))
    # A batch in which nothing counts has no gradient.
    grads, metrics = jax.tree.map(lambda x: x / jnp.maximum(number, 1.0), sums)
    return (None, metrics | {"observed": observed}), grads


def _read(metrics: Metrics) -> tuple[Metrics, jax.Array, Any]:
    """Splits metrics into proper ones, the number of counted positions, and a tracker's sums."""
    proper = dict(metrics)
    number = proper.pop("counted", jnp.ones(()))
    return proper, number, proper.pop("observed", None)


def _update_of(optimizer: optax.GradientTransformation) -> Callable:
    """The optimizer's `update`, which may be given the `grad_norm` that clipping needs."""
    return optax.with_extra_args_support(optimizer).update


def _scaled(updates: Params, rate: jax.Array | None) -> Params:
    return updates if rate is None else jax.tree.map(lambda x: x * rate, updates)


def _companion_updates(companion: Companion, microbatches: int) -> Callable:
    """Returns (state, teacher, batch, key, rate) -> (auxiliary, its metrics, the model's part).

    The updates are one compiled body in a loop. Metrics are their means.
    """
    auxiliary, optimizer = companion
    gradients = _gradients(auxiliary.objective, microbatches)

    def updated(state: TrainState, teacher, batch, key: Key, rate: jax.Array | None):
        def one(own: AuxiliaryState, item):
            number, part = item
            frozen = Frozen(teacher, state.ema_params, state.tracked, state.params, state.step)
            own_key = jax.random.fold_in(key, number)
            rows = Rows(0, part["tokens"].shape[0])
            (_, metrics), grads = gradients(own.params, frozen, part, own_key, rows)
            metrics, *_ = _read(metrics)
            updates, opt_state = optimizer.update(grads, own.opt_state, own.params)
            metrics |= {"auxiliary_grad_norm": optax.tree.norm(grads)}
            new = optax.apply_updates(own.params, _scaled(updates, rate))
            return AuxiliaryState(new, opt_state), metrics

        parts = interleaved(batch, auxiliary.updates + 1)
        own_parts = jax.tree.map(lambda x: x[1:], parts)
        numbers = 1 + jnp.arange(auxiliary.updates)
        own, metrics = jax.lax.scan(one, state.auxiliary, (numbers, own_parts))
        means = jax.tree.map(jnp.mean, metrics)
        return own, means, jax.tree.map(lambda x: x[0], parts)

    return updated


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    seed: int,
    microbatches: int,
    ema_decay: float,
    tracker: Tracker | None = None,
    companion: Companion | None = None,
    renewal: Renewal | None = None,
) -> Callable[[TrainState, Any, dict[str, jax.Array]], tuple[TrainState, Metrics]]:
    """Returns train_step(state, teacher, batch) -> (state, metrics), to be jitted.

    The state is to be donated. `teacher` holds the teacher's parameters, or is {}. With a companion
    the batch is split into equal parts: one for each update of the auxiliary, and the first for the
    update of the model, which comes last. Every part is processed in the same number of
    microbatches. A fourth argument scales the updates of parameters, and so the learning rates, by
    a factor that is only known at run time. With a renewal the auxiliary holds a teacher's
    parameters, which change between steps alone.

    After a non-finite loss or gradient in any update, parameters, moments, average, statistics and
    auxiliary stay unchanged; the step still counts, and `skipped` counts consecutive such steps.
    """
    gradients, update = _gradients(objective, microbatches), _update_of(optimizer)
    beside = companion and _companion_updates(companion, microbatches)
    lead = companion.auxiliary.lead if companion else 0

    def train_step(state: TrainState, teacher, batch, rate: jax.Array | None = None):
        state = renewed(state, renewal) if renewal else state
        key, own, before = step_key(seed, state.step), state.auxiliary, {}
        if beside:
            own, before, batch = beside(state, teacher, batch, key, rate)
        other = own.params if own else {}
        frozen = Frozen(teacher, state.ema_params, state.tracked, other, state.step)
        rows = Rows(0, batch["tokens"].shape[0])
        (_, metrics), grads = gradients(state.params, frozen, batch, key, rows)
        metrics, _, observed = _read(metrics)
        tracked = state.tracked
        if tracker:
            tracked = tracker.update(tracked, observed, state.step)
        norm = optax.tree.norm(grads)
        metrics |= before | {"grad_norm": norm}
        finite = jnp.all(jnp.stack([jnp.isfinite(m) for m in metrics.values()]))
        updated = jnp.maximum(state.step - lead, 0)  # times that the average was
        learns = finite & (state.step >= lead) if lead else finite

        def learnt(old, grads):
            params, ema_params, opt_state = old
            updates, opt_state = update(grads, opt_state, params, grad_norm=norm)
            params = optax.apply_updates(params, _scaled(updates, rate))
            return params, update_ema(ema_params, params, ema_decay, updated), opt_state

        old = (state.params, state.ema_params, state.opt_state)
        kept = _only_if(learns, learnt, old, grads)
        aside = _chosen(finite, (tracked, own), (state.tracked, state.auxiliary))
        skipped = jnp.where(finite, 0, state.skipped + 1)
        return (
            TrainState(state.step + 1, *kept, skipped, *aside),
            metrics | {"skipped_in_a_row": skipped},
        )

    return train_step


def renewed(state: TrainState, renewal: Renewal) -> TrainState:
    """Returns the state with a new teacher, if one is due before this step."""
    due = (state.step > 0) & (state.step % renewal.every == 0)
    new = state.ema_params if renewal.average else state.params
    teacher = _chosen(due, new, state.auxiliary.params)
    params = _chosen(due, state.ema_params, state.params) if renewal.restart else state.params
    return state._replace(params=params, auxiliary=AuxiliaryState(teacher, ()))


def _only_if(condition: jax.Array, fn: Callable, old: Any, *args) -> Any:
    """Returns fn(old, *args), or `old` if the condition does not hold.

    On CPUs it is a branch, which writes over the old arrays; choosing between two finished arrays
    passes over all of them once more. Accelerators choose, since a branch would wait for the host.
    """
    branch = lambda c, old, *args: jax.lax.cond(c, fn, lambda old, *_: old, old, *args)
    choice = lambda c, old, *args: _chosen(c, fn(old, *args), old)
    return jax.lax.platform_dependent(condition, old, *args, cpu=branch, default=choice)


def _chosen(condition: jax.Array, new: Any, old: Any) -> Any:
    """Selects one of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
