"""Masked diffusion (MDLM, LLaDA): objective, samplers and likelihood bound."""

import functools
from collections.abc import Callable

from flm_jax.build.families.base import Family, no_teacher
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Objective
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_loss
from flm_jax.metrics.likelihood import make_masked_nll


def masked_config(config: Config) -> MaskedConfig:
    """Settings of masked diffusion; for an aligned model, its base's settings."""
    cfg = settings(config, "objective")
    if isinstance(cfg, MaskedConfig):
        return cfg
    return MaskedConfig(time_conditioning=cfg.time_conditioning)


def masked_diffusion_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    del flow
    no_teacher(config, teacher)
    check_masked_network(config, net)
    return functools.partial(masked_loss, net=net, cfg=masked_config(config))


def check_masked_network(config: Config, net: Network) -> None:
    """Refuses networks with two times, and a llama with time conditioning."""
    require(
        not net.two_time,
        f"objective {config['objective']['name']} has one time; set config.model.two_time = False.",
    )
    cfg = masked_config(config)
    require(
        not cfg.time_conditioning or config["model"]["name"] != "llama",
        "a llama network is not told the time; set config.objective.time_conditioning = False.",
    )


def masked_nll(config: Config, net: Network, flow: Flow) -> Callable:
    del flow
    return make_masked_nll(net, masked_config(config))


MASKED_DIFFUSION = Family(
    name="masked_diffusion",
    objective=masked_diffusion_objective,
    networks=("dit", "llama"),
    kind=lambda net: "masked diffusion",
    row_nll=masked_nll,
    row_likelihood=masked_nll,
    likelihood="upper bound",
    draws=16,
    anchored=True,
    takes_step_policy=True,
    canvas=True,
)
