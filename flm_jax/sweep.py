"""Measures a model over the values of one sampling option: a table, and a plot.

python -m flm_jax.sweep --workdir=runs/flm --steps=32 --weak=runs/weak \\
    --option=guidance --values=1,1.5,2,3 --num_samples=4096 --plot=guidance.png
python -m flm_jax.sweep --workdir=runs/flm --steps=32 --reward=runs/reward \\
    --option=reward_scale --values=0,0.5,1,2 --num_samples=4096 --plot=reward.png
python -m flm_jax.sweep --workdir=runs/mdlm --steps=4,16 --option=temperature \\
    --values=0.7,0.8,0.9,1 --judge=runs/ar --json=mdlm.json

Rows of the last form are what `flm_jax.frontier` draws.
"""

import itertools

from absl import flags
from etils import epath

from flm_jax.checkpoints.portable import located
from flm_jax.cli import judging_flags, sampling_flags
from flm_jax.cli.path_flags import DEFINE_output, DEFINE_path, DEFINE_seed, check_plots
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.config.upgrade import read_config
from flm_jax.core.errors import require
from flm_jax.core.files import to_json, write_output
from flm_jax.core.progress import Progress
from flm_jax.evaluation.features import features_of
from flm_jax.evaluation.judges import load_judge
from flm_jax.evaluation.measure import Subject, measure_data, subject
from flm_jax.evaluation.plots import draw_sweep
from flm_jax.evaluation.sweep import step_list, sweep_plans, sweep_row
from flm_jax.evaluation.tables import Row
from flm_jax.evaluation.wording import Wording
from flm_jax.inference import engine, text_reward
from flm_jax.samplers.base import SamplerConfig, nothing_given

flags.adopt_module_key_flags(sampling_flags)
flags.adopt_module_key_flags(judging_flags)
_WORKDIR = DEFINE_path("workdir", "", "Workdir of the model, written by train or convert.")
_OPTION = flags.DEFINE_string("option", "", "Numeric setting of the sampler to sweep.")
_VALUES = flags.DEFINE_list("values", [], "Values of --option, separated by commas.")
_STEPS = flags.DEFINE_list("steps", ["16"], "Numbers of steps of the sampler, separated by commas.")
_NUM = flags.DEFINE_integer("num_samples", 1024, "Number of samples for each value.")
_BATCH = flags.DEFINE_integer("batch_size", 1024, "Number of samples drawn at a time.")
_SEED = DEFINE_seed("seed", 0, "Seed of the random draws, the same for every value.")
_DATA = DEFINE_path(
    "data", "", "Prepared folder to compare samples with, instead of the model's own data."
)
_JSON = DEFINE_output("json", "", "JSON file to write the rows to, with one of held-out data.")
_PLOT = DEFINE_output("plot", "", "PNG file to write; it shows every figure against the option.")
_SCORED = 64  # held-out texts that are scored at a time
_APART = ("model", "steps", "swept")


def main(argv) -> None:
    no_arguments(argv)
    require(bool(_WORKDIR.value), "no --workdir; expected that of a training run.")
    check_plots(_PLOT)
    sampler = sampling_flags.sampler_of(read_config(located(_WORKDIR.value)))
    plans = sweep_plans(sampler, _OPTION.value, _VALUES.value)
    steps = step_list(_STEPS.value)
    require(_BATCH.value >= 1, f"got --batch_size={_BATCH.value}; expected at least 1.")
    judge = load_judge(judging_flags.JUDGE.value) if judging_flags.JUDGE.value else None
    features = features_of(judging_flags.FEATURES.value, judge)
    wording = Wording(*judging_flags.worded(), _DATA.value)
    what = subject(_WORKDIR.value, judge, _DATA.value, features)
    with Progress("rows") as bar:
        rows = _sweep(what, steps, plans, wording, bar)
    if what.data:
        rows.append(measure_data(what, _NUM.value, _SCORED, wording))
    if _JSON.value:
        write_output(_JSON.value, to_json(rows, indent=1) + "\n")
    if _PLOT.value:
        draw_sweep(epath.Path(_PLOT.value), rows, _OPTION.value)
        print(f"wrote {_PLOT.value}")


def _sweep(
    what: Subject,
    steps: list[int],
    plans: list[tuple[float, SamplerConfig]],
    wording: Wording,
    bar: Progress,
) -> list[Row]:
    """Measures and prints a row for each step count and value."""
    model, length = what.model, what.model.net.max_length
    engine.check_request(model, steps, _NUM.value, length)
    folder = getattr(plans[0][1], "reward", "")
    pattern = text_reward.pattern(folder) if folder else ""
    given = nothing_given(min(_BATCH.value, _NUM.value), length)
    rows: list[Row] = []
    each = list(itertools.product(engine.step_counts(model, steps, length), plans))
    for count, (value, chosen) in each:
        how = {"steps": count, "num": _NUM.value, "seed": _SEED.value, "wording": wording}
        row = sweep_row(what, chosen, given, pattern, **how)
        told = {"model": _WORKDIR.value, "steps": count, "swept": value, _OPTION.value: value}
        rows.append(told | row)
        bar.done(len(rows), len(each))
        if len(rows) == 1:
            names = [k for k in rows[0] if not k.endswith(("_low", "_high")) and k not in _APART]
            bar.say("| " + " | ".join(n.replace("_", " ") for n in names) + " |")
            bar.say("|" + "---|" * len(names))
        bar.say("| " + " | ".join(f"{rows[-1][n]:.4g}" for n in names) + " |")
    return rows


if __name__ == "__main__":
    run_cli(main)
