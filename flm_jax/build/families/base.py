"""What a family of models is: its objective, sampler, likelihood, figures, and what it accepts."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

from flm_jax.build.flow import times_tracker
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config, Tracker
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Auxiliary, Objective, Renewal


class Work(NamedTuple):
    """Operations of a train step besides those of the network that is trained.

    Attributes:
      forward_rows: rows that a teacher or a target is called on, forward alone.
      embedded_rows: rows whose probabilities are multiplied by the table.
    """

    forward_rows: int = 0
    embedded_rows: int = 0


@dataclasses.dataclass(frozen=True)
class Family:
    """Everything that the library does with a model, found by the name of its objective.

    Attributes:
      name: flow, flow_map, masked_diffusion, uniform_diffusion, masked_flow, x_prediction or
        autoregressive.
      objective: (config, net, flow, teacher network or None) -> Objective; refuses a teacher it
        cannot use, and the lack of one it needs.
      networks: names of config.model.name that it trains.
      kind: network -> its name in tables.
      row_nll: (config, net, flow) -> row_nll, see `metrics.denoising`; None where the output is no
        distribution.
      row_likelihood: likewise, of which `metrics.likelihood` makes the negative log-likelihood or a
        bound on it; the same as row_nll but for flows. None where there is none.
      likelihood: what that is: "exact", "upper bound" or "" for none.
      draws: draws of row_likelihood for each sequence.
      self_conditioned: whether it can train a network with config.model.self_conditioning.
      check_teacher: (config, teacher's config, teacher's network) -> None; raises UserError for a
        model of config.objective.teacher that this family cannot learn from. None for families
        that learn from data alone.
      from_noise: whether it is a flow from Gaussian noise; such flows steer, teach and are
        distilled.
      two_time: whether its network takes two times (a flow map).
      anchored: whether its network has embeddings of masked positions besides the table.
      adapts: whether it trains adapters of config.adapters.base, "always", "never" or "either".
      takes_step_policy: whether its sampler can take the step sizes of a trained policy.
      open_ended: whether the sampler's own loop decides how many steps there are.
      steps_free: whether the number of steps is a choice; else it is the length.
      timed: whether row_nll depends on tau.
      sees_ahead: whether sampling takes account of given tokens that stand after a position.
      canvas: whether positions behind an answer of a given length are not seen; else they are held
        as padding, or written and left out.
      aligned: (config, net) -> figures of `metrics.alignment` for training to report beside its
        base's; None where there are none.
      tracker: config -> statistics that the objective gathers; None for none.
      row_group: config -> rows of a microbatch that must stay together.
      work: config -> operations of a train step besides the trained network's.
      auxiliary: (config, net, flow, teacher network or None) -> the network that is trained beside
        the model; None for none.
      renewal: config -> when its teacher is renewed; None where it stays as it is.
      teachers: names of families whose models can be its teacher; () where none can.
    """

    name: str
    objective: Callable[[Config, Network, Flow, Network | None], Objective]
    networks: tuple[str, ...]
    kind: Callable[[Network], str]
    row_nll: Callable[..., Callable | None]
    row_likelihood: Callable[..., Callable | None]
    likelihood: str
    draws: int
    self_conditioned: bool = False
    check_teacher: Callable[[Config, Config, Network], None] | None = None
    from_noise: bool = False
    two_time: bool = False
    anchored: bool = False
    adapts: str = "never"
    takes_step_policy: bool = False
    open_ended: bool = False
    steps_free: bool = True
    timed: bool = True
    sees_ahead: bool = True
    canvas: bool = False
    aligned: Callable[..., Callable] | None = None
    tracker: Callable[[Config], Tracker | None] = times_tracker
    row_group: Callable[[Config], int] = lambda config: 1
    work: Callable[[Config], Work] = lambda config: Work()
    auxiliary: Callable[..., Auxiliary | None] = lambda config, net, flow, teacher: None
    renewal: Callable[[Config], Renewal | None] = lambda config: None
    teachers: tuple[str, ...] = ()


def needs_teacher(config: Config, teacher: Network | None, of: str) -> None:
    """Refuses the lack of a teacher of objective `of`."""
    require(
        teacher is not None,
        f"objective {config['objective']['name']} distils a model; set config.objective.teacher to "
        f"the workdir of one of objective {of}.",
    )


def needs_flow(config: Config, teacher: Network | None) -> None:
    """Refuses the lack of a frozen flow to distil."""
    require(
        teacher is not None,
        f"objective {config['objective']['name']} needs a frozen flow; set "
        "config.objective.teacher to the workdir of one (objective denoising).",
    )


def check_time_conditioning(config: Config, teacher: Config, net: Network) -> None:
    """Refuses a teacher that was told the time where its student is not, or the other way round.

    Args:
      config: of the student.
      teacher: of config.objective.teacher.
      net: the teacher's network.
    """
    del net
    key, where = "time_conditioning", config["objective"]["teacher"]
    require(
        config["objective"][key] == teacher["objective"][key],
        f"config.objective.{key} is {config['objective'][key]}, that of {where} is "
        f"{teacher['objective'][key]}; set it to that.",
    )


def no_teacher(config: Config, teacher: Network | None) -> None:
    """Refuses a teacher for an objective that learns from data alone."""
    require(
        teacher is None,
        f"objective {config['objective']['name']} learns from data alone; set "
        "config.objective.teacher = ''.",
    )
