"""The groups train, optim and mesh of a configuration as frozen dataclasses."""

import dataclasses
from typing import Literal

from flm_jax.core.errors import one_of, require
from flm_jax.core.types import Config
from flm_jax.distributed.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """See flm_jax/config/schema.py for units."""

    steps: int
    batch: int
    microbatches: int
    log_every: int
    checkpoint_every: int
    keep_checkpoints: int
    max_skipped: int
    watchdog_seconds: float
    seconds: float = 0.0  # a workdir may be older than the key


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """See flm_jax/config/schema.py for units."""

    lr: float
    warmup_steps: int
    schedule: Literal["constant", "cosine"]
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    ema_decay: float
    name: Literal["adamw", "muon"] = "adamw"  # a workdir may be older than the key


def optim_config(config: Config) -> OptimConfig:
    cfg = OptimConfig(**config["optim"])
    one_of("config.optim.name", cfg.name, ("adamw", "muon"))
    one_of("config.optim.schedule", cfg.schedule, ("constant", "cosine"))
    require(cfg.lr > 0, f"config.optim.lr must be positive, got {cfg.lr}.")
    return cfg


def train_config(config: Config) -> TrainConfig:
    cfg = TrainConfig(**config["train"])
    for name in ("steps", "batch", "microbatches", "log_every", "checkpoint_every"):
        require(getattr(cfg, name) >= 1, f"config.train.{name} must be at least 1.")
    require(cfg.seconds >= 0, f"config.train.seconds must not be negative, got {cfg.seconds}.")
    require(
        cfg.batch % cfg.microbatches == 0,
        f"config.train.batch {cfg.batch} does not split into {cfg.microbatches} microbatches.",
    )
    return cfg


def mesh_config(config: Config) -> MeshConfig:
    return MeshConfig(**config["mesh"])
