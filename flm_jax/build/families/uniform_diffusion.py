"""Uniform-state diffusion (Duo): objective, discrete consistency distillation, sampler, bound."""

import dataclasses
import functools
from collections.abc import Callable

from flm_jax.build.families.base import (
    Family,
    Work,
    check_time_conditioning,
    needs_teacher,
    no_teacher,
)
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.clocks import decoding_clock
from flm_jax.flows.flow import Flow
from flm_jax.flows.uniform_noise import GaussianTimes, gaussian_times
from flm_jax.losses.base import Objective, Renewal
from flm_jax.losses.distillation.discrete_consistency import consistency_loss
from flm_jax.losses.uniform_diffusion import UniformConfig, uniform_loss
from flm_jax.metrics.uniform_diffusion import make_uniform_nll


def _times(cfg: UniformConfig, net: Network) -> GaussianTimes:
    return gaussian_times(_clock(net.token_count), cfg.least_signal, cfg.most_signal)


_clock = functools.lru_cache(decoding_clock)


def _one_time(config: Config, net: Network) -> None:
    require(
        not net.two_time,
        f"objective {config['objective']['name']} has one time; set config.model.two_time = False.",
    )


def uniform_diffusion_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective: the likelihood bound, with softened states in the first steps."""
    del flow
    no_teacher(config, teacher)
    _one_time(config, net)
    cfg = settings(config, "objective")
    steps = round(cfg.curriculum * config["train"]["steps"])
    times = _times(cfg, net) if steps else None
    return functools.partial(uniform_loss, net=net, cfg=cfg, softened_steps=steps, times=times)


def consistency_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective: discrete consistency distillation of config.objective.teacher."""
    del flow
    needs_teacher(config, teacher, "uniform_diffusion")
    _one_time(config, net)
    cfg = settings(config, "objective")
    return functools.partial(consistency_loss, net=net, cfg=cfg, times=_times(cfg, net))


def consistency_renewal(config: Config) -> Renewal:
    """Returns the renewal of the teacher in each round."""
    cfg = settings(config, "objective")
    return Renewal(cfg.round_steps, cfg.average_teacher, restart=False)


def uniform_nll(config: Config, net: Network, flow: Flow) -> Callable:
    del flow
    return make_uniform_nll(net, settings(config, "objective"))


UNIFORM_DIFFUSION = Family(
    name="uniform_diffusion",
    objective=uniform_diffusion_objective,
    networks=("dit",),
    kind=lambda net: "uniform diffusion",
    row_nll=uniform_nll,
    row_likelihood=uniform_nll,
    likelihood="upper bound",
    draws=16,
    canvas=True,
)

DISCRETE_CONSISTENCY = dataclasses.replace(
    UNIFORM_DIFFUSION,
    objective=consistency_objective,
    check_teacher=check_time_conditioning,
    renewal=consistency_renewal,
    teachers=("uniform_diffusion",),
    work=lambda config: Work(forward_rows=config["train"]["batch"]),
)
