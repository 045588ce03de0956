"""Flow maps of masked flows: the distillation of a masked flow, and their figures."""

import dataclasses

from flm_jax.build.adapters import adapter_config
from flm_jax.build.families.base import Work
from flm_jax.build.families.flow_map import flow_map_rows, kept_times
from flm_jax.build.families.masked_flow import MASKED_FLOW
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Objective
from flm_jax.losses.distillation.base import row_groups
from flm_jax.losses.distillation.masked_flow_map import masked_map_loss
from flm_jax.models.lora import join


def check_masked_map(config: Config, net: Network, flow: Flow, teacher: Network | None) -> None:
    """Checks that adapters can be trained as the flow map of a masked flow."""
    name = config["objective"]["name"]
    require(
        teacher is not None and adapter_config(config) is not None,
        f"objective {name} distils a masked flow; set config.adapters.base to its workdir "
        "(objective masked_flow).",
    )
    require(
        net.two_time,
        f"objective {name} trains a flow map; set config.adapters.two_time = True.",
    )
    require(
        not flow.path.redraws,
        f"objective {name} learns a map of the probability-flow ODE, which draws no noise on its "
        "way; set config.flow.redraw = False.",
    )


def masked_flow_map_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective of adapters with two times, with the masked flow as their teacher."""
    check_masked_map(config, net, flow, teacher)
    cfg, group = settings(config, "objective"), flow_map_rows(config)
    part = config["train"]["batch"] // config["train"]["microbatches"]
    require(
        part % group == 0,
        f"config.objective.diagonal {cfg.diagonal} needs train.batch / train.microbatches "
        f"divisible by {group}, got {part}.",
    )
    kernel = config["model"]["attention"]
    require(
        cfg.route != "endpoint" or kernel in ("xla", "auto"),
        f"config.objective.route endpoint differentiates forward, which config.model.attention "
        f"{kernel!r} cannot; set it to 'xla' or 'auto'.",
    )
    how = {"net": net, "flow": flow, "cfg": cfg, "teacher": teacher}

    def objective(params, frozen, batch, key, rows):
        whole, average = (join(frozen.teacher, own) for own in (params, frozen.average))
        own = frozen._replace(average=average)
        return masked_map_loss(whole, own, batch, key, rows, **how)

    return objective


def masked_flow_map_work(config: Config) -> Work:
    """Lower bound of the work besides the student's own calls.

    The teacher is called on the diagonal rows, twice with guidance, and by the route endpoint where
    jumps land. The semigroup's target takes two calls with one product probabilities @ E; that of
    endpoint one, and its derivative another.
    """
    cfg, rows = settings(config, "objective"), config["train"]["batch"]
    group, diagonal = row_groups(cfg.diagonal, 840)
    on, off = rows * diagonal // group, rows * (group - diagonal) // group
    asked = 2 if cfg.context_guidance else 1
    calls = 2 if cfg.route == "semigroup" else 2 + asked
    return Work(asked * on + calls * off, off)


MASKED_FLOW_MAP = dataclasses.replace(
    MASKED_FLOW,
    name="masked_flow_map",
    objective=masked_flow_map_objective,
    kind=lambda net: "masked flow map",
    open_ended=False,
    two_time=True,
    tracker=kept_times,
    row_group=flow_map_rows,
    work=masked_flow_map_work,
    teachers=("masked_flow",),
)
