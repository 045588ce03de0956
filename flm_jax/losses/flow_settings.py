"""Settings that all objectives of a flow from Gaussian noise share."""

import dataclasses

from flm_jax.core.settings import setting
from flm_jax.losses.clean_context import ContextConfig

WEIGHTINGS = ("equal", "learned")


@dataclasses.dataclass(frozen=True)
class ContextSettings:
    """Settings of the positions that are clean in training."""

    context: float = setting(
        0.0,
        "Fraction of rows in which a random subset of positions is kept clean, which makes "
        "the flow any-order.",
        range="[0, 1]",
    )
    prompt: int = setting(
        0,
        "Number of first positions of each sequence that are always clean.",
        unit="tokens",
        range="[0, inf)",
    )
    context_dropout: float = setting(
        0.0,
        "Fraction of rows in which no position is clean, neither prompt nor random context; "
        "classifier-free guidance needs such rows where every text has a prompt.",
        range="[0, 1)",
    )

    @property
    def clean(self) -> ContextConfig:
        """Choice of the positions that are kept clean."""
        return ContextConfig(self.context, self.prompt, self.context_dropout)


@dataclasses.dataclass(frozen=True)
class WeightedSettings(ContextSettings):
    """Settings of clean positions and of the weighting of times."""

    weighting: str = setting(
        "equal", "Weighting of the times in the loss: equal or learned.", choices=WEIGHTINGS
    )
