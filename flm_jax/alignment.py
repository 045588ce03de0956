"""Objective alignment from configurations: a masked diffusion model on what it wrote itself."""

from typing import Any

import jax
import jax.numpy as jnp

from flm_jax.adaptation import adapter_config
from flm_jax.flows.clocks import Clock
from flm_jax.losses.alignment import INPUTS, AlignmentConfig, alignment_loss
from flm_jax.models.adapters import join
from flm_jax.training.step import Objective
from flm_jax.types import Network, Params, require, unknown_name

Config = dict[str, Any]


def alignment_config(config: Config) -> AlignmentConfig:
    """The choices of a configuration."""
    inputs = config["alignment"]["inputs"]
    if inputs not in INPUTS:
        raise unknown_name("config.alignment.inputs", inputs, INPUTS)
    return AlignmentConfig(inputs, config["objective"]["time_conditioning"])


def check_base(config: Config, base: Config) -> None:
    """Refuses to align what is no masked diffusion, or was told the time otherwise."""
    goal = base["objective"]["name"]
    where = config["objective"]["teacher"]
    require(
        goal in ("masked", "alignment"),
        f"config.objective.teacher {where} is a model of objective {goal}; alignment starts from "
        "one of objective masked.",
    )
    key = "time_conditioning"
    require(
        config["objective"][key] == base["objective"][key],
        f"config.objective.{key} is {config['objective'][key]}, that of {where} is "
        f"{base['objective'][key]}; set it to that.",
    )


def alignment_objective(
    config: Config, net: Network, clock: Clock, teacher: Network | None
) -> Objective:
    """Trains all parameters, from config.objective.teacher, or adapters of config.adapters.base."""
    del clock
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
    require(net.anchor is not None, "objective alignment needs config.model.name dit or llama.")
    cfg = alignment_config(config)

    def objective(params, frozen, batch, key, rows):
        whole = join(frozen.teacher, params) if adapted else params
        return alignment_loss(whole, batch, key, net=net, cfg=cfg, rows=rows)

    return objective


def base_params(config: Config, params: Params, frozen: Params) -> Params:
    """Parameters of the same network that make it its base.

    Args:
      params: those that are trained, of which only shapes are read.
      frozen: of config.objective.teacher, or of the base of adapters. Adapters that are zero do
        nothing.
    """
    if adapter_config(config) is None:
        return frozen
    return join(frozen, jax.tree.map(jnp.zeros_like, params))
