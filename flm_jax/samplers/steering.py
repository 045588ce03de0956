"""Settings that steer a flow: how its last tokens are drawn, guidance and rewards."""

import dataclasses

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.samplers.bigram import BigramConfig

WEAK_PROMPTS = ("kept", "noised", "free")


@dataclasses.dataclass(frozen=True)
class GuidedConfig(BigramConfig):
    """Settings that the samplers of all flows share; the defaults do not change a flow."""

    temperature: float = setting(
        0.0,
        "Temperature at which tokens are drawn from the last logits; 0 for the most probable ones.",
        range="[0, inf)",
    )
    denoiser_temperature: float = setting(
        1.0,
        "Temperature of the network's logits in every call; below 1 the flow follows a "
        "sharper denoiser.",
        range="(0, inf)",
    )
    guidance: float = setting(
        1.0,
        "Weight eta of guidance away from weak, weak_dropout or weak_prompt; 1 for none.",
        range="(-inf, inf)",
    )
    weak: str = setting("", "Workdir of a weaker model for autoguidance.")
    weak_dropout: float = setting(
        0.0,
        "Dropout rate of the weaker copy of the model for autoguidance; 0 for none.",
        range="[0, 1)",
    )
    weak_prompt: str = setting(
        "kept",
        "Given tokens in the weaker call of the model itself, for classifier-free guidance: noised "
        "(at the time of the state, not clean), free (as if they were to be written) or kept (no "
        "such guidance).",
        choices=WEAK_PROMPTS,
    )
    guided: str = setting(
        "default",
        "Combination in guidance: logits (a product of probabilities) or probabilities (a sum, "
        "like that of velocities); default is logits for weak_prompt, else probabilities.",
        choices=("default", "logits", "probabilities"),
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.top_p == 1.0 or self.temperature > 0.0,
            f"got top_p={self.top_p} without a temperature: a flow takes the most probable tokens; "
            "give temperature=1, for example.",
        )
        require(
            bool(self.weak) + (self.weak_dropout > 0.0) + (self.weak_prompt != "kept") < 2,
            f"got weak={self.weak}, weak_dropout={self.weak_dropout} and "
            f"weak_prompt={self.weak_prompt}; expected one of them.",
        )
        require(
            self.guidance == 1.0
            or bool(self.weak)
            or self.weak_dropout > 0.0
            or self.weak_prompt != "kept",
            f"got guidance={self.guidance} and nothing to guide by; give weak=WORKDIR (a weaker "
            "model), weak_dropout=RATE or, for prompts, weak_prompt=noised.",
        )

    @property
    def by_prompt(self) -> bool:
        """Whether the given tokens guide, by a second call without them."""
        return self.guidance != 1.0 and self.weak_prompt != "kept"

    @property
    def product(self) -> bool:
        """Whether guidance combines logits."""
        return self.guided == "logits" or (self.guided == "default" and self.weak_prompt != "kept")


@dataclasses.dataclass(frozen=True)
class RewardedConfig(GuidedConfig):
    """Settings of samplers whose steps can follow the gradient of a reward."""

    reward: str = setting("", "Folder written by train_reward, whose reward guides sampling.")
    reward_scale: float = setting(
        0.0, "Weight of the reward in guidance; 0 for none.", range="(-inf, inf)"
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            self.reward_scale == 0.0 or bool(self.reward),
            f"got reward_scale={self.reward_scale} and no reward; give reward=FOLDER.",
        )


@dataclasses.dataclass(frozen=True)
class IteratedConfig(GuidedConfig):
    """Settings of the solvers of flows with one time, which may be self-conditioned."""

    iterations: int = setting(
        0,
        "Number of network calls at each state of a self-conditioned flow, the first without "
        "an estimate; 0 for one call with the estimate of the step before.",
        range="[0, inf)",
    )
