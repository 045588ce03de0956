"""The train state, which is the content of a checkpoint."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flm_jax.core.types import Params, Tracker


class AuxiliaryState(NamedTuple):
    """State of a network trained beside the model, or of a renewed teacher; it is never exported.

    They are `losses.base.Auxiliary` and `losses.base.Renewal`.

    Attributes:
      params: float32 tree.
      opt_state: optax state; () for a teacher.
    """

    params: Params
    opt_state: optax.OptState


class TrainState(NamedTuple):
    """State of a training run, which checkpoints hold.

    Attributes:
      step: int32, number of steps taken.
      params, ema_params: float32 trees.
      opt_state: optax state.
      skipped: int32, number of consecutive steps skipped for a non-finite loss or gradient.
      tracked: statistics of a `Tracker`, None without one.
      auxiliary: state of a network that is trained beside the model, or of its renewed teacher;
        None without.
    """

    step: jax.Array
    params: Params
    ema_params: Params
    opt_state: optax.OptState
    skipped: jax.Array
    tracked: Any = None
    auxiliary: AuxiliaryState | None = None


def new_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    tracker: Tracker | None = None,
    auxiliary: AuxiliaryState | None = None,
) -> TrainState:
    """Returns the state at step 0; the average starts as a copy of the parameters."""
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, params)
    tracked = tracker.fresh() if tracker else None
    return TrainState(zero, params, average, optimizer.init(params), zero, tracked, auxiliary)
