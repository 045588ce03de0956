"""Distribution matching of the small masked flow: sums in one to four network calls.

python -m flm_jax.train --config=configs/masked_flow/small_dmd.py --workdir=runs/small/dmd

Each step trains the auxiliary denoiser twice and the student once, each on a third of the batch.

Hardware: two CPU cores.
"""

from configs.masked_flow import recipe, small_sft


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    runs = arg or "runs/small"
    config = small_sft.get_config(runs)
    recipe.match(config, flow=f"{runs}/sft")
    config.objective.auxiliary_updates = 2
    config.objective.auxiliary_lr = 1e-3
    config.objective.auxiliary_lead = 10
    config.optim.lr = 5e-4
    config.train.batch = 48
    config.train.steps = 1000
    config.eval.sample_steps = 1
    return config
