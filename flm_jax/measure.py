"""Samples a trained model and says how good its samples are; tables of such rows."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from flm_jax import build, sampling
from flm_jax.data.pipeline import eval_batches
from flm_jax.evals.denoising import tau_profile
from flm_jax.evals.likelihood import likelihood
from flm_jax.evals.text import diversity_report, unigram_entropy
from flm_jax.families import PLAIN, Options, family
from flm_jax.samplers.common import nothing_given
from flm_jax.types import require

Row = dict[str, Any]
_TEXTS = ("model", "kind", "calls", "samples", "settings")
_HELD_OUT = 512  # sequences that samples are compared with


def loss(model: build.Model, data: build.Data, batch_size: int) -> float:
    """Loss on held-out data, nats/token.

    The exact negative log-likelihood of AR, a bound on it for masked diffusion, for flows the
    denoising cross entropy over the clock, which is neither.
    """
    kind = family(model.config)
    batches = eval_batches(data.valid, batch_size, max_batches=8)
    row_nll = jax.jit(kind.row_nll(model.config, model.net, model.clock))
    if kind.draws:
        found = likelihood(row_nll, model.params, batches, draws=kind.draws)
        return found.nats_per_token
    return tau_profile(row_nll, model.params, batches, 0, jax.random.key(1))["nll_nats_per_token"]


def measure(
    workdir: str,
    steps: Sequence[int],
    *,
    samples: int,
    batch_size: int,
    seed: int,
    options: Options = PLAIN,
) -> Iterator[Row]:
    """One row after another, for each number of steps that the model can be sampled with.

    Args:
      workdir: of a trained model; its data must be where they were.
      steps: numbers of steps; a model that has no choice is sampled once.
      samples: drawn for each row.
      batch_size: samples, and validation rows, at a time.
      seed: of the noise.

    Yields:
      Numbers (NAME_low and NAME_high bound the interval of NAME) and "samples", texts.

    Raises:
      UserError: no such model, other data, impossible numbers; before the first row.
    """
    model = build.load_model(workdir)
    data = build.data(model.config)
    require(
        data.tokenizer.fingerprint == model.tokenizer.fingerprint,
        f"{workdir}: its data {model.config['data']['path']} has another tokenizer; restore it.",
    )
    length = model.net.max_length
    sampling.check_request(model, steps, samples, length)
    nats = loss(model, data, batch_size)
    held_out = np.stack([data.valid[i]["tokens"] for i in range(min(_HELD_OUT, len(data.valid)))])
    given = nothing_given(min(batch_size, samples), length)
    for count in sampling.step_counts(model, steps, length):
        drawn = sampling.draw(model, given, steps=count, num=samples, seed=seed, options=options)
        row = {
            "model": workdir,
            "kind": family(model.config).kind(model.net),
            "calls": drawn.calls,
            "seconds_per_1000_tokens": 1000.0 * drawn.seconds / drawn.tokens.size,
            **diversity_report(drawn.tokens, held_out),
            "data_entropy_nats": unigram_entropy(held_out[:256]),
            "nll_nats_per_token": nats,
            "samples": [model.tokenizer.decode(r) for r in drawn.tokens],
        }
        if data.task:
            row |= {f"task_{k}": v for k, v in data.task.report(drawn.tokens).items()}
            row["task_valid_low"], row["task_valid_high"] = share_interval(
                row["task_valid"], samples
            )
        yield row


def share_interval(share: float, count: int) -> tuple[float, float]:
    """95% interval of a share of `count` independent samples (Wilson's score interval)."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * ((share * (1 - share) + z**2 / (4 * count)) / count) ** 0.5
    return middle - half, middle + half


def _cell(row: Row, name: str) -> str:
    """A figure of a row, with its interval where it has one."""
    if name not in row:
        return ""
    if f"{name}_low" not in row:
        return f"{row[name]:.4g}"
    return f"{row[name]:.4g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"


def table(rows: Sequence[Row]) -> str:
    """Markdown table of rows: every figure that any of them has."""
    # Of all rows: without a valid sample there is no perplexity, for example.
    names = dict.fromkeys(k for row in rows for k in row if k not in _TEXTS)
    numbers = [k for k in names if not k.endswith(("_low", "_high"))]
    lines = [
        "| model | kind | calls | " + " | ".join(n.replace("_", " ") for n in numbers) + " |",
        "|---|---|---|" + "---|" * len(numbers),
    ]
    for row in rows:
        cells = " | ".join(_cell(row, n) for n in numbers)
        lines.append(f"| {row['model']} | {row['kind']} | {row['calls']:g} | {cells} |")
    return "\n".join(lines)
