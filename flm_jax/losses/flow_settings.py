"""Settings that every objective of a flow from Gaussian noise shares."""

import dataclasses

from flm_jax.core.settings import setting
from flm_jax.losses.clean_context import ContextConfig

WEIGHTINGS = ("equal", "learned")


@dataclasses.dataclass(frozen=True)
class ContextSettings:
    """Which positions are clean in training."""

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

    @property
    def clean(self) -> ContextConfig:
        """Which positions are held clean."""
        return ContextConfig(self.context, self.prompt)


@dataclasses.dataclass(frozen=True)
class WeightedSettings(ContextSettings):
    """Which positions are clean, and how times are weighted."""

    weighting: str = setting(
        "equal", "Weighting of the times in the loss: equal or learned.", choices=WEIGHTINGS
    )
