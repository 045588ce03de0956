"""Compares models: one table of speed, diversity and loss, and sample texts.

python -m flm_jax.evaluate --model=runs/flm:64 --model=runs/fmlm:1,2,4 --json=report.json
"""

import json

import jax
import numpy as np
from absl import flags
from etils import epath

from flm_jax import build, sampling, sampling_flags
from flm_jax.cli import run_cli
from flm_jax.data.pipeline import eval_batches
from flm_jax.evals.denoising import tau_profile
from flm_jax.evals.likelihood import likelihood
from flm_jax.evals.text import diversity_report, unigram_entropy
from flm_jax.families import family
from flm_jax.samplers.common import nothing_given
from flm_jax.types import require

_MODELS = flags.DEFINE_multi_string("model", [], "WORKDIR:STEPS, for example runs/fmlm:1,2,4.")
_NUM = flags.DEFINE_integer("num_samples", 64, "Samples for each row of the table.")
_BATCH = flags.DEFINE_integer("batch_size", 32, "Samples, and validation rows, at a time.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise.")
_SHOW = flags.DEFINE_integer("show", 2, "Samples printed for each row.")
_JSON = flags.DEFINE_string("json", "", "File for the rows and all samples.")


def _parse(text: str) -> tuple[str, list[int]]:
    workdir, _, steps = text.rpartition(":")
    counts = steps.split(",")
    require(
        bool(workdir) and all(c.isdigit() for c in counts),
        f"got --model={text}; expected WORKDIR:STEPS such as runs/fmlm:1,2,4.",
    )
    return workdir, [int(c) for c in counts]


def _loss(model: build.Model, data: build.Data) -> float:
    """Loss on held-out data, nats/token.

    The exact negative log-likelihood of AR, a bound on it for masked diffusion, for flows the
    denoising cross entropy over the clock, which is neither.
    """
    kind = family(model.config)
    batches = eval_batches(data.valid, _BATCH.value, max_batches=8)
    row_nll = jax.jit(kind.row_nll(model.config, model.net, model.clock))
    if kind.draws:
        found = likelihood(row_nll, model.params, batches, draws=kind.draws)
        return found.nats_per_token
    return tau_profile(row_nll, model.params, batches, 0, jax.random.key(1))["nll_nats_per_token"]


def _rows(workdir: str, steps: list[int]):
    """One record a step count; the first call compiles."""
    model = build.load_model(workdir)
    data = build.data(model.config)
    require(
        data.tokenizer.fingerprint == model.tokenizer.fingerprint,
        f"{workdir}: its data {model.config['data']['path']} has another tokenizer; restore it.",
    )
    sampling.check_request(model, steps, _NUM.value, model.net.max_length)
    loss = _loss(model, data)
    held_out = np.stack([data.valid[i]["tokens"] for i in range(min(512, len(data.valid)))])
    given = nothing_given(min(_BATCH.value, _NUM.value), model.net.max_length)
    options = sampling_flags.options()
    for count in sampling.step_counts(model, steps, model.net.max_length):
        drawn = sampling.draw(
            model, given, steps=count, num=_NUM.value, seed=_SEED.value, options=options
        )
        row = {
            "model": workdir,
            "kind": family(model.config).kind(model.net),
            "calls": drawn.calls,
            "seconds_per_1000_tokens": 1000.0 * drawn.seconds / drawn.tokens.size,
            **diversity_report(drawn.tokens, held_out),
            "data_entropy_nats": unigram_entropy(held_out[:256]),
            "nll_nats_per_token": loss,
            "samples": [model.tokenizer.decode(r) for r in drawn.tokens],
        }
        if data.task:
            row |= {f"task_{k}": v for k, v in data.task.report(drawn.tokens).items()}
        yield row


def _cell(row: dict, name: str) -> str:
    """A figure of a row, with its interval where it has one."""
    if name not in row:
        return ""
    if f"{name}_low" not in row:
        return f"{row[name]:.4g}"
    return f"{row[name]:.4g} [{row[f'{name}_low']:.4g}, {row[f'{name}_high']:.4g}]"


def main(argv) -> None:
    require(len(argv) == 1, f"got positional arguments {argv[1:]}; expected flags alone.")
    require(bool(_MODELS.value), "no --model; expected WORKDIR:STEPS, several times if wanted.")
    rows = []
    for text in _MODELS.value:
        rows += _rows(*_parse(text))
    texts = ("model", "kind", "calls", "samples")
    # Of all rows: without a valid sample there is no perplexity, for example.
    names = dict.fromkeys(k for row in rows for k in row if k not in texts)
    numbers = [k for k in names if not k.endswith(("_low", "_high"))]
    print("| model | kind | calls | " + " | ".join(n.replace("_", " ") for n in numbers) + " |")
    print("|---|---|---|" + "---|" * len(numbers))
    for row in rows:
        cells = " | ".join(_cell(row, n) for n in numbers)
        print(f"| {row['model']} | {row['kind']} | {row['calls']:g} | {cells} |")
    for row in rows:
        print(f"\n{row['model']}, {row['calls']:g} network calls:")
        for sample in row["samples"][: _SHOW.value]:
            print(f"  {sample}")
    if _JSON.value:
        epath.Path(_JSON.value).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    run_cli(main)
