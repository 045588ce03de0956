"""Settings that every objective of a flow over one-hot tokens shares."""

import dataclasses

from flm_jax.core.settings import setting
from flm_jax.flows.clocks import CLOCKS
from flm_jax.flows.noising import NOISE_KINDS
from flm_jax.losses.clean_context import ContextConfig

WEIGHTINGS = ("equal", "learned")


@dataclasses.dataclass(frozen=True)
class ClockedConfig:
    """How times of training are drawn, and which positions are clean."""

    clock: str = setting(
        "decoding",
        "clock tau(t) that times are drawn in: decoding (error of x_t), embedded (error of "
        "E^T x_t), or identity",
        choices=CLOCKS,
    )
    context: float = setting(
        0.0,
        "fraction of rows in which a random subset of positions is held clean, which makes the "
        "flow any-order",
        range="[0, 1]",
    )
    prompt: int = setting(
        0,
        "first positions of each sequence, which are always clean",
        unit="tokens",
        range="[0, inf)",
    )

    @property
    def clean(self) -> ContextConfig:
        """Which positions are held clean."""
        return ContextConfig(self.context, self.prompt)


@dataclasses.dataclass(frozen=True)
class FlowConfig(ClockedConfig):
    """How states of training are drawn, and how their times are weighted."""

    noise: str = setting(
        "projected",
        "where noise is drawn: projected, as E^T eps in R^D; onehot, in R^V as the reference does",
        choices=NOISE_KINDS,
    )
    weighting: str = setting(
        "equal", "weights of the times in the loss, equal or learned", choices=WEIGHTINGS
    )
