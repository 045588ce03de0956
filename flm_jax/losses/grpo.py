"""Group-relative policy optimisation with a reward for every token (arXiv 2402.03300; 2606.29066).

Each prompt is answered G times. The reward of token i of an answer is the answer's own plus lambda
times the progress t_i that the token reached; it is normalised over the G answers of the prompt,
token by token, and weights the ratio of probabilities of all steps of that token, clipped.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flm_jax.core.types import Metrics

_LEAST_DEVIATION = 1e-4


class Actions(NamedTuple):
    """What a policy did in K steps of B answers.

    Attributes:
      features: float32 [K, B, L, F], what it saw.
      drawn: float32 [K, B, L], what it drew; log_probs: of these, as it was then.
      counted: bool [K, B, L], where the draw had an effect.
    """

    features: Float[Array, "k b l f"]
    drawn: Float[Array, "k b l"]
    log_probs: Float[Array, "k b l"]
    counted: Bool[Array, "k b l"]


def token_rewards(
    answers: Float[Array, "b"], reached: Float[Array, "b l"], completion: float
) -> Float[Array, "b l"]:
    """answers + lambda t_i; `completion` is lambda."""
    return answers[:, None] + completion * reached


def group_advantages(rewards: Float[Array, "b l"], group: int) -> Float[Array, "b l"]:
    """Rewards less their mean over the answers of a prompt, over their standard deviation.

    Args:
      rewards: the answers of a prompt stand together, in groups of `group` rows.

    Returns:
      [B, L]; 0 where all answers of a prompt fare alike.
    """
    grouped = rewards.reshape(-1, group, rewards.shape[1])
    gap = grouped - jnp.mean(grouped, axis=1, keepdims=True)
    deviation = jnp.sqrt(jnp.mean(gap**2, axis=1, keepdims=True))
    return (gap / jnp.maximum(deviation, _LEAST_DEVIATION)).reshape(rewards.shape)


def clipped_loss(
    log_probs: Float[Array, "k b l"],
    before: Float[Array, "k b l"],
    advantages: Float[Array, "b l"],
    counted: Bool[Array, "k b l"],
    clip: float,
) -> tuple[jax.Array, Metrics]:
    """-min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = exp(log_probs - before).

    Args:
      log_probs: of the drawn actions under the policy that is trained; before: as they were drawn.
      advantages: of each token, the same at all its steps.
      counted: actions that had an effect.
      clip: eps.

    Returns:
      Mean over the actions that count, and metrics: the mean ratio, and the share that is clipped.
    """
    weights = counted.astype(jnp.float32)
    weights = weights / jnp.maximum(jnp.sum(weights), 1.0)
    ratio = jnp.exp(jnp.where(counted, log_probs - before, 0.0))
    bounded = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    gain = jnp.minimum(ratio * advantages[None], bounded * advantages[None])
    metrics = {
        "ratio": jnp.sum(weights * ratio),
        "clipped_share": jnp.sum(weights * (gain < ratio * advantages[None])),
    }
    return -jnp.sum(weights * gain), metrics
