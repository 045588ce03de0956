"""AdamW or Muon with warm-up, clipping and exponential averaging.

Muon steps along the orthogonal factor of the momentum (arXiv 2502.16982), here of the matrices of
the transformer blocks; embeddings, heads, biases, norms, routers and conditioning have AdamW. Its
steps are scaled to the size of AdamW's, so that both take the same learning rates.
"""

import math

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from flm_jax.config.schema import settings
from flm_jax.config.training import OptimConfig
from flm_jax.core.types import Config, Params

_BLOCKS = ("blocks", "dense_blocks")
_ADAM_STEP = 0.2  # root mean square of AdamW's steps, in learning rates


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Linear warm-up, then constant or a cosine to 10% of the peak at `steps`."""
    warmup = min(cfg.warmup_steps, steps)
    rise = optax.linear_schedule(0.0 if warmup else cfg.lr, cfg.lr, warmup)
    if cfg.schedule == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(cfg.lr)], [warmup])
    fall = optax.cosine_decay_schedule(cfg.lr, max(steps - warmup, 1), alpha=0.1)
    return optax.join_schedules([rise, fall], [warmup])


def fallen(progress: float) -> float:
    """Share of the peak learning rate that a cosine to 10% leaves, where so much of it is over."""
    return 0.55 + 0.45 * math.cos(math.pi * min(max(progress, 0.0), 1.0))


def rate_change(saved: Config, config: Config, step: int, updates: int = 1) -> str:
    """One line about a learning rate that another config.train.steps moves at `step`, or "".

    Args:
      saved: configuration of the run so far; its optimizer is that of `config`.
      config: how the run goes on.
      step: that it goes on from.
      updates: of the optimizer, in a step.
    """
    old, new = (cfg["train"]["steps"] for cfg in (saved, config))
    cfg = settings(config, "optim")
    before, after = (float(learning_rate(cfg, n * updates)(step * updates)) for n in (old, new))
    if abs(after - before) <= 1e-6 * cfg.lr:
        return ""
    return (
        f"WARNING: the learning rate at step {step} goes from {before:.3g} to {after:.3g}: "
        f"config.train.steps is {new}, was {old}, and the {cfg.schedule} schedule ends there; to "
        f"keep the rate, restore config.train.steps={old}."
    )


def _kernels(params: Params):
    return jax.tree_util.tree_map_with_path(lambda p, _: p[-1].key == "kernel", params)


def _groups(params: Params):
    """Which rule each parameter has."""

    def one(path, _):
        names = [p.key for p in path]
        inside = names[0] in _BLOCKS and names[-1] == "kernel"
        inside = inside and not {"modulation", "router"} & set(names)
        return "muon" if inside else "adamw"

    return jax.tree_util.tree_map_with_path(one, params)


def _stacked(params: Params):
    """All are matrices, or stacks of them."""
    return jax.tree.map(lambda x: MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), params)


def make_optimizer(cfg: OptimConfig, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW or Muon; weight decay on arrays that end in "kernel" only."""
    rate, decay = learning_rate(cfg, steps), cfg.weight_decay
    clip = [optax.clip_by_global_norm(cfg.clip_norm)] if cfg.clip_norm else []
    rule = optax.adamw(rate, cfg.b1, cfg.b2, cfg.eps, weight_decay=decay, mask=_kernels)
    if cfg.name == "muon":
        orthogonal = muon(
            rate,
            weight_decay=decay,
            consistent_rms=_ADAM_STEP,
            muon_weight_dimension_numbers=_stacked,
        )
        rule = optax.partition({"muon": orthogonal, "adamw": rule}, _groups)
    return optax.chain(*clip, rule)


def update_ema(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """ema <- d ema + (1-d) params with d = min(decay, (1+step)/(10+step)): no slow start."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: d * e + (1.0 - d) * p, ema, params)
