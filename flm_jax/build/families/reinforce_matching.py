"""Distribution matching by the score function: flow maps trained beside a discriminator."""

import dataclasses
import functools

from flm_jax.build.families.base import Work
from flm_jax.build.families.distribution_matching import (
    DISTRIBUTION_MATCHING,
    check_in_turn,
    in_turn,
    matching_rows,
)
from flm_jax.config.schema import settings
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Auxiliary, Objective
from flm_jax.losses.distillation.reinforce_matching import discriminator_loss, reinforce_loss
from flm_jax.models.transformer import single_output


def _bound(config: Config, net: Network, flow: Flow, teacher: Network) -> dict:
    """Arguments that both losses share; a self-conditioned teacher becomes its fixed point."""
    cfg = settings(config, "objective")
    if teacher.self_conditioned:
        teacher = fixed_point(teacher, cfg.iterations)
    return {"net": net, "flow": flow, "cfg": cfg, "teacher": teacher}


def reinforce_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective of the student, after checks."""
    check_in_turn(config, net, teacher)
    return functools.partial(reinforce_loss, **_bound(config, net, flow, teacher))


def reinforce_auxiliary(config: Config, net: Network, flow: Flow, teacher: Network) -> Auxiliary:
    """Returns the discriminator and its training, checked; call `reinforce_objective` first."""
    objective = functools.partial(discriminator_loss, **_bound(config, net, flow, teacher))
    return in_turn(config, objective, initial=single_output)


def reinforce_work(config: Config) -> Work:
    """Lower bound of the work besides the student's own calls, which cover its part of the batch.

    The student is called on the other parts, where the discriminator learns from two texts for each
    row; on the student's part the teacher is called, and the discriminator on each text drawn.
    """
    cfg = settings(config, "objective")
    rows, parts = config["train"]["batch"], matching_rows(config)
    own = rows // parts
    others = rows - own
    return Work(
        trained_rows=own,
        forward_rows=others + (own if cfg.teacher_weight else 0),
        headless_rows=2 * 3 * others + cfg.draws * own,
    )


REINFORCE_MATCHING = dataclasses.replace(
    DISTRIBUTION_MATCHING,
    objective=reinforce_objective,
    work=reinforce_work,
    auxiliary=reinforce_auxiliary,
)
