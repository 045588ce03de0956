"""Builds the flow of config.flow, and decides which positions are clean in training."""

import functools

from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.types import Config, Tracker
from flm_jax.flows.clocks import CLOCKS
from flm_jax.flows.flow import ClockTold, Flow, GammaTold, Uniform
from flm_jax.flows.gamma_state import GammaConfig, fresh_state
from flm_jax.flows.noise import NoNoise, OneHotNoise, UnitNoise
from flm_jax.flows.noise_schedule import LearntTimes, update_state
from flm_jax.flows.registry import FLOWS
from flm_jax.flows.settings import LEARNT
from flm_jax.losses.flow_settings import ContextSettings

NOISES = {
    "projected": OneHotNoise(),
    "onehot": OneHotNoise(in_vocabulary=True),
    "unit": UnitNoise(),
    "none": NoNoise(),
}


def make_flow(config: Config, vocab_size: int) -> Flow:
    """Builds the flow of a configuration, without the state of its learnt times."""
    cfg = settings(config, "flow")
    path = FLOWS[config["flow"]["name"]].path(cfg)
    if cfg.clock == LEARNT:
        told = GammaTold(path, cfg.law.low, cfg.law.high)
        times = LearntTimes(cfg.law, told, mixed=path.anchored)
        return Flow(path, NOISES[cfg.noise], times, told)
    clock = CLOCKS[cfg.clock](vocab_size, config["model"]["dim"])
    return Flow(path, NOISES[cfg.noise], Uniform(), ClockTold(clock))


def learnt_law(config: Config) -> GammaConfig | None:
    """Settings of learnt times, whose state belongs to the model; None without learnt times."""
    cfg = settings(config, "flow")
    return cfg.law if cfg.clock == LEARNT else None


def times_tracker(config: Config) -> Tracker | None:
    """Returns the tracker of that state, with statistics from the objective; None for none."""
    law = learnt_law(config)
    if law is None:
        return None
    return Tracker(functools.partial(fresh_state, law), functools.partial(update_state, cfg=law))


def prediction(config: Config) -> str:
    """Meaning of the network's output, one of `losses.denoising.PREDICTIONS`."""
    return getattr(settings(config, "objective"), "prediction", "probabilities")


def any_order(config: Config) -> bool:
    """Whether positions are kept clean in training."""
    cfg = settings(config, "objective")
    return isinstance(cfg, ContextSettings) and (cfg.context > 0.0 or cfg.prompt > 0)


def check_prompt(config: Config) -> None:
    """Refuses prompts that leave nothing to learn, or that the model could not be given.

    Args:
      config: complete configuration.
    """
    given = [key for key in ("chat", "task_prompts") if config["data"].get(key)]
    require(
        not given
        or not isinstance(settings(config, "objective"), ContextSettings)
        or any_order(config),
        f"config.data.{given[0] if given else ''} gives each row a prompt, which a flow reads only "
        "if it is trained with clean context; expected config.objective.context above 0, such as "
        "0.5.",
    )
    prompt = getattr(settings(config, "objective"), "prompt", 0)
    length = config["model"]["length"]
    require(
        prompt < length,
        f"config.objective.prompt is {prompt}; expected 0 to {length - 1}, fewer than "
        f"config.model.length = {length}.",
    )
