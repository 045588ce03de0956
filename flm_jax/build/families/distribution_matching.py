"""Distribution matching: flow maps trained beside an auxiliary denoiser."""

import dataclasses
import functools
from typing import Any

from flm_jax.build.families.base import Work, needs_flow
from flm_jax.build.families.flow import check_flow_teacher
from flm_jax.build.families.flow_map import FLOW_MAP
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.denoiser.head import tempered
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Auxiliary, Objective
from flm_jax.losses.distillation.distribution_matching import (
    auxiliary_loss,
    matching_loss,
)


def _bound(config: Config, net: Network, flow: Flow, teacher: Network) -> dict:
    """Arguments that both losses share; a self-conditioned teacher becomes its fixed point."""
    cfg = settings(config, "objective")
    if teacher.self_conditioned:
        teacher = fixed_point(teacher, cfg.iterations)
    teacher = tempered(teacher, cfg.teacher_temperature)
    return {"net": net, "flow": flow, "cfg": cfg, "teacher": teacher}


def check_in_turn(config: Config, net: Network, teacher: Network | None) -> None:
    """Checks that a flow map can be trained in turn with an auxiliary network."""
    name = config["objective"]["name"]
    require(net.two_time, f"objective {name} trains a flow map; set config.model.two_time = True.")
    needs_flow(config, teacher)
    check_parts(config)


def check_parts(config: Config) -> None:
    """Refuses a batch that does not split into the updates of both networks."""
    parts = matching_rows(config)
    rows, micro = config["train"]["batch"], config["train"]["microbatches"]
    require(
        rows % (parts * micro) == 0,
        f"config.train.batch {rows} does not split into {parts} updates (auxiliary_updates + 1) of "
        f"{micro} microbatches; use a multiple of {parts * micro}.",
    )


def in_turn(config: Config, objective: Objective, **more: Any) -> Auxiliary:
    """Returns an auxiliary network with its objective, after checks; see `Auxiliary` for `more`."""
    cfg = settings(config, "objective")
    lead, steps = cfg.auxiliary_lead, config["train"]["steps"]
    require(
        lead < steps,
        f"config.objective.auxiliary_lead is {lead}; expected 0 to {steps - 1}, fewer than "
        f"config.train.steps = {steps}.",
    )
    return Auxiliary(objective, cfg.auxiliary_updates, lead, cfg.auxiliary_lr, **more)


def matching_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective of the student, after checks."""
    check_in_turn(config, net, teacher)
    require(
        not net.posterior_skip,
        "objective distribution_matching has no networks with config.model.posterior_skip; distil "
        "by objective semigroup or reinforce_matching, or train a flow without it.",
    )
    return functools.partial(matching_loss, **_bound(config, net, flow, teacher))


def matching_auxiliary(config: Config, net: Network, flow: Flow, teacher: Network) -> Auxiliary:
    """Returns the auxiliary denoiser and its training, checked; call `matching_objective` first."""
    return in_turn(config, functools.partial(auxiliary_loss, **_bound(config, net, flow, teacher)))


def check_matching_teacher(config: Config, teacher: Config, net: Network) -> None:
    """Checks a teacher as for every flow map, and that it can initialise the auxiliary denoiser.

    Its network has one time, so that the second time of the auxiliary denoiser is new.
    """
    check_flow_teacher(config, teacher, net)
    require(
        not net.two_time,
        "config.objective.teacher is a flow map; expected the flow that it was distilled from "
        "(objective denoising); a flow map belongs in config.objective.start.",
    )


def matching_rows(config: Config) -> int:
    """Number of parts of the batch: one for each update of the auxiliary, one for the student's."""
    return settings(config, "objective").auxiliary_updates + 1


def matching_work(config: Config) -> Work:
    """Lower bound of the work besides the two networks' own calls, which cover the batch.

    The student is called on the auxiliary's parts, the auxiliary and the teacher on the student's
    part. There is one product probabilities @ E for each output, and two more on the student's
    part.
    """
    rows, parts = config["train"]["batch"], matching_rows(config)
    own = rows // parts
    guided = own if settings(config, "objective").guidance != 1.0 else 0
    return Work(forward_rows=rows + own + guided, embedded_rows=rows + 2 * own)


DISTRIBUTION_MATCHING = dataclasses.replace(
    FLOW_MAP,
    objective=matching_objective,
    check_teacher=check_matching_teacher,
    row_group=matching_rows,
    work=matching_work,
    auxiliary=matching_auxiliary,
)
