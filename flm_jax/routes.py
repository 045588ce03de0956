"""From config.objective to a route of distillation: the part of `build` that knows the routes."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from flm_jax.flows.clocks import Clock, tau_to_t
from flm_jax.flows.self_conditioning import fixed_point
from flm_jax.losses.context import ContextConfig
from flm_jax.losses.distillation import DistillationConfig, Route, distillation_loss, row_groups
from flm_jax.losses.endpoint import endpoint_loss_at
from flm_jax.losses.eulerian import eulerian_loss_at
from flm_jax.losses.lagrangian import lagrangian_loss_at
from flm_jax.losses.semigroup import SPLITS, semigroup_loss_at, split_times
from flm_jax.losses.targets import PROJECTIONS, TargetConfig
from flm_jax.training.step import Objective
from flm_jax.types import Network, require, unknown_name

Config = dict[str, Any]
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


def _choice(kind: str, got: str, valid: Iterable[str]) -> str:
    if got not in valid:
        raise unknown_name(kind, got, valid)
    return got


def context_config(config: Config) -> ContextConfig:
    """Checked objective.context and objective.prompt."""
    given, length = config["objective"], config["model"]["length"]
    share, prompt = given["context"], given["prompt"]
    require(
        0.0 <= share <= 1.0, f"config.objective.context is {share}; expected a share in [0, 1]."
    )
    require(
        0 <= prompt < length,
        f"config.objective.prompt is {prompt}; expected 0 to {length - 1}, fewer than "
        f"config.model.length = {length}.",
    )
    return ContextConfig(share, prompt)


def _target_config(given: Config) -> TargetConfig:
    """Checked objective.form and objective.projection of a route, defaults filled in."""
    name, form, projection = (given[key] for key in ("name", "form", "projection"))
    forms, projections = _CHOICES[name]
    _choice(f"config.objective.form of route {name}", form, ("default", *forms))
    _choice(f"config.objective.projection of route {name}", projection, ("default", *projections))
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
    split = _choice("config.objective.split", given["split"], SPLITS)

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


def distillation(config: Config, net: Network, clock: Clock, teacher: Network | None) -> Objective:
    """The objective of a route, checked; the diagonal and the rows are the same for all."""
    given = config["objective"]
    name = given["name"]
    cfg = DistillationConfig(
        **{key: given[key] for key in ("noise", "diagonal", "boundary")},
        context=context_config(config),
    )
    require(net.two_time, f"objective {name} trains a flow map; set config.model.two_time = True.")
    require(
        0.0 <= cfg.diagonal <= 1.0, f"config.objective.diagonal is {cfg.diagonal}, not in [0, 1]."
    )
    part = config["train"]["batch"] // config["train"]["microbatches"]
    group, _ = row_groups(cfg.diagonal, 840)
    require(
        part % group == 0,
        f"config.objective.diagonal {cfg.diagonal} needs train.batch / train.microbatches "
        f"divisible by {group}, got {part}.",
    )
    kernel = config["model"]["attention"]
    require(
        name == "semigroup" or kernel == "xla",
        f"objective {name} differentiates forward, which config.model.attention {kernel!r} "
        "cannot; set it to 'xla'.",
    )
    route = ROUTES[name](given, _target_config(given))
    if teacher is not None and teacher.self_conditioned:
        teacher = fixed_point(teacher, given["iterations"])

    def objective(params, frozen, batch, key, rows):
        return distillation_loss(
            params,
            batch,
            key,
            net=net,
            clock=clock,
            cfg=cfg,
            rows=rows,
            route=route,
            teacher=None if teacher is None else (teacher, frozen.teacher),
            target_params=frozen.average if given["ema_target"] else None,
        )

    return objective
