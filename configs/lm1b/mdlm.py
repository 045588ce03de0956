"""MDLM, masked diffusion (arXiv 2406.07524), on LM1B with the data and sizes of the FLM.

python -m flm_jax.train --config=configs/lm1b/mdlm.py --workdir=runs/lm1b/mdlm

Data and hardware are the same as in configs/lm1b/flm.py. Duration and metrics are unmeasured.
"""

from configs.lm1b.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/lm1b by default."""
    config = recipe(arg)
    choose(config, objective="masked_diffusion")
    return config
