"""Helper models that a sampler uses besides the model itself; nothing is loaded here."""

from typing import NamedTuple

from flm_jax.core.network import Network
from flm_jax.samplers.reward_guidance import Reward
from flm_jax.samplers.x_prediction import Stepper


class Guides(NamedTuple):
    """Helper models, opened by `inference.guides`; their parameters come as `extra` at run time.

    Attributes:
      weak: network with parameters extra["weak"], from which autoguidance guides away; without
        extra["weak"] it is the model itself with dropout.
      reward: reward with parameters extra["reward"].
      stepper: step sizes of x-prediction, including parameters.
    """

    weak: Network | None = None
    reward: Reward | None = None
    stepper: Stepper | None = None


NO_GUIDES = Guides()
