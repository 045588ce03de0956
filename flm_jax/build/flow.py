"""The clock and the clean context of a flow, from its configuration."""

from flm_jax.config.schema import settings
from flm_jax.core.errors import require
from flm_jax.core.types import Config
from flm_jax.flows.clocks import CLOCKS, Clock, identity_clock
from flm_jax.losses.flow_settings import ClockedConfig


def flow_settings(config: Config) -> ClockedConfig | None:
    """The settings of an objective of a flow over one-hot tokens; None for any other objective."""
    cfg = settings(config, "objective")
    return cfg if isinstance(cfg, ClockedConfig) else None


def make_clock(config: Config, vocab_size: int) -> Clock:
    """The clock of a configuration; that of an objective without one is the identity."""
    cfg = flow_settings(config)
    if cfg is None:
        return identity_clock()
    return CLOCKS[cfg.clock](vocab_size, config["model"]["dim"])


def prediction(config: Config) -> str:
    """What the network's output means, of `losses.denoising.PREDICTIONS`."""
    return getattr(settings(config, "objective"), "prediction", "probabilities")


def any_order(config: Config) -> bool:
    """Whether positions are held clean in training."""
    cfg = flow_settings(config)
    return cfg is not None and (cfg.context > 0.0 or cfg.prompt > 0)


def check_prompt(config: Config) -> None:
    """Refuses a config.objective.prompt that leaves nothing to learn."""
    prompt = getattr(settings(config, "objective"), "prompt", 0)
    length = config["model"]["length"]
    require(
        prompt < length,
        f"config.objective.prompt is {prompt}; expected 0 to {length - 1}, fewer than "
        f"config.model.length = {length}.",
    )
