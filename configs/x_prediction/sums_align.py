"""The model of configs/x_prediction/sums_base.py aligned on answers that it wrote itself.

python -m flm_jax.generate_data --workdir=runs/xflow/base --num=20000 --sampler=confidence \
    --temperature=0 --steps=4 --out=runs/xflow/own
python -m flm_jax.train --config=configs/x_prediction/sums_align.py --workdir=runs/xflow/align

Hardware: two CPU cores. Duration: 1.3 minutes. Expected: the flow with its default step size solves
96.7% of the problems "a+b=" in 2 network calls, and with objective.inputs=mixed 98.3%
(docs/methods/x_prediction.md, "A small run, on two CPU cores").
"""

from configs.x_prediction import recipe, sums_base


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/xflow by default."""
    config = sums_base.get_config()
    recipe.align(config, arg or "runs/xflow")
    config.optim.lr = 3e-4
    config.eval.batches = 8
    return config
