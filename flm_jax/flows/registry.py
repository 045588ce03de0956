"""The flows by the name of their path: settings, interpolant and objectives."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flm_jax.flows.interpolants.base import Interpolant
from flm_jax.flows.interpolants.linear import Linear
from flm_jax.flows.interpolants.mask_anchored import MaskAnchored
from flm_jax.flows.interpolants.masked_bridge import MaskedBridge, MaskedBridgeOde
from flm_jax.flows.interpolants.variance_preserving import VariancePreserving
from flm_jax.flows.settings import (
    LinearConfig,
    MaskAnchoredConfig,
    MaskedBridgeConfig,
    NoFlowConfig,
    VariancePreservingConfig,
)

GAUSSIAN = (
    "denoising",
    "semigroup",
    "lagrangian",
    "eulerian",
    "endpoint",
    "residual",
    "merge",
    "distribution_matching",
    "reinforce_matching",
)
BRIDGED = ("masked_flow", "masked_flow_map", "masked_distribution_matching")
MASKED = ("masked_diffusion", "through_time", "alignment")
NONE = ("autoregressive", "uniform_diffusion", "discrete_consistency")


class FlowKind(NamedTuple):
    """One flow of the registry.

    Attributes:
      settings: class of its settings, a frozen dataclass.
      path: function from settings to an interpolant.
      objectives: names of the objectives that learn it; the first flow of an objective in `FLOWS`
        is its default.
    """

    settings: type
    path: Callable[[Any], Interpolant]
    objectives: tuple[str, ...]


def _bridge(cfg: MaskedBridgeConfig) -> Interpolant:
    return MaskedBridge(cfg.sigma) if cfg.redraw else MaskedBridgeOde(cfg.sigma)


FLOWS: dict[str, FlowKind] = {
    "linear": FlowKind(LinearConfig, lambda cfg: Linear(), GAUSSIAN),
    "variance_preserving": FlowKind(
        VariancePreservingConfig, lambda cfg: VariancePreserving(), GAUSSIAN
    ),
    "masked_bridge": FlowKind(MaskedBridgeConfig, _bridge, BRIDGED),
    "mask_anchored": FlowKind(MaskAnchoredConfig, lambda cfg: MaskAnchored(), MASKED),
    "none": FlowKind(NoFlowConfig, lambda cfg: MaskAnchored(), NONE),
}


def flows_of(objective: str) -> list[str]:
    """Names of the flows that an objective learns; the first is the default."""
    return [name for name, one in FLOWS.items() if objective in one.objectives]
