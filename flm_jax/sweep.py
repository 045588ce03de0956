"""Measures a model over the values of one sampling option: a table, and a plot.

python -m flm_jax.sweep --workdir=runs/flm --steps=32 --weak=runs/weak \
    --option=guidance --values=1,1.5,2,3 --num_samples=4096 --plot=guidance.png
python -m flm_jax.sweep --workdir=runs/flm --steps=32 --reward=runs/reward \
    --option=reward_scale --values=0,0.5,1,2 --num_samples=4096 --plot=reward.png
"""

import dataclasses
import json
from typing import Any

from absl import flags
from etils import epath

from flm_jax import build, datasets, rewards, sampling, sampling_flags
from flm_jax.cli import run_cli
from flm_jax.evals.text import unigram_entropy
from flm_jax.families import Options
from flm_jax.measure import share_interval
from flm_jax.plots import draw_sweep
from flm_jax.samplers.common import nothing_given
from flm_jax.types import require, unknown_name

_NUMBERS = ("guidance", "weak_dropout", "reward_scale", "gamma", "tolerance")
_WORKDIR = flags.DEFINE_string("workdir", "", "Workdir of train or convert.")
_OPTION = flags.DEFINE_string("option", "", f"Swept: temperature, {', '.join(_NUMBERS)}.")
_VALUES = flags.DEFINE_list("values", [], "Its values, separated by commas.")
_STEPS = flags.DEFINE_integer("steps", 16, "As of sample.")
_NUM = flags.DEFINE_integer("num_samples", 1024, "Samples for each value.")
_BATCH = flags.DEFINE_integer("batch_size", 1024, "Samples drawn at a time.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the noise, the same for every value.")
_JSON = flags.DEFINE_string("json", "", "File for the rows.")
_PLOT = flags.DEFINE_string("plot", "", "PNG file: every figure against the option.")


def _set(options: Options, name: str, value: float) -> Options:
    if name == "temperature":
        return dataclasses.replace(options, temperature=value)
    if name not in _NUMBERS:
        raise unknown_name("option", name, ("temperature", *_NUMBERS))
    steering = dataclasses.replace(options.steering, **{name: value})
    return dataclasses.replace(options, steering=steering)


def _plans(options: Options) -> list[tuple[float, Options]]:
    """Options of every value, all checked before the first is used."""
    try:
        values = [float(v) for v in _VALUES.value]
    except ValueError:
        values = []
    require(
        bool(values),
        f"got --values={','.join(_VALUES.value)}; expected numbers such as 1,1.5,2.",
    )
    return [(value, _set(options, _OPTION.value, value)) for value in values]


def _row(model: build.Model, task, options: Options, given, pattern: str) -> dict[str, Any]:
    drawn = sampling.draw(
        model, given, steps=_STEPS.value, num=_NUM.value, seed=_SEED.value, options=options
    )
    row = {"calls": drawn.calls, "entropy_nats": unigram_entropy(drawn.tokens)}
    if task:
        row |= {f"task_{k}": v for k, v in task.report(drawn.tokens).items()}
        row["task_valid_low"], row["task_valid_high"] = share_interval(
            row["task_valid"], _NUM.value
        )
    if pattern:
        share = float(rewards.matches(drawn.tokens, model.tokenizer, pattern).mean())
        low, high = share_interval(share, _NUM.value)
        row |= {"matching": share, "matching_low": low, "matching_high": high}
    return row


def main(argv) -> None:
    require(len(argv) == 1, f"got positional arguments {argv[1:]}; expected flags alone.")
    require(bool(_WORKDIR.value), "no --workdir; expected that of a training run.")
    plans = _plans(sampling_flags.options())
    model = build.load_model(_WORKDIR.value)
    length = model.net.max_length
    sampling.check_request(model, [_STEPS.value], _NUM.value, length)
    require(_BATCH.value >= 1, f"got --batch_size={_BATCH.value}; expected at least 1.")
    task = datasets.open_data(model.config).task if model.config["data"]["task"] else None
    folder = plans[0][1].steering.reward
    pattern = rewards.pattern(folder) if folder else ""
    given = nothing_given(min(_BATCH.value, _NUM.value), length)
    rows = []
    for value, options in plans:
        rows.append({_OPTION.value: value, **_row(model, task, options, given, pattern)})
        if value == plans[0][0]:
            names = [k for k in rows[0] if not k.endswith(("_low", "_high"))]
            print("| " + " | ".join(n.replace("_", " ") for n in names) + " |")
            print("|" + "---|" * len(names))
        print("| " + " | ".join(f"{rows[-1][n]:.4g}" for n in names) + " |", flush=True)
    if _JSON.value:
        epath.Path(_JSON.value).write_text(json.dumps(rows, indent=1) + "\n")
    if _PLOT.value:
        draw_sweep(epath.Path(_PLOT.value), rows, _OPTION.value)
        print(f"wrote {_PLOT.value}")


if __name__ == "__main__":
    run_cli(main)
