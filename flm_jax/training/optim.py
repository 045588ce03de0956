"""AdamW with warm-up, clipping and exponential averaging."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from flm_jax.types import Params


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """See flm_jax/defaults.py for units."""

    lr: float
    warmup_steps: int
    schedule: Literal["constant", "cosine"]
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    ema_decay: float


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant or a cosine to 10% of the peak at `steps`."""
    warmup = min(cfg.warmup_steps, steps)
    rise = optax.linear_schedule(0.0 if warmup else cfg.lr, cfg.lr, warmup)
    if cfg.schedule == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(cfg.lr)], [warmup])
    fall = optax.cosine_decay_schedule(cfg.lr, max(steps - warmup, 1), alpha=0.1)
    return optax.join_schedules([rise, fall], [warmup])


def make_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; weight decay on arrays that end in "kernel" only."""

    def matrices(params: Params):
        return jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", params)

    clip = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm else []
    adamw = optax.adamw(
        learning_rate(cfg, steps),
        b1=cfg.b1,
        b2=cfg.b2,
        eps=cfg.eps,
        weight_decay=cfg.weight_decay,
        mask=matrices,
    )
    return optax.chain(*clip, adamw)


def update_ema(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """ema <- d ema + (1-d) params with d = min(decay, (1+step)/(10+step)): no slow start."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: d * e + (1.0 - d) * p, ema, params)
