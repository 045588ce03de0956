"""What is learnt of the law of times: the forms it is saved in, and who starts with another's."""

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
    """Shapes of what is learnt, as this version saves it and as older ones did.

    Args:
      config: of the model.
      place: sharding of each array.

    Returns:
      Trees of ShapeDtypeStruct; () for a model that learns no law of times.
    """
    law = learnt_law(config)
    if law is None:
        return ()
    struct = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    fresh = (lambda: fresh_state(law), lambda: older_state(law))
    return tuple(jax.tree.map(struct, jax.eval_shape(form)) for form in fresh)


def current(config: Config, times: GammaState | OlderState | None) -> GammaState | None:
    """What was read in one of the forms, in this version's."""
    law = learnt_law(config)
    return as_now(times, law) if law and isinstance(times, OlderState) else times


def inherited_times(config: Config, start: Config, times: GammaState | None) -> GammaState | None:
    """What a run begins to learn from: the curve of another one, without its statistics.

    Args:
      config: of the run.
      start: of the other one.
      times: what that has learnt.

    Returns:
      None where it begins anew: it is not to inherit, or there is no curve of its kind.

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
    """Refuses a run whose law of times was learnt by an older version.

    Args:
      workdir: of the run.
      saved: its configuration, as `upgrade.read_config` gives it.
    """
    older = learnt_law(saved) is not None and has_older_law(config_file.read_config(workdir))
    more = f", and config.adapters.start={workdir}" if saved["adapters"]["base"] else ""
    require(
        not older,
        f"workdir {workdir} holds a run of an older version, whose law of gamma cannot be learnt "
        f"on; expected one of this version: begin a new run with another --workdir{more}.",
    )
