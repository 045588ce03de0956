"""Discrete consistency distillation of uniform-state diffusion (Duo, arXiv 2506.10892v3, alg. 1).

Two states z_t, z_s of a text are the largest entries of Gaussian states with the same noise at two
times, s with more signal: discrete points of one trajectory of the probability flow. The student's
output at z_t learns the teacher's at z_s.
"""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.network import Network
from flm_jax.core.settings import setting
from flm_jax.core.types import Key, Metrics, Params
from flm_jax.denoiser.divergence import DIRECTIONS, divergence
from flm_jax.denoiser.forward import embedded, forward
from flm_jax.denoiser.gaussian_tokens import largest_entries
from flm_jax.flows.masking import written_positions
from flm_jax.flows.time_sampling import Rows, stratified_uniform
from flm_jax.flows.uniform_noise import GaussianTimes
from flm_jax.losses.base import Frozen, number_of, token_weights
from flm_jax.losses.distillation.rounds import RoundsConfig
from flm_jax.losses.uniform_diffusion import UniformConfig, told_signal


@dataclasses.dataclass(frozen=True)
class ConsistencyConfig(UniformConfig, RoundsConfig):
    """Settings of discrete consistency distillation.

    The published times are gamma from -4 to -1 at V = 50,257; signals of 0.9987 and 0.0062 are
    their equivalent for all vocabularies.
    """

    least_signal: float = setting(
        0.0062, "Smallest signal a of times drawn in the Gaussian state.", range="(0, 1)"
    )
    most_signal: float = setting(
        0.9987, "Largest signal a of times drawn in the Gaussian state.", range="(0, 1)"
    )
    first_span: float = setting(
        1 / 512, "Fraction of the time that a step of the first round covers.", range="(0, 1]"
    )
    average_teacher: bool = setting(
        False,
        "Whether a new round's teacher has the averaged parameters; else it has the current ones.",
    )
    direction: str = setting(
        "reverse",
        "Divergence of the student's probabilities p from the teacher's q: forward, KL(q || "
        "p), or reverse, KL(p || q).",
        choices=DIRECTIONS,
    )


def consistency_loss(
    params: Params,
    frozen: Frozen,
    batch: dict[str, jax.Array],
    key: Key,
    rows: Rows,
    *,
    net: Network,
    cfg: ConsistencyConfig,
    times: GaussianTimes,
) -> tuple[jax.Array, Metrics]:
    """Divergence between student and teacher at two states of one trajectory.

    Args:
      params: parameters of the student.
      frozen: `other` holds the teacher's parameters; `step` determines the distance of the two
        times.
      batch: "tokens" int32 [B, L] and "mask" [B, L], 1 where valid; optionally "prompt".
      key: key for times, noise and dropout.
      rows: indices of these rows in the global batch.
      net: network of both.
      cfg: settings.
      times: times of the Gaussian states.

    Returns:
      Mean over valid tokens, nats/token, and metrics {"divergence_nats_per_token"}, the same, and
      "counted".
    """
    time_key, noise_key, dropout_key = jax.random.split(key, 3)
    tokens, span = batch["tokens"], cfg.span(frozen.step)
    late = jnp.minimum(stratified_uniform(time_key, tokens.shape[0], rows) + span, 1.0)
    # Fractions rise with the noise: the student reads the first, the teacher the second state.
    shares = (late, jnp.maximum(late - span, 0.0))
    free = written_positions(batch, cfg.prompt)
    pair = largest_entries(
        rows.fold(noise_key),
        tokens,
        [times.ratio(share) for share in shares],
        net.token_count,
        net.loss_tile,
    )
    seen = [jnp.where(free, state, tokens) for state in pair]
    told = [told_signal(times.signal(share), cfg.time_conditioning) for share in shares]
    ask = lambda params, k, key=None: forward(
        net, params, embedded(net, params, seen[k]), told[k], told[k], key=key
    )
    counted = free & batch["mask"].astype(bool)
    loss, _ = divergence(
        ask(params, 0, rows.fold(dropout_key)),
        ask(jax.lax.stop_gradient(frozen.other), 1),
        token_weights(counted),
        net,
        cfg.direction,
    )
    return loss, {"divergence_nats_per_token": loss, "counted": number_of(counted)}
