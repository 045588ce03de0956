"""The small masked flow distilled into its flow map: sums in one to eight network calls.

python -m flm_jax.train --config=configs/masked_flow/small_map.py --workdir=runs/small/map

The guidance of the masked flow is learnt with it, so that the map needs one call a step.

Hardware: two CPU cores.
"""

from configs.masked_flow import recipe, small_sft


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    runs = arg or "runs/small"
    config = small_sft.get_config(runs)
    recipe.distil(config, flow=f"{runs}/sft")
    config.objective.boundary = 1 / 8
    config.train.steps = 2000
    config.eval.sample_steps = 1
    return config
