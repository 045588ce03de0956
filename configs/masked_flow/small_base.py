"""A small masked diffusion model of sums of two digits, the base of the small masked flow.

python -m flm_jax.train --config=configs/masked_flow/small_base.py --workdir=runs/small/base

Hardware: two CPU cores. The duration is unmeasured. Expected: 93.6% of the problems "a+b=" are
solved in 3 network calls of low-confidence decoding, and 52.2% in 9 of ancestral sampling
(docs/methods/masked_flow.md, "A small run, on two CPU cores").
"""

from configs.masked_flow import recipe


def get_config(arg: str = ""):
    """`arg` is ignored."""
    config = recipe.small_base()
    config.data.task = "arithmetic2"
    config.model.length = 9
    config.model.dim = 64
    config.model.depth = 2
    config.train.steps = 4000
    config.eval.sample_steps = 9
    return config
