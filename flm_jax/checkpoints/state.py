"""The train state: what a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flm_jax.core.types import Params, Tracker


class AuxiliaryState(NamedTuple):
    """A network that is trained beside the model (`losses.base.Auxiliary`), or a teacher that is
    renewed (`losses.base.Renewal`): saved, never exported.

    Attributes:
      params: float32 tree.
      opt_state: optax state; () of a teacher.
    """

    params: Params
    opt_state: optax.OptState


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: int32, steps taken.
      params, ema_params: float32 trees.
      opt_state: optax state.
      skipped: int32, consecutive steps skipped for a non-finite loss or gradient.
      tracked: statistics of a `Tracker`, None without one.
      auxiliary: a network that is trained beside the model, or its renewed teacher; None without.
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
    """State at step 0; the average starts as a copy of the parameters."""
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, params)
    tracked = tracker.fresh() if tracker else None
    return TrainState(zero, params, average, optimizer.init(params), zero, tracked, auxiliary)
