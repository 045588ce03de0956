"""Builds the sampler of config.sampler: settings by name, and the function for a model."""

import functools
from collections.abc import Callable
from typing import Any

from flm_jax.build.families.registry import objective_name
from flm_jax.config.schema import check_owned, defaults, settings
from flm_jax.core.errors import one_of, require
from flm_jax.core.network import Network
from flm_jax.core.settings import plain, read_settings
from flm_jax.core.types import Config
from flm_jax.flows.flow import Flow
from flm_jax.samplers.base import SamplerConfig, Share, Steps
from flm_jax.samplers.guides import NO_GUIDES, Guides
from flm_jax.samplers.registry import SAMPLERS, name_of, samplers_of


def model_sampler(config: Config) -> SamplerConfig:
    """Settings of config.sampler."""
    return settings(config, "sampler")


def choose_sampler(config: Config, name: str = "", **changes: Any) -> SamplerConfig:
    """Settings of a model's sampler, or of another one of its objective, with changes.

    Args:
      config: configuration of the model.
      name: key of `SAMPLERS`; "" for the sampler of config.sampler.
      changes: values of settings by name.

    Raises:
      UserError: a sampler that the model's objective does not have, a setting that the sampler does
        not have (the message names the one that has it), or a value that it refuses.
    """
    own = config["sampler"]
    name = name or own["name"]
    one_of("sampler", name, SAMPLERS)
    _check_samples(config, name)
    values = dict(own) if name == own["name"] else defaults("sampler", name)
    values.pop("name")
    check_owned("sampler", name, changes, "sampler")
    for key in changes:
        one_of(f"setting of sampler {name}", key, values)
    return read_settings(SAMPLERS[name].settings, values | changes, "sampler")


def sampler_record(cfg: SamplerConfig) -> dict[str, Any]:
    """Name and settings of a sampler, for records."""
    return {"name": name_of(cfg)} | plain(cfg)


def make_sampler(
    config: Config,
    net: Network,
    flow: Flow,
    steps: Steps,
    cfg: SamplerConfig | None = None,
    guides: Guides = NO_GUIDES,
) -> Callable:
    """Builds the sampler of a model: (key, params, given, extra) -> Samples, to be jitted.

    Args:
      config, net, flow: configuration, network and flow of the model.
      steps: number of steps of the sampler, most often network calls, or their fraction of the
        tokens to generate; static.
      cfg: settings of the sampler; None for config.sampler.
      guides: networks that `cfg` names.

    Raises:
      UserError: settings that do not fit the model or the steps.
    """
    cfg = model_sampler(config) if cfg is None else cfg
    name = name_of(cfg)
    _check_samples(config, name)
    objective = settings(config, "objective")
    require(
        SAMPLERS[name].shares or not isinstance(steps, Share),
        f"got steps={steps} with sampler {name}; expected a whole number: shares of the tokens to "
        f"write are for {' and '.join(key for key, one in SAMPLERS.items() if one.shares)}.",
    )
    SAMPLERS[name].check(cfg, net, steps, objective)
    how = {"net": net, "flow": flow, "steps": steps, "cfg": cfg, "guides": guides}
    return functools.partial(SAMPLERS[name].sample, objective=objective, **how)


def _check_samples(config: Config, name: str) -> None:
    goal = objective_name(config)
    require(
        goal != "residual",
        "a model of objective residual writes no text by itself; distil it and its flow into a "
        "flow map: config.objective.name = 'merge', config.objective.residual = its workdir.",
    )
    valid = samplers_of(goal)
    require(
        name in valid,
        f"got sampler {name!r} for a model of objective {goal}; expected {' or '.join(valid)}.",
    )
