"""AdamW or Muon with warm-up, clipping and exponential averaging.

Muon steps along the orthogonal factor of the momentum (arXiv 2502.16982), here for the matrices of
the transformer blocks; embeddings, heads, biases, norms, routers and conditioning use AdamW. Its
steps are scaled to the size of AdamW's, so that both use the same learning rates.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, muon

from flm_jax.config.schema import settings
from flm_jax.config.training import OptimConfig
from flm_jax.core.types import Config, Params

_BLOCKS = ("blocks", "dense_blocks")
_ADAM_STEP = 0.2  # root mean square of AdamW's steps, in learning rates

Path = tuple[str, ...]  # of a parameter


class Group(NamedTuple):
    """Parameters with their own learning rate and weight decay.

    Attributes:
      member: function from a path to whether a parameter belongs to the group.
      lr: peak learning rate.
      weight_decay: weight decay of the parameters that `decays` selects.
      decays: function from a path to whether a parameter has weight decay.
    """

    member: Callable[[Path], bool]
    lr: float
    weight_decay: float
    decays: Callable[[Path], bool]


def is_kernel(path: Path) -> bool:
    """Whether a path leads to a matrix, which has weight decay."""
    return path[-1] == "kernel"


def learning_rate(cfg: OptimConfig, steps: int) -> optax.Schedule:
    """Schedule with linear warm-up, then constant or a cosine to 10% of the peak at `steps`."""
    warmup = min(cfg.warmup_steps, steps)
    # A rising warm-up is one step ahead: it begins at lr / warmup, not at 0, and reaches lr a
    # step before the join, where the other schedule takes over.
    ahead = cfg.lr / max(warmup, 1) if cfg.first_step == "rising" else 0.0
    rise = optax.linear_schedule(ahead if warmup else cfg.lr, cfg.lr + ahead, warmup)
    if cfg.schedule == "constant":
        return optax.join_schedules([rise, optax.constant_schedule(cfg.lr)], [warmup])
    fall = optax.cosine_decay_schedule(cfg.lr, max(steps - warmup, 1), alpha=0.1)
    return optax.join_schedules([rise, fall], [warmup])


def fallen(progress: float) -> float:
    """Factor of the peak learning rate under a cosine to 10%, at a completed fraction."""
    return 0.55 + 0.45 * math.cos(math.pi * min(max(progress, 0.0), 1.0))


def rate_change(saved: Config, config: Config, step: int, updates: int = 1) -> str:
    """One line about a learning rate that a changed config.train.steps moves at `step`, or "".

    Args:
      saved: configuration of the run so far, with the same optimizer as `config`.
      config: configuration with which the run continues.
      step: step from which it continues.
      updates: number of optimizer updates in a step.
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


def _by_path(fn: Callable[[Path], Any]) -> Callable[[Params], Any]:
    """Returns a function from parameters to the same tree with `fn` of their paths."""
    names = lambda path: tuple(part.key for part in path)
    return lambda params: jax.tree_util.tree_map_with_path(lambda p, _: fn(names(p)), params)


def _rule_of(path: Path) -> str:
    """Rule of Muon that applies to a parameter: "muon" or "adamw"."""
    inside = path[0] in _BLOCKS and path[-1] == "kernel"
    return "muon" if inside and not {"modulation", "router"} & set(path) else "adamw"


def _stacked(params: Params):
    """Dimension numbers of matrices, or of stacks of them, which all parameters here are."""
    return jax.tree.map(lambda x: MuonDimensionNumbers(x.ndim - 2, x.ndim - 1), params)


def _rule(
    cfg: OptimConfig, steps: int, decays: Callable[[Path], bool]
) -> optax.GradientTransformation:
    """Builds AdamW or Muon with one learning rate."""
    rate, decay = learning_rate(cfg, steps), cfg.weight_decay
    mask = _by_path(decays)
    rule = optax.adamw(rate, cfg.b1, cfg.b2, cfg.eps, weight_decay=decay, mask=mask)
    if cfg.name == "muon":
        orthogonal = muon(
            rate,
            weight_decay=decay,
            consistent_rms=_ADAM_STEP,
            muon_weight_dimension_numbers=_stacked,
        )
        rule = optax.partition({"muon": orthogonal, "adamw": rule}, _by_path(_rule_of))
    return rule


def _clipped(most: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm` by one multiplication, with less passes over the gradients.

    Its `update` takes the norm as `grad_norm`, if it is known already.
    """

    def update(updates, state, params=None, *, grad_norm=None, **_):
        norm = optax.tree.norm(updates) if grad_norm is None else grad_norm
        factor = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda x: x * factor.astype(x.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def make_optimizer(
    cfg: OptimConfig,
    steps: int,
    groups: Sequence[Group] = (),
    decays: Callable[[Path], bool] = is_kernel,
) -> optax.GradientTransformation:
    """Builds the optimizer: clipping by the global norm, then AdamW or Muon.

    Args:
      steps: step at which a cosine ends.
      groups: groups with their own rates; a parameter belongs to the first that selects it.
      decays: predicate of weight decay for the other parameters.
    """
    clip = [_clipped(cfg.clip_norm)] if cfg.clip_norm else []
    rule = _rule(cfg, steps, decays)
    if groups:
        rules = {"": rule}
        for i, group in enumerate(groups):
            own = dataclasses.replace(cfg, lr=group.lr, weight_decay=group.weight_decay)
            rules[str(i)] = _rule(own, steps, group.decays)
        of = lambda path: next((str(i) for i, g in enumerate(groups) if g.member(path)), "")
        rule = optax.partition(rules, _by_path(of))
    return optax.chain(*clip, rule)


def update_ema(ema: Params, params: Params, decay: float, step: jax.Array) -> Params:
    """Updates ema <- d ema + (1-d) params, d = min(decay, (1+step)/(10+step)): no slow start."""
    d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda e, p: d * e + (1.0 - d) * p, ema, params)
