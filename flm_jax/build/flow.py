"""The clock, the prediction and the clean context of a flow, from its configuration."""

from collections.abc import Callable

from flm_jax.core.errors import one_of, require
from flm_jax.core.types import Config
from flm_jax.flows.clocks import Clock, decoding_clock, identity_clock
from flm_jax.losses.clean_context import ContextConfig
from flm_jax.losses.regression import PREDICTIONS

# (V, D) -> the clock.
CLOCKS: dict[str, Callable[[int, int], Clock]] = {
    "decoding": lambda vocab_size, dim: decoding_clock(vocab_size),
    "embedded": decoding_clock,
    "identity": lambda vocab_size, dim: identity_clock(),
}


def make_clock(config: Config, vocab_size: int) -> Clock:
    """The clock of a configuration; a workdir's may be older than the key."""
    name = config["objective"].get("clock", "decoding")
    make = CLOCKS[one_of("config.objective.clock", name, CLOCKS)]
    return make(vocab_size, config["model"]["dim"])


def prediction(config: Config) -> str:
    """What the network's output means; a workdir's configuration may be older than the key."""
    given = config["objective"].get("prediction", "probabilities")
    return one_of("config.objective.prediction", given, PREDICTIONS)


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
