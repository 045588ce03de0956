"""A figure against one sampling option."""

import dataclasses
from collections.abc import Sequence

from flm_jax.build.load import Model
from flm_jax.build.sampler import Options
from flm_jax.core.errors import require, unknown_name
from flm_jax.data.tasks.base import Task
from flm_jax.evaluation.tables import Row
from flm_jax.inference import engine, text_reward
from flm_jax.metrics.intervals import share_interval
from flm_jax.metrics.text import unigram_entropy
from flm_jax.samplers.base import Given

NUMBERS = ("guidance", "weak_dropout", "reward_scale", "gamma", "tolerance")


def with_option(options: Options, name: str, value: float) -> Options:
    """`options` with one number changed; UserError where no such option is known."""
    if name == "temperature":
        return dataclasses.replace(options, temperature=value)
    if name not in NUMBERS:
        raise unknown_name("option", name, ("temperature", *NUMBERS))
    steering = dataclasses.replace(options.steering, **{name: value})
    return dataclasses.replace(options, steering=steering)


def sweep_plans(options: Options, name: str, texts: Sequence[str]) -> list[tuple[float, Options]]:
    """Options of every value, all checked before the first is used.

    Args:
      options: what stays the same.
      name: the option that is swept.
      texts: its values as written.

    Raises:
      UserError: an unknown option, or values that are not numbers or that the option refuses.
    """
    try:
        values = [float(text) for text in texts]
    except ValueError:
        values = []
    require(bool(values), f"got --values={','.join(texts)}; expected numbers such as 1,1.5,2.")
    return [(value, with_option(options, name, value)) for value in values]


def sweep_row(
    model: Model,
    task: Task | None,
    options: Options,
    given: Given,
    pattern: str,
    *,
    steps: int,
    num: int,
    seed: int,
) -> Row:
    """Figures of `num` samples drawn with `options`.

    Args:
      task: the synthetic task that judges the samples; None for text.
      given: prescribed tokens of one batch [B, L].
      pattern: regular expression of which the matching fraction is reported; "" for none.
    """
    drawn = engine.draw(model, given, steps=steps, num=num, seed=seed, options=options)
    row = {"calls": drawn.calls, "entropy_nats": unigram_entropy(drawn.tokens)}
    if task:
        row |= {f"task_{k}": v for k, v in task.report(drawn.tokens).items()}
        row["task_valid_low"], row["task_valid_high"] = share_interval(row["task_valid"], num)
    if pattern:
        share = float(text_reward.matches(drawn.tokens, model.tokenizer, pattern).mean())
        low, high = share_interval(share, num)
        row |= {"matching": share, "matching_low": low, "matching_high": high}
    return row
