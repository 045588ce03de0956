"""Measures a model over the values of one sampling option: a table, and a plot.

python -m flm_jax.sweep --workdir=runs/flm --steps=32 --weak=runs/weak \
    --option=guidance --values=1,1.5,2,3 --num_samples=4096 --plot=guidance.png
python -m flm_jax.sweep --workdir=runs/flm --steps=32 --reward=runs/reward \
    --option=reward_scale --values=0,0.5,1,2 --num_samples=4096 --plot=reward.png
"""

from importlib.util import find_spec

from absl import flags
from etils import epath

from flm_jax.build.data import open_data
from flm_jax.build.load import load_model
from flm_jax.cli import sampling_flags
from flm_jax.cli.path_flags import DEFINE_output, DEFINE_path, DEFINE_seed
from flm_jax.cli.run import no_arguments, run_cli
from flm_jax.core.errors import require
from flm_jax.core.files import to_json, write_output
from flm_jax.evaluation.plots import draw_sweep
from flm_jax.evaluation.sweep import sweep_plans, sweep_row
from flm_jax.inference import engine, text_reward
from flm_jax.samplers.base import nothing_given

flags.adopt_module_key_flags(sampling_flags)
_WORKDIR = DEFINE_path("workdir", "", "Workdir of the model, written by train or convert.")
_OPTION = flags.DEFINE_string("option", "", "Numeric setting of the sampler to sweep.")
_VALUES = flags.DEFINE_list("values", [], "Values of --option, separated by commas.")
_STEPS = flags.DEFINE_integer("steps", 16, "Number of steps of the sampler.")
_NUM = flags.DEFINE_integer("num_samples", 1024, "Number of samples for each value.")
_BATCH = flags.DEFINE_integer("batch_size", 1024, "Number of samples drawn at a time.")
_SEED = DEFINE_seed("seed", 0, "Seed of the random draws, the same for every value.")
_JSON = DEFINE_output("json", "", "JSON file to write the rows to.")
_PLOT = DEFINE_output("plot", "", "PNG file to write; it shows every figure against the option.")


def main(argv) -> None:
    no_arguments(argv)
    require(bool(_WORKDIR.value), "no --workdir; expected that of a training run.")
    require(
        not _PLOT.value or find_spec("matplotlib") is not None,
        f"got --plot={_PLOT.value}, and there is no matplotlib: pip install 'flm-jax[plots]'.",
    )
    model = load_model(_WORKDIR.value)
    sampler = sampling_flags.sampler_of(model.config)
    plans = sweep_plans(sampler, _OPTION.value, _VALUES.value)
    length = model.net.max_length
    engine.check_request(model, [_STEPS.value], _NUM.value, length)
    require(_BATCH.value >= 1, f"got --batch_size={_BATCH.value}; expected at least 1.")
    task = open_data(model.config).task if model.config["data"]["task"] else None
    folder = getattr(sampler, "reward", "")
    pattern = text_reward.pattern(folder) if folder else ""
    given = nothing_given(min(_BATCH.value, _NUM.value), length)
    how = {"steps": _STEPS.value, "num": _NUM.value, "seed": _SEED.value}
    rows = []
    for value, sampler in plans:
        row = sweep_row(model, task, sampler, given, pattern, **how)
        rows.append({_OPTION.value: value, **row})
        if value == plans[0][0]:
            names = [k for k in rows[0] if not k.endswith(("_low", "_high"))]
            print("| " + " | ".join(n.replace("_", " ") for n in names) + " |")
            print("|" + "---|" * len(names))
        print("| " + " | ".join(f"{rows[-1][n]:.4g}" for n in names) + " |", flush=True)
    if _JSON.value:
        write_output(_JSON.value, to_json(rows, indent=1) + "\n")
    if _PLOT.value:
        draw_sweep(epath.Path(_PLOT.value), rows, _OPTION.value)
        print(f"wrote {_PLOT.value}")


if __name__ == "__main__":
    run_cli(main)
