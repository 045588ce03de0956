"""Figures against one setting of the sampler."""

import dataclasses
from collections.abc import Sequence

from flm_jax.core.errors import one_of, require
from flm_jax.core.settings import settings_of
from flm_jax.evaluation.measure import Subject, figures
from flm_jax.evaluation.tables import Row
from flm_jax.evaluation.wording import Wording
from flm_jax.inference import engine, text_reward
from flm_jax.metrics.intervals import share_interval
from flm_jax.samplers.base import Given, SamplerConfig
from flm_jax.samplers.registry import name_of

_JUDGED = 64  # samples that the judge scores at a time


def with_setting(cfg: SamplerConfig, name: str, value: float) -> SamplerConfig:
    """Returns settings with one number changed; UserError if the sampler has no such number."""
    known = settings_of(type(cfg))
    numbers = [key for key, one in known.items() if type(one.default) in (int, float)]
    one_of(f"number of sampler {name_of(cfg)}", name, numbers)
    return dataclasses.replace(cfg, **{name: type(known[name].default)(value)})


def sweep_plans(
    cfg: SamplerConfig, name: str, texts: Sequence[str]
) -> list[tuple[float, SamplerConfig]]:
    """Returns the settings for every value, all checked before the first is used.

    Args:
      cfg: settings that stay the same.
      name: name of the setting that is swept.
      texts: values as written by the user.

    Raises:
      UserError: an unknown setting, or values that are not numbers or that the setting refuses.
    """
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = []
    require(bool(values), f"got --values={','.join(texts)}; expected numbers such as 1,1.5,2.")
    return [(value, with_setting(cfg, name, value)) for value in values]


def step_list(texts: Sequence[str]) -> list[int]:
    """Parses step counts; UserError for anything else."""
    require(
        bool(texts) and all(text.isdigit() for text in texts),
        f"got --steps={','.join(texts)}; expected numbers from 1 such as 4,16.",
    )
    return [int(text) for text in texts]


def sweep_row(
    what: Subject,
    sampler: SamplerConfig,
    given: Given,
    pattern: str,
    *,
    steps: int,
    num: int,
    seed: int,
    wording: Wording,
) -> Row:
    """Figures of `num` samples drawn with `sampler`.

    Args:
      what: model, and the data and judges with which its samples are compared.
      given: prescribed tokens of one batch [B, L].
      pattern: regular expression whose matching fraction is reported; "" for none.
      wording: figures of the samples' texts.
    """
    model = what.model
    drawn = engine.draw(model, given, steps=steps, num=num, seed=seed, sampler=sampler)
    row = {"calls": drawn.calls, **figures(what, drawn.tokens, _JUDGED)}
    row |= wording.figures([model.tokenizer.decode(tokens) for tokens in drawn.tokens])
    if pattern:
        share = float(text_reward.matches(drawn.tokens, model.tokenizer, pattern).mean())
        low, high = share_interval(share, num)
        row |= {"matching": share, "matching_low": low, "matching_high": high}
    return row
