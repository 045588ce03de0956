"""The groups train, optim and eval of a configuration, and those of `train_policy`."""

import dataclasses

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.distributed.sharding import MeshConfig
from flm_jax.models.step_policy import PolicyConfig


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long a run is, and what it logs and keeps."""

    steps: int = setting(1000, "optimizer steps of the whole run", range="[1, inf)")
    log_every: int = setting(50, "steps between progress lines", range="[1, inf)")
    checkpoint_every: int = setting(500, "steps between checkpoints", range="[1, inf)")
    keep_checkpoints: int = setting(2, "newest checkpoints that are kept", range="[1, inf)")
    max_skipped: int = setting(
        20, "consecutive steps with a non-finite gradient before the run stops", range="[1, inf)"
    )
    watchdog_seconds: float = setting(
        600.0,
        "time without a step before a stall is reported; 0 for never",
        unit="s",
        range="[0, inf)",
    )
    seconds: float = setting(
        0.0,
        "time of training in all, with opening data and compilation, after which a run ends before "
        "its last step; cosine then falls with the time as well; 0 for no limit",
        unit="s",
        range="[0, inf)",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """A training run."""

    batch: int = setting(64, "sequences per step, over all devices", range="[1, inf)")
    microbatches: int = setting(
        1, "parts of the batch whose gradients are taken in turn and averaged", range="[1, inf)"
    )
    start: str = setting(
        "",
        "workdir, folder or hub name of a model of the same objective, sizes and tokenizer whose "
        "averaged parameters a new run begins with; empty for random ones",
    )

    def __post_init__(self):
        require(
            self.batch % self.microbatches == 0,
            f"config.train.batch {self.batch} does not split into {self.microbatches} "
            "microbatches.",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """The optimizer and the average of the parameters."""

    lr: float = setting(3e-4, "peak learning rate", range="(0, inf)")
    warmup_steps: int = setting(100, "steps of linear warm-up", range="[0, inf)")
    schedule: str = setting(
        "constant",
        "learning rate after the warm-up: constant, or cosine (to 10% at the last step)",
        choices=("constant", "cosine"),
    )
    b1: float = setting(0.9, "decay of the first moment", range="[0, 1)")
    b2: float = setting(0.999, "decay of the second moment", range="[0, 1)")
    eps: float = setting(1e-8, "constant in the denominator of AdamW's step", range="(0, inf)")
    weight_decay: float = setting(0.0, "weight decay of matrices", range="[0, inf)")
    clip_norm: float = setting(
        1.0, "norm that the global gradient is clipped to; 0 for no clipping", range="[0, inf)"
    )
    ema_decay: float = setting(
        0.9999, "decay of the averaged parameters, which sampling uses", range="[0, 1)"
    )
    name: str = setting(
        "adamw",
        "optimizer: adamw, or muon (orthogonalised steps for the matrices of the blocks)",
        choices=("adamw", "muon"),
    )
    first_step: str = setting(
        "still",
        "learning rate of the first step of a warm-up: still (0, and the peak after the warm-up) "
        "or rising (its share of the peak, which the warm-up's last step has)",
        choices=("still", "rising"),
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Evaluation during training."""

    every: int = setting(500, "steps between evaluations; 0 for one at the end", range="[0, inf)")
    batches: int = setting(
        4, "validation batches of train.batch sequences; 0 for no loss", range="[0, inf)"
    )
    tau_bins: int = setting(8, "bins of the clock in which the loss is reported", range="[1, inf)")
    samples: int = setting(
        4,
        "texts written at each evaluation; none of them and no loss is no evaluation",
        range="[0, inf)",
    )
    sample_steps: int = setting(16, "network calls of those samples", range="[1, inf)")


@dataclasses.dataclass(frozen=True)
class PolicyRunConfig:
    """A run of `train_policy`."""

    seed: int = setting(0, "root of every random draw: initialisation, prompts, rollouts")
    model: str = setting("", "workdir of the masked diffusion model, which stays as it is")
    problems: str = setting(
        "", "file of MBPP, whose training split is asked; empty for problems of the model's task"
    )
    answer_length: int = setting(
        0, "length of an answer to a problem of a file", unit="tokens", range="[0, inf)"
    )
    chat: bool = setting(
        True, "whether problems of a file are asked in the model's chat template; else to continue"
    )
    isolation: str = setting(
        "namespaces",
        "where programs that answer a problem of a file run: namespaces, or guard, which promises "
        "less",
        choices=("namespaces", "guard"),
    )
    seconds: float = setting(3.0, "time of such a program", unit="s", range="(0, inf)")
    calls: tuple = setting((4,), "network calls of a rollout; several take turns")
    block_length: int = setting(
        0, "length of a block; 0 for one block", unit="tokens", range="[0, inf)"
    )
    reward: str = setting(
        "exact_match",
        "reward of an answer, 0 or 1: exact_match, unit_tests (task functions, and problems of a "
        "file), or length_free (right however long it is written)",
    )
    prompts: int = setting(
        2000, "problems at most; those that the model solves in full are kept", range="[1, inf)"
    )
    prompt_batch: int = setting(8, "prompts of a step", range="[1, inf)")
    group: int = setting(8, "answers to each prompt", range="[2, inf)")
    completion: float = setting(
        0.1, "weight of the reward for the progress that a token reached", range="[0, inf)"
    )
    clip: float = setting(0.2, "clipping range of the ratio of probabilities", range="(0, inf)")
    epochs: int = setting(
        4,
        "updates on each batch of rollouts; the first one is never clipped, its ratios being 1",
        range="[1, inf)",
    )
    policy: PolicyConfig = setting(PolicyConfig(), "the policy's network and law")
    optim: OptimConfig = setting(
        OptimConfig(lr=1e-3, warmup_steps=10, ema_decay=0.98), "the optimizer, as of `train`"
    )
    train: LoopConfig = setting(
        LoopConfig(steps=300, log_every=10, checkpoint_every=100, max_skipped=10),
        "the length of the run; a step is a batch of rollouts",
    )
    mesh: MeshConfig = setting(MeshConfig(), "devices; the policy is replicated, answers are split")
