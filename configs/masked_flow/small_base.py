"""A small masked diffusion model of written-out sums, the base of the small masked flow.

python -m flm_jax.train --config=configs/masked_flow/small_base.py --workdir=runs/small/base

Questions stay visible. Answers vary in length; the end-of-text tokens that fill a row after them
are learned too.

Hardware: two CPU cores.
"""

from configs.masked_flow import recipe


def get_config(arg: str = ""):
    """`arg` is ignored."""
    config = recipe.small_base()
    config.data.task = "written_sums"
    config.data.task_prompts = True
    config.model.length = 44
    config.model.dim = 128
    config.model.depth = 3
    config.optim.name = "muon"
    config.optim.lr = 3e-3
    config.train.batch = 64
    config.train.steps = 3000
    config.eval.sample_steps = 16
    return config
