"""The definition of a family of models: objective, sampler, likelihood, figures and checks."""

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
    """Operations of a train step besides the trained network's.

    Attributes:
      forward_rows: number of rows on which a teacher or a target is called, forward alone.
      embedded_rows: number of rows whose probabilities are multiplied by the table.
      headless_rows: number of rows on which a network without logits is called, forward alone.
      trained_rows: number of rows on which the trained network is called and differentiated; None
        for those of the batch.
    """

    forward_rows: int = 0
    embedded_rows: int = 0
    headless_rows: int = 0
    trained_rows: int | None = None


@dataclasses.dataclass(frozen=True)
class Family:
    """All family-specific functions and properties of a model, found by its objective's name.

    Attributes:
      name: flow, flow_map, masked_diffusion, uniform_diffusion, masked_flow, masked_flow_map,
        x_prediction or autoregressive.
      objective: (config, net, flow, teacher network or None) -> Objective; it refuses a teacher
        that it cannot use, and the lack of one that it needs.
      networks: names in config.model.name of the networks that it trains.
      kind: function from the network to the label of the model in tables.
      row_nll: (config, net, flow) -> row_nll, see `metrics.denoising`; None for outputs that are no
        probability distribution.
      row_likelihood: (config, net, flow) -> row function for the negative log-likelihood of
        `metrics.likelihood` or a bound on it; the same as row_nll except for flows. None if there
        is none.
      likelihood: kind of that likelihood: "exact", "upper bound" or "" for none.
      draws: number of draws of row_likelihood for each sequence.
      self_conditioned: whether it can train a network with config.model.self_conditioning.
      check_teacher: (config, teacher's config, teacher's network) -> None; it raises UserError for
        a model in config.objective.teacher from which this family cannot learn. None for families
        that learn from data alone.
      from_noise: whether it is a flow from Gaussian noise; such flows can be steered and distilled.
      two_time: whether its network takes two times (a flow map).
      anchored: whether its network has embeddings of masked positions besides the table.
      adapts: whether it trains adapters of config.adapters.base: "always", "never" or "either".
      takes_step_policy: whether its sampler can use the step sizes of a trained policy.
      open_ended: whether the number of steps is determined within the sampler's loop.
      steps_free: whether the number of steps can be chosen; else it is the length.
      timed: whether row_nll depends on tau.
      sees_ahead: whether sampling is conditioned on prescribed tokens after a position.
      canvas: whether positions after an answer of a given length are invisible; else they are
        padding, or are generated and dropped.
      aligned: (config, net) -> figures of `metrics.alignment` that training reports beside its
        base's; None if there are none.
      tracker: function from the config to the statistics that the objective gathers; None for none.
      row_group: function from the config to the number of rows of a microbatch that must stay
        together.
      work: function from the config to the operations of a train step besides the trained
        network's.
      auxiliary: (config, net, flow, teacher network or None) -> the network that is trained beside
        the model; None for none.
      renewal: function from the config to the schedule of the teacher's renewal; None for a fixed
        teacher.
      teachers: names of the families whose models can be its teacher, or the base of its adapters
        where they are not those of masked diffusion; () for none.
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
    """Refuses a missing teacher, whose objective would be `of`."""
    require(
        teacher is not None,
        f"objective {config['objective']['name']} distils a model; set config.objective.teacher to "
        f"the workdir of one of objective {of}.",
    )


def needs_flow(config: Config, teacher: Network | None) -> None:
    """Refuses a missing flow to distil."""
    require(
        teacher is not None,
        f"objective {config['objective']['name']} needs a frozen flow; set "
        "config.objective.teacher to the workdir of one (objective denoising).",
    )


def check_time_conditioning(config: Config, teacher: Config, net: Network) -> None:
    """Refuses a teacher conditioned on time if its student is not, and vice versa.

    Args:
      config: configuration of the student.
      teacher: configuration of config.objective.teacher.
      net: network of the teacher.
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
