"""Masked diffusion (MDLM, LLaDA): objective, samplers and likelihood bound."""

import functools
from collections.abc import Callable
from typing import Any

from flm_jax.build.families.base import Family, no_teacher
from flm_jax.build.sampler import OF_REFINEMENT, OF_X_PREDICTION, Options, refuse, unsteered
from flm_jax.config.schema import settings
from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.types import Config
from flm_jax.flows.clocks import Clock
from flm_jax.losses.base import Objective
from flm_jax.losses.masked_diffusion import MaskedConfig, masked_loss
from flm_jax.metrics.likelihood import make_masked_nll
from flm_jax.samplers import masked_diffusion, x_prediction
from flm_jax.samplers.guides import NO_GUIDES, Guides


def masked_config(config: Config) -> MaskedConfig:
    """The settings of masked diffusion; of an aligned model, those that its base had."""
    cfg = settings(config, "objective")
    if isinstance(cfg, MaskedConfig):
        return cfg
    return MaskedConfig(time_conditioning=cfg.time_conditioning)


def masked_diffusion_objective(
    config: Config, net: Network, clock: Clock, teacher: Network | None
) -> Objective:
    del clock
    no_teacher(config, teacher)
    require(
        not net.two_time,
        "objective masked_diffusion has one time; set config.model.two_time = False.",
    )
    cfg = masked_config(config)
    require(
        not cfg.time_conditioning or config["model"]["name"] != "llama",
        "a llama network is not told the time; set config.objective.time_conditioning = False.",
    )
    return functools.partial(masked_loss, net=net, cfg=cfg)


def masked_sampler(
    config: Config,
    net: Network,
    clock: Clock,
    steps: int,
    options: Options,
    guides: Guides = NO_GUIDES,
) -> Callable:
    del clock
    refuse(options, "masked diffusion", *OF_REFINEMENT)
    unsteered(options, "masked diffusion")
    methods = {
        "ancestral": masked_diffusion.sample_ancestral,
        "confidence": masked_diffusion.sample_confident,
    }
    one_of("method", options.method, (*methods, "flow"))
    more = {}
    if options.method == "ancestral":
        refuse(options, "method ancestral", "block_length")
    else:
        require(
            0 <= options.block_length <= net.max_length,
            f"got block_length={options.block_length}; expected 0 (one block) to "
            f"{net.max_length} tokens.",
        )
        more["block_length"] = options.block_length
    more |= {"steps": steps, "time_conditioning": masked_config(config).time_conditioning}
    if options.method == "flow":
        return _x_prediction(net, options, more, guides)
    refuse(options, f"method {options.method}", "policy", *OF_X_PREDICTION)
    more["choice"] = options.choice(1.0)

    def draw(key, params, given, extra=None):
        return methods[options.method](key, net, params, given=given, **more)

    return draw


def _x_prediction(net: Network, options: Options, more: dict[str, Any], guides: Guides) -> Callable:
    refuse(options, "method flow", "temperature", "top_p")
    how = x_prediction.Flowing(**{name: getattr(options, name) for name in OF_X_PREDICTION})
    if options.policy:
        refuse(options, "method flow with a policy", "step_size")
        more["stepper"] = guides.stepper

    def draw(key, params, given, extra=None):
        return x_prediction.sample_x_prediction(net, params, given=given, how=how, **more)

    return draw


def masked_nll(config: Config, net: Network, clock: Clock) -> Callable:
    del clock
    return make_masked_nll(net, masked_config(config))


MASKED_DIFFUSION = Family(
    name="masked_diffusion",
    objective=masked_diffusion_objective,
    networks=("dit", "llama"),
    kind=lambda net: "masked diffusion",
    sampler=masked_sampler,
    row_nll=masked_nll,
    row_likelihood=masked_nll,
    likelihood="upper bound",
    draws=16,
    anchored=True,
    takes_step_policy=True,
)
