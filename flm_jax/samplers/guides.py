"""Helper models that a sampler is handed besides the model itself; nothing is loaded here."""

from typing import NamedTuple

from flm_jax.core.network import Network
from flm_jax.samplers.reward_guidance import Reward
from flm_jax.samplers.x_prediction import Stepper


class Guides(NamedTuple):
    """Helper models, opened by `inference.guides`; parameters come as `extra` at run time.

    Attributes:
      weak: network of extra["weak"], which autoguidance guides away from; without extra["weak"]
        it is the model itself with dropout.
      reward: scored with extra["reward"].
      stepper: step sizes of x-prediction, with its parameters.
    """

    weak: Network | None = None
    reward: Reward | None = None
    stepper: Stepper | None = None


NO_GUIDES = Guides()
