"""A policy of step sizes a: a Beta distribution over log a from 8 features of a token.

Source: arXiv 2606.29066, eq. 15. An encoder of two SiLU layers has two linear heads, f and g; with
u ~ Beta(k m, k (1 - m)),

    a = 2^(log2 a_min + u (log2 a_max - log2 a_min)),   m = .05 + .9 sigmoid f,
    k = k_min + (k_max - k_min) sigmoid g.

In decoding, a is its expectation: with s = ln(a_max / a_min) it is a_min E[e^(s u)], a_min times
the moment generating function of the Beta distribution,

    sum_n  s^n / n!  prod_(i < n) (k m + i) / (k + i)      (Kummer's 1F1(k m; k; s)).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from flm_jax.core.errors import require
from flm_jax.core.settings import check_values, setting
from flm_jax.core.types import Key, Params
from flm_jax.models.functional import pure

FEATURES = 8
_TERMS = 64  # of the series; beyond s = 16 more would be needed
_EDGE = 1e-5  # draws are kept so far from 0 and 1, where densities may be infinite


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Settings of a policy; its initial mean step size must be one that the mean m can take."""

    hidden: int = setting(64, "Width of the encoder's layers.", range="[1, inf)")
    layers: int = setting(2, "Number of layers of the encoder.", choices=(1, 2))
    least_step: float = setting(1 / 256, "Smallest step size a.", range="(0, 1]")
    most_step: float = setting(1.0, "Largest step size a.", range="(0, 1]")
    least_concentration: float = setting(
        2.0, "Smallest concentration of the Beta distribution.", range="(0, inf)"
    )
    most_concentration: float = setting(
        50.0, "Largest concentration of the Beta distribution.", range="(0, inf)"
    )
    start: float = setting(0.5, "Mean step size of a freshly initialised policy.", range="(0, 1]")

    def __post_init__(self):
        check_values(self, "config.policy")
        require(
            0.0 < self.least_step < self.most_step <= 1.0 and self.spread <= 16.0,
            f"config.policy has least_step {self.least_step}, most_step {self.most_step}; expected "
            "0 < least_step < most_step <= 1, and least_step not below e^-16 of most_step.",
        )
        require(
            0.0 < self.least_concentration < self.most_concentration,
            f"config.policy has concentrations {self.least_concentration} to "
            f"{self.most_concentration}; expected more than 0, and rising.",
        )
        low, high = (self.least_step * math.exp(self.spread * m) for m in (0.05, 0.95))
        require(
            low < self.start < high,
            f"config.policy.start is {self.start}; means within (.05, .95) reach from {low:.4f} to "
            f"{high:.4f}.",
        )

    @property
    def spread(self) -> float:
        """Logarithm of the range, s = ln(a_max / a_min)."""
        return math.log(self.most_step / self.least_step)


class Law(NamedTuple):
    """Beta distributions, one for each token: both parameters, float32, of the same shape."""

    alpha: Float[Array, "..."]
    beta: Float[Array, "..."]


class Policy(NamedTuple):
    """A policy as two pure functions.

    Attributes:
      init: function from a key to parameters.
      law: function from (parameters, features [..., 8]) to a Law [...].
    """

    init: Callable[[Key], Params]
    law: Callable[[Params, jax.Array], Law]


class _Net(nnx.Module):
    """Encoder; the two columns of `out` are the two heads."""

    def __init__(self, cfg: PolicyConfig, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(FEATURES, cfg.hidden, rngs=rngs)
        self.second = nnx.Linear(cfg.hidden, cfg.hidden, rngs=rngs) if cfg.layers == 2 else None
        self.out = nnx.Linear(cfg.hidden, 2, kernel_init=nnx.initializers.zeros, rngs=rngs)

    def __call__(self, features: jax.Array) -> jax.Array:
        seen = jax.nn.silu(self.hidden(features))
        if self.second is not None:
            seen = jax.nn.silu(self.second(seen))
        return self.out(seen)


def policy(cfg: PolicyConfig) -> Policy:
    """Builds a policy; its initial distribution is the same for all tokens."""
    init, bind = pure(lambda rngs: _Net(cfg, rngs))
    # Solves a_min e^(s m) = start for the logit of m; the zero kernel of `out` makes it every
    # token's m.
    share = (math.log(cfg.start / cfg.least_step) / cfg.spread - 0.05) / 0.9
    shift = math.log(share / (1.0 - share))

    def law(params: Params, features: jax.Array) -> Law:
        out = bind(params)(features)
        mean = 0.05 + 0.9 * jax.nn.sigmoid(out[..., 0] + shift)
        width = cfg.most_concentration - cfg.least_concentration
        concentration = cfg.least_concentration + width * jax.nn.sigmoid(out[..., 1])
        return Law(concentration * mean, concentration * (1.0 - mean))

    return Policy(init, law)


def draw(key: Key, law: Law) -> Float[Array, "..."]:
    """Draws u from the Beta distribution, clipped to within (0, 1)."""
    return jnp.clip(jax.random.beta(key, law.alpha, law.beta), _EDGE, 1.0 - _EDGE)


def log_prob(law: Law, u: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log density of the Beta distribution at u in (0, 1), differentiable in its parameters."""
    norm = (
        jax.scipy.special.gammaln(law.alpha)
        + jax.scipy.special.gammaln(law.beta)
        - jax.scipy.special.gammaln(law.alpha + law.beta)
    )
    return (law.alpha - 1.0) * jnp.log(u) + (law.beta - 1.0) * jnp.log1p(-u) - norm


def step_size(cfg: PolicyConfig, u: Float[Array, "..."]) -> Float[Array, "..."]:
    """Step size a = a_min (a_max / a_min)^u."""
    return jnp.minimum(cfg.least_step * jnp.exp(cfg.spread * u), cfg.most_step)


def expected_step_size(cfg: PolicyConfig, law: Law) -> Float[Array, "..."]:
    """Expectation E[a] by the series above, whose terms are all positive, in Horner's scheme."""
    total = jnp.ones_like(law.alpha)
    concentration = law.alpha + law.beta
    for n in reversed(range(_TERMS)):
        # Term n + 1 over term n, with alpha = k m: the sum is 1 + r_0 (1 + r_1 (1 + ...)).
        ratio = (law.alpha + n) / (concentration + n)
        total = 1.0 + total * ratio * (cfg.spread / (n + 1))
    return jnp.clip(cfg.least_step * total, cfg.least_step, cfg.most_step)
