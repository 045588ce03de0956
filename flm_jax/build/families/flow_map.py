"""Flow maps (FMLM): the routes of distillation."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

from flm_jax.build.families.base import Work
from flm_jax.build.families.flow import FLOW
from flm_jax.build.flow import context_config
from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.denoiser.self_conditioning import fixed_point
from flm_jax.flows.clocks import Clock, tau_to_t
from flm_jax.losses.base import Objective
from flm_jax.losses.distillation.base import (
    DistillationConfig,
    Route,
    distillation_loss,
    row_groups,
)
from flm_jax.losses.distillation.endpoint import endpoint_loss_at
from flm_jax.losses.distillation.eulerian import eulerian_loss_at
from flm_jax.losses.distillation.lagrangian import lagrangian_loss_at
from flm_jax.losses.distillation.moving_target import PROJECTIONS, TargetConfig
from flm_jax.losses.distillation.semigroup import SPLITS, semigroup_loss_at, split_times

_METRIC = {"ce": "{}_nats_per_token", "mse": "{}_squared_per_token"}


class _Choices(NamedTuple):
    """What a route may be told; the first form is its default."""

    forms: tuple[str, ...]
    projections: tuple[str, ...]


_ON_SIMPLEX = ("none",)
_CHOICES = {
    "semigroup": _Choices(("ce", "mse"), _ON_SIMPLEX),
    "lagrangian": _Choices(("ce", "mse"), PROJECTIONS),
    "eulerian": _Choices(("mse", "ce"), PROJECTIONS),
    "endpoint": _Choices(("ce",), _ON_SIMPLEX),
}


def _target_config(given: Config) -> TargetConfig:
    """Checked objective.form and objective.projection of a route, defaults filled in."""
    name, form, projection = (given[key] for key in ("name", "form", "projection"))
    forms, projections = _CHOICES[name]
    one_of(f"config.objective.form of route {name}", form, ("default", *forms))
    one_of(f"config.objective.projection of route {name}", projection, ("default", *projections))
    form = forms[0] if form == "default" else form
    # A squared distance may be taken to any vector, a cross entropy to distributions alone.
    needed = form == "ce" and len(projections) > 1
    if projection == "default":
        projection = "sparsemax" if needed else "none"
    require(
        projection != "none" or not needed,
        f"config.objective.projection is 'none', and the {name} target leaves the simplex: set it "
        "to clip, sparsemax or entmax15, or config.objective.form to 'mse'.",
    )
    return TargetConfig(form, projection)


def _semigroup_route(given: Config, target: TargetConfig) -> Route:
    split = one_of("config.objective.split", given["split"], SPLITS)

    def loss_at(params, target_params, pairs, *, net, clock, teacher, split_key, key):
        del teacher
        tau_u = split_times(split_key, pairs.tau_s, pairs.tau_t, split)
        loss, values = semigroup_loss_at(
            params,
            target_params,
            pairs.views[0],
            (pairs.tau_s, tau_u, pairs.tau_t),
            (pairs.s, tau_to_t(clock, tau_u), pairs.t),
            pairs.weights,
            net=net,
            form=target.form,
            key=key,
        )
        return loss, {_METRIC[target.form].format("semigroup"): values}

    return Route(loss_at, asks_teacher=False)


def _lagrangian_route(given: Config, target: TargetConfig) -> Route:
    del given

    def loss_at(params, target_params, pairs, *, split_key, **settings):
        del split_key
        loss, values = lagrangian_loss_at(params, target_params, pairs, cfg=target, **settings)
        return loss, {_METRIC[target.form].format("lagrangian"): values}

    return Route(loss_at, asks_teacher=True)


def _eulerian_route(given: Config, target: TargetConfig) -> Route:
    bound = given["derivative_bound"]
    require(
        0.0 < bound < float("inf"),
        f"config.objective.derivative_bound is {bound}, expected a positive number.",
    )

    def loss_at(params, target_params, pairs, *, split_key, **settings):
        del split_key
        loss, values = eulerian_loss_at(
            params, target_params, pairs, cfg=target, bound=bound, **settings
        )
        return loss, {_METRIC[target.form].format("eulerian"): values}

    return Route(loss_at, asks_teacher=True)


def _endpoint_route(given: Config, target: TargetConfig) -> Route:
    del given, target

    def loss_at(params, target_params, pairs, *, split_key, **settings):
        del split_key
        loss, (ce, norm) = endpoint_loss_at(params, target_params, pairs, **settings)
        return loss, {"endpoint_nats_per_token": ce, "endpoint_squared_per_token": norm}

    return Route(loss_at, asks_teacher=True)


ROUTES: dict[str, Callable[[Config, TargetConfig], Route]] = {
    "semigroup": _semigroup_route,
    "lagrangian": _lagrangian_route,
    "eulerian": _eulerian_route,
    "endpoint": _endpoint_route,
}


# Routes that take derivatives forward, which no attention kernel has a rule for.
FORWARD_MODE = frozenset(ROUTES) - {"semigroup"}


def flow_map_objective(
    config: Config, net: Network, clock: Clock, teacher: Network | None
) -> Objective:
    """The objective of a route, checked; the diagonal and the rows are the same for all."""
    given = config["objective"]
    name = given["name"]
    cfg = DistillationConfig(
        **{key: given[key] for key in ("noise", "diagonal", "boundary", "ema_target")},
        context=context_config(config),
    )
    require(net.two_time, f"objective {name} trains a flow map; set config.model.two_time = True.")
    require(
        0.0 <= cfg.diagonal <= 1.0, f"config.objective.diagonal is {cfg.diagonal}, not in [0, 1]."
    )
    part = config["train"]["batch"] // config["train"]["microbatches"]
    group = flow_map_rows(config)
    require(
        part % group == 0,
        f"config.objective.diagonal {cfg.diagonal} needs train.batch / train.microbatches "
        f"divisible by {group}, got {part}.",
    )
    kernel = config["model"]["attention"]
    require(
        name not in FORWARD_MODE or kernel in ("xla", "auto"),
        f"objective {name} differentiates forward, which config.model.attention {kernel!r} "
        "cannot; set it to 'xla' or 'auto'.",
    )
    route = ROUTES[name](given, _target_config(given))
    if teacher is not None and teacher.self_conditioned:
        teacher = fixed_point(teacher, given["iterations"])
    how = {"net": net, "clock": clock, "cfg": cfg, "route": route, "teacher": teacher}
    return functools.partial(distillation_loss, **how)


def flow_map_rows(config: Config) -> int:
    """Rows of a microbatch that the fraction of diagonal rows needs as a unit."""
    return row_groups(config["objective"]["diagonal"], 840)[0]


def flow_map_work(config: Config) -> Work:
    """Least work besides the student's own calls.

    The teacher is called forward on the diagonal rows. On the others the target takes two forward
    calls with one product probabilities @ E; where one of them is a tangent, it shares its forward
    call with the student. Endpoint consistency goes back through its two.
    """
    given, rows = config["objective"], config["train"]["batch"]
    group, diagonal = row_groups(given["diagonal"], 840)
    on, off = rows * diagonal // group, rows * (group - diagonal) // group
    calls = 4 if given["name"] == "endpoint" else 2
    return Work((on if given["teacher"] else 0) + calls * off, off)


FLOW_MAP = dataclasses.replace(
    FLOW,
    name="flow_map",
    objective=flow_map_objective,
    accepts=frozenset({"context", "prompt", "weighting"}),
    two_time=True,
    row_group=flow_map_rows,
    work=flow_map_work,
)
