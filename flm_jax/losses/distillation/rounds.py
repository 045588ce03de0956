"""Distillation in rounds: steps double in each, and the last round's student is the teacher."""

import dataclasses

import jax
import jax.numpy as jnp

from flm_jax.core.settings import setting
from flm_jax.denoiser.divergence import DIRECTIONS


@dataclasses.dataclass(frozen=True)
class RoundsConfig:
    """Settings of distillation in rounds."""

    teacher: str = setting("", "Workdir of the model to distil.")
    first_span: float = setting(
        1 / 1024, "Fraction of the time that a step of the first round covers.", range="(0, 1]"
    )
    round_steps: int = setting(
        10_000, "Number of training steps of a round.", unit="steps", range="[1, inf)"
    )
    average_teacher: bool = setting(
        True,
        "Whether a new round's teacher has the averaged parameters; else it has the current ones.",
    )
    direction: str = setting(
        "forward",
        "Divergence of the student's probabilities p from the teacher's q: forward, KL(q || "
        "p), or reverse, KL(p || q).",
        choices=DIRECTIONS,
    )

    def span(self, step: jax.Array | int) -> jax.Array:
        """Fraction of the time that a step covers at a training step; at most 1."""
        rounds = jnp.asarray(step) // self.round_steps
        return jnp.minimum(self.first_span * 2.0 ** rounds.astype(jnp.float32), 1.0)
