"""MDLM of the tales, masked diffusion (arXiv 2406.07524): what the map is compared with.

python -m flm_jax.train --config=configs/tales/mdlm.py:runs/tales --workdir=runs/tales/mdlm

It has the sizes of the flow, and trains by launch/tales.sh, which prepares the data, beside the
map: on an H200 it then sees 1.56 times the tokens of flow, map and distribution matching together.
Hardware: as for the flow. Duration and metrics: 13,000 steps in 185 s on an H200, 19 ms each; at
most 3.64 nats a token; judge perplexity 134 in 32 calls (docs/results/tales.md).
"""

from configs.tales.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default."""
    config = recipe(arg)
    choose(config, objective="masked_diffusion")
    config.train.steps = 20_000
    return config
