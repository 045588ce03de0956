"""Settings of flows: config.flow by the name of its path."""

import dataclasses

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.flows.clocks import CLOCKS
from flm_jax.flows.gamma_state import GammaConfig
from flm_jax.flows.interpolants.masked_bridge import SIGMA

NOISES = ("projected", "onehot", "unit")
LEARNT = "learnt"
# Of embeddings whose length is near sqrt(D), tokens become readable at gamma of 1 to 6.
EMBEDDING_LAW = GammaConfig(
    low=-5.0,
    high=14.0,
    normal=0.0,
    learnt="gumbel",
    before="uniform",
    bins=64,
    decays="batch",
    refit_every=200,
    knot_rate=0.05,
    least_cell=0.0,
    least_examples=0.0,
    least_scale=0.05,
)


@dataclasses.dataclass(frozen=True)
class GaussianConfig:
    """A path from Gaussian noise to data."""

    noise: str = setting(
        "projected",
        "Noise xi: projected (E^T eps, noise of one-hot vectors, drawn in R^D), onehot (the "
        "same, drawn in R^V as in the reference) or unit (N(0, I) in the embedding space).",
        choices=NOISES,
    )
    clock: str = setting(
        "decoding",
        "Time variable of training draws, sampling grids and time conditioning: decoding "
        "(error of x_t), embedded (error of E^T x_t), identity (t) or learnt (gamma = log "
        "noise over signal, distributed as below).",
        choices=(*CLOCKS, LEARNT),
    )
    law: GammaConfig = setting(EMBEDDING_LAW, "Distribution of gamma under the learnt clock.")

    def __post_init__(self):
        require(
            self.clock in ("identity", LEARNT) or self.noise != "unit",
            f"config.flow.clock {self.clock!r} counts errors of decoding one-hot noise, got "
            "config.flow.noise 'unit'; set clock to 'learnt' or 'identity'.",
        )


@dataclasses.dataclass(frozen=True)
class LinearConfig(GaussianConfig):
    """The linear path t E[x] + (1-t) xi, of FLM and FMLM by default."""


@dataclasses.dataclass(frozen=True)
class CurvedConfig(GaussianConfig):
    """A path that is not linear: an embedding flow by default."""

    noise: str = setting(
        "unit",
        "Noise xi: unit (N(0, I) in the embedding space), projected (E^T eps, noise of "
        "one-hot vectors, drawn in R^D) or onehot (the same, drawn in R^V).",
        choices=NOISES,
    )
    clock: str = setting(
        LEARNT,
        "Time variable of training draws, sampling grids and time conditioning: learnt (gamma"
        " = log noise over signal, distributed as below) or identity (t).",
        choices=("identity", LEARNT),
    )


@dataclasses.dataclass(frozen=True)
class VariancePreservingConfig(CurvedConfig):
    """The variance-preserving path sin(pi t/2) E[x] + cos(pi t/2) xi."""


@dataclasses.dataclass(frozen=True)
class MaskedBridgeConfig:
    """The Brownian bridge from the mask embedding."""

    sigma: float = setting(SIGMA, "Scale of the bridge's noise.", range="(0, inf)")
    redraw: bool = setting(
        True,
        "Whether sampling redraws the bridge's noise in each step; else it follows the "
        "probability-flow ODE.",
    )
    law: GammaConfig = setting(GammaConfig(), "Distribution of gamma, log noise over signal.")
    noise: str = "unit"
    clock: str = LEARNT


@dataclasses.dataclass(frozen=True)
class MaskAnchoredConfig:
    """The straight path from the mask embedding to a token, without noise."""

    noise: str = "none"
    clock: str = "identity"


@dataclasses.dataclass(frozen=True)
class NoFlowConfig:
    """No path of embeddings, for autoregression and for diffusion of tokens."""

    noise: str = "none"
    clock: str = "identity"
