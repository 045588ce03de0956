"""The small masked flow fine-tuned to answer "a+b=", with prompts that are always clean.

python -m flm_jax.train --config=configs/masked_flow/small_sft.py --workdir=runs/small/sft

Hardware: two CPU cores. The duration is unmeasured. Expected: with 16 steps, guidance 2 and
promotion 0.2, 75.3% of the problems "a+b=" are solved in 11.3 network calls on average
(docs/methods/masked_flow.md, "A small run, on two CPU cores").
"""

from configs.masked_flow import recipe, small_adapt


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    runs = arg or "runs/small"
    config = small_adapt.get_config(runs)
    recipe.fine_tune(config, start=f"{runs}/adapt")
    config.objective.prompt = 6
    config.optim.lr = 5e-4
    config.train.steps = 180
    return config
