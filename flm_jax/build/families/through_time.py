"""Self-distillation through time (SDTT): masked diffusion that needs fewer calls."""

import dataclasses
import functools

from flm_jax.build.families.base import Work, check_time_conditioning, needs_teacher
from flm_jax.build.families.masked_diffusion import MASKED_DIFFUSION, check_masked_network
from flm_jax.config.schema import settings
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Objective, Renewal
from flm_jax.losses.distillation.through_time import through_time_loss


def through_time_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective: self-distillation of config.objective.teacher, in rounds."""
    del flow
    needs_teacher(config, teacher, "masked_diffusion")
    check_masked_network(config, net)
    return functools.partial(through_time_loss, net=net, cfg=settings(config, "objective"))


def through_time_renewal(config: Config) -> Renewal:
    """Returns the renewal of the teacher in each round."""
    cfg = settings(config, "objective")
    return Renewal(cfg.round_steps, cfg.average_teacher, cfg.restart)


THROUGH_TIME = dataclasses.replace(
    MASKED_DIFFUSION,
    objective=through_time_objective,
    check_teacher=check_time_conditioning,
    renewal=through_time_renewal,
    teachers=("masked_diffusion",),
    work=lambda config: Work(forward_rows=2 * config["train"]["batch"]),
)
