"""The small masked flow fine-tuned to answer sums, with questions that are always clean.

python -m flm_jax.train --config=configs/masked_flow/small_sft.py --workdir=runs/small/sft

What follows an answer is hidden with it, so that the flow learns how long answers are.

Hardware: two CPU cores.
"""

from configs.masked_flow import recipe, small_adapt


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    runs = arg or "runs/small"
    config = small_adapt.get_config(runs)
    recipe.fine_tune(config, start=f"{runs}/adapt")
    config.flow.law.bins = 32
    config.optim.lr = 1e-3
    config.train.steps = 1200
    return config
