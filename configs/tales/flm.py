"""FLM of the tales: an any-order flow, the first stage of the model that ships with the library.

bash launch/tales.sh PATH_OF_TEXTS
python -m flm_jax.train --config=configs/tales/flm.py:runs/tales --workdir=runs/tales/flm

The first command prepares the data and runs all stages. Hardware: one GPU; two CPU cores with the
launcher's settings. Duration and metrics: docs/results once they are measured.
"""

from configs.tales.recipe import flow


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/tales by default."""
    config = flow(arg)
    config.objective.name = "denoising"
    return config
