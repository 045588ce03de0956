"""Group-relative policy optimisation with a reward for every token (arXiv 2402.03300; 2606.29066).

Each prompt is answered G times. The reward of token i of an answer is the answer's own plus lambda
times the progress t_i that the token reached; it is normalised over the G answers of the prompt,
for each token, and weights the clipped ratios of probabilities of all steps of that token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flm_jax.core.types import Metrics

_LEAST_DEVIATION = 1e-4


class Actions(NamedTuple):
    """Actions of a policy in K steps of B answers.

    Attributes:
      features: float32 [K, B, L, F], inputs of the policy.
      drawn: float32 [K, B, L], drawn actions.
      log_probs: float32 [K, B, L], log probabilities of these when they were drawn.
      counted: bool [K, B, L], mask of the draws that had an effect.
    """

    features: Float[Array, "k b l f"]
    drawn: Float[Array, "k b l"]
    log_probs: Float[Array, "k b l"]
    counted: Bool[Array, "k b l"]


def token_rewards(
    answers: Float[Array, "b"], reached: Float[Array, "b l"], completion: float
) -> Float[Array, "b l"]:
    """Rewards answers + lambda t_i of tokens [B, L]; `completion` is lambda."""
    return answers[:, None] + completion * reached


def group_advantages(rewards: Float[Array, "b l"], group: int) -> Float[Array, "b l"]:
    """Rewards minus their mean over the answers of a prompt, divided by their standard deviation.

    Args:
      rewards: rewards [B, L]; the answers of a prompt are adjacent, in groups of `group` rows.

    Returns:
      Advantages [B, L]; 0 where all answers of a prompt have equal rewards.
    """
    grouped = rewards.reshape(-1, group, rewards.shape[1])
    gap = grouped - jnp.mean(grouped, axis=1, keepdims=True)
    # Floored, so that equal rewards give 0 and not 0/0.
    deviation = jnp.sqrt(jnp.mean(gap**2, axis=1, keepdims=True))
    return (gap / jnp.maximum(deviation, _LEAST_DEVIATION)).reshape(rewards.shape)


def clipped_loss(
    log_probs: Float[Array, "k b l"],
    before: Float[Array, "k b l"],
    advantages: Float[Array, "b l"],
    counted: Bool[Array, "k b l"],
    clip: float,
) -> tuple[jax.Array, Metrics]:
    """Clipped loss -min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = exp(log_probs - before).

    Args:
      log_probs: log probabilities of the drawn actions under the trained policy.
      before: log probabilities when the actions were drawn.
      advantages: advantages of each token, the same at all its steps.
      counted: mask of the actions that had an effect.
      clip: clipping range eps.

    Returns:
      Mean over the actions that count, and metrics: the mean ratio, and the fraction that is
      clipped.
    """
    weights = counted.astype(jnp.float32)
    weights = weights / jnp.maximum(jnp.sum(weights), 1.0)
    # Masked before exp: an infinite ratio without effect would give gradients 0 * inf = NaN.
    ratio = jnp.exp(jnp.where(counted, log_probs - before, 0.0))
    bounded = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    # The minimum bounds what is gained by leaving the range, and never what is lost.
    gain = jnp.minimum(ratio * advantages[None], bounded * advantages[None])
    metrics = {
        "ratio": jnp.sum(weights * ratio),
        "clipped_share": jnp.sum(weights * (gain < ratio * advantages[None])),
    }
    return -jnp.sum(weights * gain), metrics
