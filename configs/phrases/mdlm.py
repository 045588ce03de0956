"""MDLM, masked diffusion (arXiv 2406.07524), on the phrase tasks.

python -m flm_jax.train --config=configs/phrases/mdlm.py --workdir=runs/phrases/mdlm

Hardware: CPU. The duration is unmeasured. Expected: on `phrases2`, ancestral sampling in K steps
gives a fraction of valid samples of 1 - 1/(2K), the best possible
(docs/methods/masked_diffusion.md, "MDLM"); the other tasks are unmeasured.
"""

from configs.phrases.recipe import baseline
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = baseline(arg or "phrases2")
    choose(config, objective="masked_diffusion")
    return config
