"""The x-prediction family: a masked diffusion model aligned with its own generated texts."""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.build.adapters import adapter_config
from flm_jax.build.families.base import check_time_conditioning
from flm_jax.build.families.masked_diffusion import MASKED_DIFFUSION
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config, Params
from flm_jax.flows.flow import Flow
from flm_jax.losses.alignment import AlignmentConfig, alignment_loss
from flm_jax.losses.base import Objective
from flm_jax.metrics.alignment import make_alignment_figures
from flm_jax.models.lora import join


def alignment_config(config: Config) -> AlignmentConfig:
    """Settings of alignment in a configuration."""
    return settings(config, "objective")


def x_prediction_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective, which trains all parameters of its teacher or adapters of a base.

    These are config.objective.teacher and config.adapters.base.
    """
    del flow
    adapted = adapter_config(config) is not None
    require(
        teacher is not None,
        "objective alignment goes on from a masked diffusion model; set config.objective.teacher "
        "to its workdir, or config.adapters.base to train adapters of a llama.",
    )
    require(
        not (adapted and config["objective"]["teacher"]),
        "got config.objective.teacher and config.adapters.base; set one of them.",
    )
    require(
        not config["adapters"]["base_lr"],
        f"config.adapters.base_lr is {config['adapters']['base_lr']}; expected 0 by objective "
        "alignment, which compares with its base as it was.",
    )
    require(net.anchor is not None, "objective alignment needs config.model.name dit or llama.")
    cfg = alignment_config(config)

    def objective(params, frozen, batch, key, rows):
        whole = join(frozen.teacher, params) if adapted else params
        return alignment_loss(whole, batch, key, net=net, cfg=cfg, rows=rows)

    return objective


def base_params(config: Config, params: Params, frozen: Params) -> Params:
    """Parameters with which the adapted network equals its base model.

    Args:
      params: trained parameters, of which only shapes are used.
      frozen: parameters of config.objective.teacher, or of the base of adapters. Adapters with zero
        parameters have no effect.
    """
    if adapter_config(config) is None:
        return frozen
    return join(frozen, jax.tree.map(jnp.zeros_like, params))


X_PREDICTION = dataclasses.replace(
    MASKED_DIFFUSION,
    name="x_prediction",
    objective=x_prediction_objective,
    check_teacher=check_time_conditioning,
    teachers=("masked_diffusion", "x_prediction"),
    adapts="either",
    aligned=lambda config, net: make_alignment_figures(net, alignment_config(config)),
)
