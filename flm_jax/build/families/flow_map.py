"""Flow maps (FMLM): the routes of distillation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from flm_jax.build.families.base import Work
from flm_jax.build.families.flow import FLOW
from flm_jax.build.flow import learnt_law, times_tracker
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config, Tracker
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Objective
from flm_jax.losses.distillation.base import Route, distillation_loss, row_groups
from flm_jax.losses.distillation.endpoint import EndpointConfig, endpoint_loss_at
from flm_jax.losses.distillation.eulerian import EulerianConfig, eulerian_loss_at
from flm_jax.losses.distillation.lagrangian import LagrangianConfig, lagrangian_loss_at
from flm_jax.losses.distillation.semigroup import (
    SemigroupConfig,
    semigroup_loss_at,
    split_times,
)

_METRIC = {"ce": "{}_nats_per_token", "mse": "{}_squared_per_token"}


def _semigroup_route(cfg: SemigroupConfig) -> Route:
    def loss_at(params, target_params, pairs, *, net, flow, teacher, split_key, key):
        del teacher
        tau_u = split_times(split_key, flow, pairs.tau_s, pairs.tau_t, cfg.split)
        # Clean positions stay at 1, whatever the last time is that a network is told.
        u = jnp.where(pairs.s < 1.0, flow.t(tau_u), 1.0)
        loss, values = semigroup_loss_at(
            params,
            target_params,
            pairs.views[0],
            (pairs.tau_s, tau_u, pairs.tau_t),
            (pairs.s, u, pairs.t),
            pairs.weights,
            net=net,
            flow=flow,
            form=cfg.form,
            key=key,
        )
        return loss, {_METRIC[cfg.form].format("semigroup"): values}

    return Route(loss_at, asks_teacher=False)


def _lagrangian_route(cfg: LagrangianConfig) -> Route:
    def loss_at(params, target_params, pairs, *, split_key, **settings):
        del split_key
        loss, values = lagrangian_loss_at(params, target_params, pairs, cfg=cfg.target, **settings)
        return loss, {_METRIC[cfg.form].format("lagrangian"): values}

    return Route(loss_at, asks_teacher=True)


def _eulerian_route(cfg: EulerianConfig) -> Route:
    def loss_at(params, target_params, pairs, *, split_key, **settings):
        del split_key
        loss, values = eulerian_loss_at(
            params, target_params, pairs, cfg=cfg.target, bound=cfg.derivative_bound, **settings
        )
        return loss, {_METRIC[cfg.form].format("eulerian"): values}

    return Route(loss_at, asks_teacher=True)


def _endpoint_route(cfg: EndpointConfig) -> Route:
    del cfg

    def loss_at(params, target_params, pairs, *, split_key, **settings):
        del split_key
        loss, (ce, norm) = endpoint_loss_at(params, target_params, pairs, **settings)
        return loss, {"endpoint_nats_per_token": ce, "endpoint_squared_per_token": norm}

    return Route(loss_at, asks_teacher=True)


ROUTES: dict[str, Callable[[Any], Route]] = {
    "semigroup": _semigroup_route,
    "lagrangian": _lagrangian_route,
    "eulerian": _eulerian_route,
    "endpoint": _endpoint_route,
}


# Routes that take derivatives forward, which no attention kernel has a rule for.
FORWARD_MODE = frozenset(ROUTES) - {"semigroup"}


def differentiates_forward(config: Config) -> bool:
    """Whether the objective of a configuration takes derivatives forward."""
    goal = config["objective"]
    return goal["name"] in FORWARD_MODE or goal.get("route") in FORWARD_MODE


def flow_map_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective of a route, after checks; diagonal and rows are the same for all."""
    cfg, name = settings(config, "objective"), config["objective"]["name"]
    require(net.two_time, f"objective {name} trains a flow map; set config.model.two_time = True.")
    part = config["train"]["batch"] // config["train"]["microbatches"]
    group = flow_map_rows(config)
    require(
        part % group == 0,
        f"config.objective.diagonal {cfg.diagonal} needs train.batch / train.microbatches "
        f"divisible by {group}, got {part}.",
    )
    check_law(config, name)
    require(
        teacher is not None or getattr(cfg, "guidance", 1.0) == 1.0,
        f"config.objective.guidance is {getattr(cfg, 'guidance', 1.0)} and no teacher is to be "
        "guided; set config.objective.teacher, or guidance = 1.",
    )
    kernel = config["model"]["attention"]
    require(
        name not in FORWARD_MODE or kernel in ("xla", "auto"),
        f"objective {name} differentiates forward, which config.model.attention {kernel!r} "
        "cannot; set it to 'xla' or 'auto'.",
    )
    if teacher is not None and teacher.self_conditioned:
        teacher = fixed_point(teacher, cfg.iterations)
    how = {"net": net, "flow": flow, "cfg": cfg, "route": ROUTES[name](cfg), "teacher": teacher}
    return functools.partial(distillation_loss, **how)


def check_law(config: Config, name: str) -> None:
    """Refuses to learn a map without a teacher if the distribution of times is the teacher's."""
    require(
        learnt_law(config) is None or bool(config["objective"]["teacher"]),
        f"config.flow.clock 'learnt' with objective {name}: the law of times is the teacher's; set "
        "config.objective.teacher to the workdir of a flow (objective denoising).",
    )


def kept_times(config: Config) -> Tracker | None:
    """Returns a tracker for the teacher's learnt times, which do not change."""
    learns = times_tracker(config)
    return learns and learns._replace(update=lambda state, observed, step: state)


def flow_map_rows(config: Config) -> int:
    """Number of rows of a microbatch that the fraction of diagonal rows needs as a unit."""
    # 840 is a multiple of all denominators up to 8, so that none is refused here.
    return row_groups(settings(config, "objective").diagonal, 840)[0]


def flow_map_work(config: Config) -> Work:
    """Lower bound of the work besides the student's own calls.

    The teacher is called forward on the diagonal rows. On the others the target takes two forward
    calls with one product probabilities @ E; if one of them is a tangent, it shares its forward
    call with the student. Endpoint consistency also differentiates its two calls.
    """
    cfg, rows = settings(config, "objective"), config["train"]["batch"]
    group, diagonal = row_groups(cfg.diagonal, 840)
    on, off = rows * diagonal // group, rows * (group - diagonal) // group
    calls = 4 if isinstance(cfg, EndpointConfig) else 2
    own = 0 if not cfg.teacher else 1 if getattr(cfg, "guidance", 1.0) == 1.0 else 2
    return Work(own * on + calls * off, off)


FLOW_MAP = dataclasses.replace(
    FLOW,
    name="flow_map",
    objective=flow_map_objective,
    self_conditioned=False,
    two_time=True,
    tracker=kept_times,
    row_group=flow_map_rows,
    work=flow_map_work,
)
