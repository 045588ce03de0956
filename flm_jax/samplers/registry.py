"""The samplers by name: settings, sampling function and supported models of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flm_jax.core.errors import require
from flm_jax.core.network import Network
from flm_jax.samplers import (
    autoregressive,
    masked_diffusion,
    masked_flow,
    masked_flow_map,
    posterior_refinement,
    remasking,
    uniform_diffusion,
)
from flm_jax.samplers import x_prediction as x_predictions
from flm_jax.samplers.adaptive import AdaptiveConfig
from flm_jax.samplers.base import SamplerConfig, Samples, Steps
from flm_jax.samplers.euler import EulerConfig, FlowMapConfig, RenoisingConfig
from flm_jax.samplers.flow import check_flow, sample_flow
from flm_jax.samplers.heun import HeunConfig
from flm_jax.samplers.marginal_bridge import MarginalBridgeConfig
from flm_jax.samplers.windows import check_blocks

FLOWS = ("denoising",)
FLOW_MAPS = (
    "semigroup",
    "lagrangian",
    "eulerian",
    "endpoint",
    "residual",
    "merge",
    "distribution_matching",
)
RENOISED = (*FLOW_MAPS, "reinforce_matching")  # what the last is told is always (s, 1)
MASKED_MAPS = ("masked_flow_map", "masked_distribution_matching")
MASKED = ("masked_diffusion", "through_time", "alignment")
UNIFORM = ("uniform_diffusion", "discrete_consistency")


def _any(cfg: Any, net: Network, steps: Steps, objective: Any) -> None:
    """Refuses nothing."""


class Sampler(NamedTuple):
    """One sampler of the registry.

    Attributes:
      settings: class of its settings, a frozen dataclass.
      sample: (key, params, given, extra, *, net, flow, steps, cfg, guides, objective) -> Samples.
        `cfg` holds the sampler's settings, `objective` the settings of the model's objective,
        `extra` the parameters of the networks in `guides` (see `samplers.guides`), and in training
        under "times" the state of learnt times.
      objectives: names of the objectives whose models it samples; the first sampler of an objective
        in `SAMPLERS` is its default.
      check: (cfg, net, steps, objective) -> None; raises UserError for what does not fit, before
        anything is compiled.
      shares: whether `steps` may be a fraction of the tokens to generate, see
        `samplers.base.Share`.
    """

    settings: type[SamplerConfig]
    sample: Callable[..., Samples]
    objectives: tuple[str, ...]
    check: Callable[[Any, Network, Any, Any], None] = _any
    shares: bool = False


SAMPLERS: dict[str, Sampler] = {
    "euler": Sampler(EulerConfig, sample_flow, FLOWS, check_flow),
    "heun": Sampler(HeunConfig, sample_flow, FLOWS, check_flow),
    "adaptive": Sampler(AdaptiveConfig, sample_flow, FLOWS, check_flow),
    "marginal_bridge": Sampler(MarginalBridgeConfig, sample_flow, FLOWS, check_flow),
    "flow_map": Sampler(FlowMapConfig, sample_flow, FLOW_MAPS, check_flow),
    "renoising": Sampler(RenoisingConfig, sample_flow, RENOISED, check_flow),
    "posterior_refinement": Sampler(
        posterior_refinement.PosteriorRefinementConfig,
        posterior_refinement.sample,
        RENOISED,
        posterior_refinement.check_any_order,
    ),
    "ancestral": Sampler(
        masked_diffusion.AncestralConfig, masked_diffusion.sample_by_config, MASKED, shares=True
    ),
    "confidence": Sampler(
        masked_diffusion.ConfidenceConfig,
        masked_diffusion.sample_by_config,
        MASKED,
        check_blocks,
        shares=True,
    ),
    "remasking": Sampler(remasking.RemaskingConfig, remasking.sample, MASKED, shares=True),
    "x_prediction": Sampler(
        x_predictions.XPredictionConfig, x_predictions.sample, MASKED, check_blocks, shares=True
    ),
    "masked_flow": Sampler(masked_flow.MaskedFlowConfig, masked_flow.sample, ("masked_flow",)),
    "masked_flow_map": Sampler(
        masked_flow_map.MaskedFlowMapConfig, masked_flow_map.sample, MASKED_MAPS
    ),
    "uniform_diffusion": Sampler(
        uniform_diffusion.UniformSamplerConfig, uniform_diffusion.sample, UNIFORM
    ),
    "autoregressive": Sampler(
        autoregressive.AutoregressiveConfig, autoregressive.sample, ("autoregressive",)
    ),
}


def samplers_of(objective: str) -> list[str]:
    """Names of the samplers for an objective's models; the first is the default."""
    return [name for name, one in SAMPLERS.items() if objective in one.objectives]


def name_of(cfg: SamplerConfig) -> str:
    """Name of the sampler to which the settings `cfg` belong."""
    found = [name for name, one in SAMPLERS.items() if one.settings is type(cfg)]
    require(bool(found), f"{type(cfg).__name__} is of no sampler; expected settings of SAMPLERS.")
    return found[0]
