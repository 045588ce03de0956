"""Learnt times: their saved formats, and how a run inherits another run's."""

from typing import Any

import jax
from jax.sharding import Sharding

from flm_jax.build.flow import learnt_law
from flm_jax.checkpoints import config_file
from flm_jax.config.upgrade import has_older_law
from flm_jax.core.errors import require
from flm_jax.core.types import Config
from flm_jax.flows.gamma_state import GammaState, fresh_state, inherited
from flm_jax.flows.older_law import OlderState, as_now, older_state


def saved_forms(config: Config, place: Sharding) -> tuple[Any, ...]:
    """Shapes of the state of learnt times in the formats of this version and of older ones.

    Args:
      config: configuration of the model.
      place: sharding of each array.

    Returns:
      Trees of ShapeDtypeStruct; () for a model without learnt times.
    """
    law = learnt_law(config)
    if law is None:
        return ()
    struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    fresh = (lambda: fresh_state(law), lambda: older_state(law))
    return tuple(jax.tree.map(struct, jax.eval_shape(form)) for form in fresh)


def current(config: Config, times: GammaState | OlderState | None) -> GammaState | None:
    """Converts a state that was read in any of the formats to this version's."""
    law = learnt_law(config)
    return as_now(times, law) if law and isinstance(times, OlderState) else times


def inherited_times(config: Config, start: Config, times: GammaState | None) -> GammaState | None:
    """Initial state of learnt times: the curve of another run, without its statistics.

    Args:
      config: configuration of the run.
      start: configuration of the other run.
      times: state of the other run's learnt times.

    Returns:
      The state; None if the run does not inherit, or if there is no curve of its kind.

    Raises:
      UserError: curves of different ranges of gamma.
    """
    law, other = learnt_law(config), learnt_law(start)
    if times is None or law is None or other is None or not law.inherit:
        return None
    if (law.learnt == "gumbel") != (other.learnt == "gumbel"):
        return None
    require(
        (law.low, law.high) == (other.low, other.high),
        f"config.flow.law has gamma from {law.low} to {law.high}, the law that is inherited from "
        f"{other.low} to {other.high}; set low and high to these, or inherit to False.",
    )
    return inherited(jax.tree.map(jax.numpy.asarray, times), law)


def check_continuable(workdir: Any, saved: Config) -> None:
    """Refuses to continue a run whose distribution of times was learnt by an older version.

    Args:
      workdir: workdir of the run.
      saved: configuration of the run, from `upgrade.read_config`.
    """
    older = learnt_law(saved) is not None and has_older_law(config_file.read_config(workdir))
    more = f", and config.adapters.start={workdir}" if saved["adapters"]["base"] else ""
    require(
        not older,
        f"workdir {workdir} holds a run of an older version, whose law of gamma cannot be learnt "
        f"on; expected one of this version: begin a new run with another --workdir{more}.",
    )
