"""Distribution matching of masked flows: flow maps trained beside an auxiliary denoiser."""

import dataclasses
import functools

from flm_jax.build.families.base import Work
from flm_jax.build.families.distribution_matching import check_parts, in_turn, matching_rows
from flm_jax.build.families.masked_flow_map import MASKED_FLOW_MAP, check_masked_map
from flm_jax.config.schema import settings
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.denoiser.head import tempered
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Auxiliary, Objective
from flm_jax.losses.distillation.distribution_matching import auxiliary_loss, matching_loss
from flm_jax.losses.distillation.masked_distribution_matching import masked_answers
from flm_jax.models.lora import join


def _on_adapters(objective: Objective) -> Objective:
    """Returns an objective of all parameters as one of adapters, both networks' on the teacher."""

    def adapted(params, frozen, batch, key, rows):
        whole, other = (join(frozen.teacher, own) for own in (params, frozen.other))
        return objective(whole, frozen._replace(other=other), batch, key, rows)

    return adapted


def _bound(config: Config, net: Network, flow: Flow, teacher: Network) -> dict:
    """Arguments that both losses share."""
    cfg = settings(config, "objective")
    teacher = tempered(teacher, cfg.teacher_temperature)
    return {"net": net, "flow": flow, "cfg": cfg, "teacher": teacher, "draw": masked_answers}


def masked_matching_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective of the student's adapters, after checks."""
    check_masked_map(config, net, flow, teacher)
    check_parts(config)
    return _on_adapters(functools.partial(matching_loss, **_bound(config, net, flow, teacher)))


def masked_matching_auxiliary(
    config: Config, net: Network, flow: Flow, teacher: Network
) -> Auxiliary:
    """Returns the auxiliary denoiser, adapters too; call `masked_matching_objective` first."""
    loss = functools.partial(auxiliary_loss, **_bound(config, net, flow, teacher))
    return in_turn(config, _on_adapters(loss))


def masked_matching_work(config: Config) -> Work:
    """Lower bound of the work besides the two networks' own calls; see `matching_work`.

    With guidance the teacher is called twice on the student's part, with one more product.
    """
    rows, parts = config["train"]["batch"], matching_rows(config)
    own = rows // parts
    guided = own if settings(config, "objective").context_guidance else 0
    return Work(forward_rows=rows + own + guided, embedded_rows=rows + 2 * own + guided)


MASKED_DISTRIBUTION_MATCHING = dataclasses.replace(
    MASKED_FLOW_MAP,
    objective=masked_matching_objective,
    row_group=matching_rows,
    work=masked_matching_work,
    auxiliary=masked_matching_auxiliary,
)
