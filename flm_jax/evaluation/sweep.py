"""A figure against one setting of the sampler."""

import dataclasses
from collections.abc import Sequence

from flm_jax.build.load import Model
from flm_jax.core.errors import one_of, require
from flm_jax.core.settings import settings_of
from flm_jax.data.tasks.base import Task
from flm_jax.evaluation.tables import Row
from flm_jax.inference import engine, text_reward
from flm_jax.metrics.intervals import share_interval
from flm_jax.metrics.text import unigram_entropy
from flm_jax.samplers.base import Given, SamplerConfig
from flm_jax.samplers.registry import name_of


def with_setting(cfg: SamplerConfig, name: str, value: float) -> SamplerConfig:
    """Settings with one number changed; UserError where the sampler has no such number."""
    known = settings_of(type(cfg))
    numbers = [key for key, one in known.items() if type(one.default) in (int, float)]
    one_of(f"number of sampler {name_of(cfg)}", name, numbers)
    return dataclasses.replace(cfg, **{name: type(known[name].default)(value)})


def sweep_plans(
    cfg: SamplerConfig, name: str, texts: Sequence[str]
) -> list[tuple[float, SamplerConfig]]:
    """Settings of every value, all checked before the first is used.

    Args:
      cfg: what stays the same.
      name: the setting that is swept.
      texts: its values as written.

    Raises:
      UserError: an unknown setting, or values that are not numbers or that the setting refuses.
    """
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = []
    require(bool(values), f"got --values={','.join(texts)}; expected numbers such as 1,1.5,2.")
    return [(value, with_setting(cfg, name, value)) for value in values]


def sweep_row(
    model: Model,
    task: Task | None,
    sampler: SamplerConfig,
    given: Given,
    pattern: str,
    *,
    steps: int,
    num: int,
    seed: int,
) -> Row:
    """Figures of `num` samples drawn with `sampler`.

    Args:
      task: the synthetic task that judges the samples; None for text.
      given: prescribed tokens of one batch [B, L].
      pattern: regular expression of which the matching fraction is reported; "" for none.
    """
    drawn = engine.draw(model, given, steps=steps, num=num, seed=seed, sampler=sampler)
    row = {"calls": drawn.calls, "entropy_nats": unigram_entropy(drawn.tokens)}
    if task:
        row |= {f"task_{k}": v for k, v in task.report(drawn.tokens).items()}
        row["task_valid_low"], row["task_valid_high"] = share_interval(row["task_valid"], num)
    if pattern:
        share = float(text_reward.matches(drawn.tokens, model.tokenizer, pattern).mean())
        low, high = share_interval(share, num)
        row |= {"matching": share, "matching_low": low, "matching_high": high}
    return row
