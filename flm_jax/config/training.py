"""The groups train, optim and eval of a configuration, and the groups of `train_policy`."""

import dataclasses

from flm_jax.core.errors import require
from flm_jax.core.settings import setting
from flm_jax.distributed.sharding import MeshConfig
from flm_jax.models.step_policy import PolicyConfig


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Length of a run, and what it logs and keeps."""

    steps: int = setting(1000, "Number of optimizer steps.", range="[1, inf)")
    log_every: int = setting(50, "Number of steps between progress lines.", range="[1, inf)")
    checkpoint_every: int = setting(500, "Number of steps between checkpoints.", range="[1, inf)")
    keep_checkpoints: int = setting(
        2, "Number of checkpoints kept, the newest ones.", range="[1, inf)"
    )
    max_skipped: int = setting(
        20,
        "Number of consecutive steps with a non-finite gradient after which the run stops.",
        range="[1, inf)",
    )
    watchdog_seconds: float = setting(
        600.0,
        "Time without a step after which a stall is reported; 0 for never.",
        unit="s",
        range="[0, inf)",
    )
    seconds: float = setting(
        0.0,
        "Time limit of the run, including opening data and compilation; the run then ends "
        "before its last step, and a cosine schedule follows the time as well. 0 for no "
        "limit.",
        unit="s",
        range="[0, inf)",
    )


@dataclasses.dataclass(frozen=True)
class TrainConfig(LoopConfig):
    """Settings of a training run."""

    batch: int = setting(64, "Global batch size in sequences.", range="[1, inf)")
    microbatches: int = setting(
        1,
        "Number of parts of a batch whose gradients are computed one after the other and averaged.",
        range="[1, inf)",
    )
    start: str = setting(
        "",
        "Workdir, folder or hub name of a model of the same objective, sizes and tokenizer, "
        "whose averaged parameters initialise a new run; empty for random initialisation.",
    )

    def __post_init__(self):
        require(
            self.batch % self.microbatches == 0,
            f"config.train.batch {self.batch} does not split into {self.microbatches} "
            "microbatches.",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Settings of the optimizer and of the average of the parameters."""

    lr: float = setting(3e-4, "Peak learning rate.", range="(0, inf)")
    warmup_steps: int = setting(100, "Number of steps of linear warm-up.", range="[0, inf)")
    schedule: str = setting(
        "constant",
        "Learning rate schedule after the warm-up: constant, or cosine (to 10% of the peak at"
        " the last step).",
        choices=("constant", "cosine"),
    )
    b1: float = setting(0.9, "Decay rate of the first moment.", range="[0, 1)")
    b2: float = setting(0.999, "Decay rate of the second moment.", range="[0, 1)")
    eps: float = setting(1e-8, "Constant in the denominator of AdamW's step.", range="(0, inf)")
    weight_decay: float = setting(0.0, "Weight decay of matrices.", range="[0, inf)")
    clip_norm: float = setting(
        1.0, "Global norm to which the gradient is clipped; 0 for no clipping.", range="[0, inf)"
    )
    ema_decay: float = setting(
        0.9999, "Decay rate of the averaged parameters, which sampling uses.", range="[0, 1)"
    )
    name: str = setting(
        "adamw",
        "Optimizer: adamw, or muon (orthogonalised updates of the matrices of the blocks).",
        choices=("adamw", "muon"),
    )
    first_step: str = setting(
        "still",
        "Start of the warm-up: still (the first step has learning rate 0 and the step after "
        "the warm-up the peak) or rising (the first step already has its fraction of the "
        "peak, and the last step of the warm-up the peak).",
        choices=("still", "rising"),
    )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Settings of the evaluation during training."""

    every: int = setting(
        500, "Number of steps between evaluations; 0 for one at the end.", range="[0, inf)"
    )
    batches: int = setting(
        4, "Number of validation batches of train.batch sequences; 0 for no loss.", range="[0, inf)"
    )
    tau_bins: int = setting(
        8, "Number of bins of the clock in which the loss is reported.", range="[1, inf)"
    )
    samples: int = setting(
        4,
        "Number of texts generated at each evaluation; with 0 here and in batches there is no"
        " evaluation.",
        range="[0, inf)",
    )
    sample_steps: int = setting(16, "Number of sampler steps of those texts.", range="[1, inf)")


@dataclasses.dataclass(frozen=True)
class PolicyRunConfig:
    """Settings of a run of `train_policy`."""

    seed: int = setting(0, "Root of every random draw: initialisation, prompts and rollouts.")
    model: str = setting("", "Workdir of the masked diffusion model, which stays frozen.")
    problems: str = setting(
        "", "File of MBPP, whose training split is used; empty for problems of the model's task."
    )
    answer_length: int = setting(
        0, "Length of an answer to a problem of a file.", unit="tokens", range="[0, inf)"
    )
    chat: bool = setting(
        True,
        "Whether problems of a file are asked in the model's chat template; else the model "
        "continues them.",
    )
    isolation: str = setting(
        "namespaces",
        "Isolation of the programs that answer a problem of a file: namespaces, or guard, "
        "which protects less.",
        choices=("namespaces", "guard"),
    )
    seconds: float = setting(3.0, "Time limit of such a program.", unit="s", range="(0, inf)")
    calls: tuple = setting((4,), "Network calls of a rollout; several numbers alternate.")
    block_length: int = setting(
        0, "Length of a block; 0 for a single block.", unit="tokens", range="[0, inf)"
    )
    reward: str = setting(
        "exact_match",
        "Reward of an answer, 0 or 1: exact_match, unit_tests (task functions, and problems "
        "of a file), or length_free (a correct answer of any length).",
    )
    prompts: int = setting(
        2000,
        "Largest number of problems; those that the model solves with one token per call are kept.",
        range="[1, inf)",
    )
    prompt_batch: int = setting(8, "Number of prompts in a step.", range="[1, inf)")
    group: int = setting(8, "Number of answers to each prompt.", range="[2, inf)")
    completion: float = setting(
        0.1,
        "Weight of the reward for the unmasking progress that tokens reached.",
        range="[0, inf)",
    )
    clip: float = setting(0.2, "Clipping range of the probability ratio.", range="(0, inf)")
    epochs: int = setting(
        4,
        "Number of updates on each batch of rollouts; the first is never clipped, since its "
        "ratios are 1.",
        range="[1, inf)",
    )
    policy: PolicyConfig = setting(PolicyConfig(), "Network and distribution of the policy.")
    optim: OptimConfig = setting(
        OptimConfig(lr=1e-3, warmup_steps=10, ema_decay=0.98),
        "Optimizer, with the settings of `train`.",
    )
    train: LoopConfig = setting(
        LoopConfig(steps=300, log_every=10, checkpoint_every=100, max_skipped=10),
        "Length of the run; a step is a batch of rollouts.",
    )
    mesh: MeshConfig = setting(
        MeshConfig(), "Devices; the policy is replicated, and answers are split over them."
    )
