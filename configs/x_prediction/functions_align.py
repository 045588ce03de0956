"""The model of configs/x_prediction/functions_base.py aligned on programs that it wrote itself.

python -m flm_jax.generate_data --workdir=runs/functions/base --num=6000 --steps=24 \
    --block_length=4 --batch_size=500 --sampler=confidence --temperature=0 --out=runs/functions/own
python -m flm_jax.train --config=configs/x_prediction/functions_align.py \
    --workdir=runs/functions/align

Hardware: one CPU core. Duration: 3 minutes for the programs and 7 for the alignment, beside other
work. Expected: programs of the flow with its default step size pass their unit tests for 97.9% of
the problems in 4 network calls (docs/methods/x_prediction.md, "Small Python functions, on one CPU
core").
"""

from configs.x_prediction import functions_base, recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/functions by default."""
    config = functions_base.get_config()
    recipe.align(config, arg or "runs/functions")
    config.objective.inputs = "predicted"
    config.optim.lr = 1e-3
    config.eval.batches = 2
    return config
