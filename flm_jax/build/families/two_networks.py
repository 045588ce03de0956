"""Two-stage distillation: a residual beside a frozen flow, then one map that replaces both."""

import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from flm_jax.build.families.base import Work, needs_flow
from flm_jax.build.families.flow_map import FLOW_MAP, check_law
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Objective
from flm_jax.losses.distillation.base import Route, distillation_loss
from flm_jax.losses.distillation.semigroup import split_times
from flm_jax.losses.distillation.two_networks import (
    MergeConfig,
    ResidualConfig,
    merge_loss_at,
    residual_loss_at,
    two_tables,
)


def _residual_route(cfg: ResidualConfig) -> Route:
    def loss_at(params, target_params, pairs, *, split_key, flow, **how):
        tau_u = split_times(split_key, flow, pairs.tau_s, pairs.tau_t, cfg.split)
        u = jnp.where(pairs.s < 1.0, flow.t(tau_u), 1.0)
        loss, values = residual_loss_at(params, target_params, pairs, tau_u, u, flow=flow, **how)
        return loss, {"residual_squared_per_token": values}

    return Route(loss_at, asks_teacher=True)


def _merge_route(cfg: MergeConfig) -> Route:
    del cfg

    def loss_at(params, target_params, pairs, *, split_key, **how):
        del split_key
        loss, values = merge_loss_at(params, target_params, pairs, **how)
        return loss, {"merge_squared_per_token": values}

    return Route(loss_at, asks_teacher=True)


def _checked(config: Config, net: Network, teacher: Network | None) -> Network:
    """Returns the teacher for both stages, after checks."""
    cfg, name = settings(config, "objective"), config["objective"]["name"]
    require(net.two_time, f"objective {name} trains two times; set config.model.two_time = True.")
    needs_flow(config, teacher)
    require(
        cfg.diagonal == 0.0,
        f"objective {name} has no rows with t = s, got config.objective.diagonal {cfg.diagonal}; "
        "set it to 0.0.",
    )
    require(
        config["flow"]["name"] == "linear" and config["flow"]["noise"] != "unit",
        f"objective {name} is of the linear path with noise of the one-hot space; set "
        "config.flow.name = 'linear' and noise = 'projected'.",
    )
    check_law(config, name)
    return fixed_point(teacher, cfg.iterations) if teacher.self_conditioned else teacher


def residual_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective of the first stage, after checks."""
    teacher = _checked(config, net, teacher)
    require(
        config["eval"]["batches"] == 0 and config["eval"]["samples"] == 0,
        "a residual alone has neither probabilities nor texts to look at in training; set "
        "config.eval.batches = 0 and config.eval.samples = 0.",
    )
    cfg = settings(config, "objective")
    how: dict[str, Any] = {"net": net, "flow": flow, "cfg": cfg, "teacher": teacher}
    return functools.partial(distillation_loss, route=_residual_route(cfg), **how)


def merge_objective(config: Config, net: Network, flow: Flow, teacher: Network | None) -> Objective:
    """Returns the objective of the second stage, after checks."""
    teacher = _checked(config, net, teacher)
    cfg = settings(config, "objective")
    require(
        bool(cfg.residual),
        "objective merge needs the residual of its first stage; set config.objective.residual to "
        "the workdir of one (objective residual).",
    )
    how: dict[str, Any] = {"net": net, "flow": flow, "cfg": cfg}
    how["teacher"] = two_tables(teacher, net)
    return functools.partial(distillation_loss, route=_merge_route(cfg), **how)


def _work(config: Config) -> Work:
    """Lower bound of the work besides the student's own calls, all forward on all rows.

    The first stage calls the flow at s and u, the residual from s to u and from u to t, with one
    product probabilities @ E for each table; the second stage calls the flow and the residual.
    """
    rows = config["train"]["batch"]
    first = config["objective"]["name"] == "residual"
    return Work(4 * rows, 2 * rows) if first else Work(2 * rows, 0)


def _none(*_: Any) -> None:
    """A residual alone has no probabilities."""


RESIDUAL_STAGE = dataclasses.replace(
    FLOW_MAP,
    objective=residual_objective,
    row_nll=_none,
    row_likelihood=_none,
    likelihood="",
    row_group=lambda config: 1,
    work=_work,
    kind=lambda net: "residual of a flow map",
    from_noise=False,
)
MERGE_STAGE = dataclasses.replace(
    FLOW_MAP, objective=merge_objective, row_group=lambda config: 1, work=_work
)
