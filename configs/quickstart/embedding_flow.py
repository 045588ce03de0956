"""Embedding flow on the documentation of the running Python: the quickstart's FLM, other noise.

python -m flm_jax.train --config=configs/quickstart/embedding_flow.py \
    --workdir=runs/quickstart/embedding

The data are the same as in configs/quickstart/flm.py. States are normalised embeddings with N(0, I)
noise on the variance-preserving path, and the distribution of times is learned
(docs/methods/embedding_flow.md).

Hardware: two CPU cores. Duration and texts are unmeasured.
"""

from configs.quickstart.recipe import flow
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` is the folder of the quickstart, runs/quickstart by default."""
    config = flow(arg or "runs/quickstart")
    choose(config, flow="variance_preserving")
    config.model.normalised_table = True
    return config
