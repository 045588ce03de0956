"""MDLM of the tales, masked diffusion (arXiv 2406.07524): what the map is compared with.

python -m flm_jax.train --config=configs/tales/mdlm.py:runs/tales --workdir=runs/tales/mdlm

It has the sizes of the flow, and as many training tokens as flow, map and distribution matching
together. The data are prepared by launch/tales.sh. Hardware: as for the flow. Duration and metrics:
docs/results once they are measured.
"""

from configs.tales.recipe import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default."""
    config = recipe(arg)
    config.objective.name = "masked"
    config.train.steps = 20_000
    return config
