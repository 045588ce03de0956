"""Continuations of prompts under an autoregressive judge: likelihood, and the gain by the prompt.

A continuation that ignores its prompt is as likely after any other prompt. The gain is

    (ln p(continuation | own prompt) - ln p(continuation | another prompt)) / tokens,

in nats/token, summed over all continuations before the division. It is 0 if the prompts are
ignored. Gains are comparable under one judge only, beside the gain of true continuations.
"""

from collections.abc import Sequence

import numpy as np

from flm_jax.core.errors import require
from flm_jax.metrics.generative_perplexity import Judge, Window, scores
from flm_jax.metrics.intervals import Interval, interval


def prompt_following(
    judge: Judge, prompts: Sequence[str], continuations: Sequence[str], batch_size: int = 32
) -> dict[str, Interval]:
    """Computes how likely continuations are, and how much more so after their own prompts.

    Intervals are of 95%, by a bootstrap over the texts.

    Args:
      judge: autoregressive model.
      prompts: texts, one for each continuation.
      continuations: texts that follow the prompts. The end of a continuation is cut if prompt and
        continuation are longer than the judge's rows. Each is scored a second time after the prompt
        of the next text.
      batch_size: number of texts at a time.

    Returns:
      prompt_gain_nats: the gain, nats/token. continuation_perplexity: the perplexity of the
      continuations after their own prompts.

    Raises:
      UserError: fewer than two texts, or nothing to score.
    """
    require(
        len(prompts) == len(continuations) and len(prompts) > 1,
        f"got {len(prompts)} prompts and {len(continuations)} continuations; expected as many of "
        "each, two or more.",
    )
    own, other = prompts, [*prompts[1:], prompts[0]]
    given = [judge.tokenizer.encode_batch(list(some)) for some in (own, other)]
    written = judge.tokenizer.encode_batch(list(continuations))
    # Both prompts leave the same tokens of the continuation to score.
    size = judge.net.max_length - len(judge.head)
    room = [min(size - max(map(len, pair)), len(ids)) for *pair, ids in zip(*given, written)]
    nats = [
        scores(judge, _windows(judge, some, written, room), len(own), batch_size) for some in given
    ]
    counted = nats[0][:, 1]
    require(bool(counted.sum() > 0), "no token of the continuations can be judged.")
    own, gain = nats[0][:, 0], nats[1][:, 0] - nats[0][:, 0]
    mean = lambda some: float(some[:, 0].sum() / max(some[:, 1].sum(), 1.0))
    return {
        "prompt_gain_nats": interval(mean, np.stack([gain, counted], axis=1)),
        "continuation_perplexity": interval(
            lambda some: float(np.exp(mean(some))), np.stack([own, counted], axis=1)
        ),
    }


def _windows(judge: Judge, prompts, written, room) -> list[Window]:
    """Builds one row for each text that has room; only the continuation is scored."""
    found = []
    for row, (prompt, ids, most) in enumerate(zip(prompts, written, room)):
        if most > 0 and len(prompt):
            tokens = np.array([*judge.head, *prompt, *ids[:most]], np.int32)
            scored = np.arange(len(tokens)) >= len(tokens) - most
            found.append(Window(row, tokens, scored))
    return found
