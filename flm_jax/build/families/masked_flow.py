"""Masked language flows (MLFM): objective, learnt noise schedule, sampler and figures."""

import logging

from flm_jax.build.adapters import adapter_config
from flm_jax.build.families.base import Family
from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.flow import Flow
from flm_jax.losses.base import Objective
from flm_jax.losses.masked_flow import BridgeConfig, bridge_loss
from flm_jax.metrics.masked_flow import make_bridge_nll
from flm_jax.models.lora import join


def bridge_config(config: Config) -> BridgeConfig:
    """Settings of the masked bridge in a configuration."""
    return settings(config, "objective")


def masked_flow_objective(
    config: Config, net: Network, flow: Flow, teacher: Network | None
) -> Objective:
    """Returns the objective of adapters, with the base as their teacher."""
    require(
        teacher is not None and adapter_config(config) is not None,
        "objective masked_flow trains adapters; set config.adapters.base to the workdir of a "
        "masked diffusion model (config.model.name llama, objective masked_diffusion).",
    )
    require(
        config["adapters"]["time"] != "none",
        "config.adapters.time is 'none'; expected gamma, t or progress: a masked flow must be told "
        "how noisy its states are.",
    )
    cfg = bridge_config(config)
    if config["data"]["chat"] and config["data"]["padding"] == "answer" and not cfg.hide_special:
        logging.warning(
            "config.objective.hide_special is False: ends of text behind an answer stay visible "
            "and tell its length; set it to True to learn answers from config.data.chat"
        )

    def objective(params, frozen, batch, key, rows):
        whole = join(frozen.teacher, params)
        now = flow.settled(frozen.tracked)
        return bridge_loss(whole, batch, key, net=net, flow=now, cfg=cfg, rows=rows)

    return objective


MASKED_FLOW = Family(
    name="masked_flow",
    objective=masked_flow_objective,
    networks=("llama",),
    kind=lambda net: "masked flow",
    row_nll=lambda config, net, flow: make_bridge_nll(net, flow, bridge_config(config)),
    row_likelihood=lambda config, net, flow: None,
    likelihood="",
    draws=0,
    adapts="always",
    open_ended=True,
)
