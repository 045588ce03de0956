"""Duo, uniform-state diffusion (arXiv 2506.10892), on the phrase tasks.

python -m flm_jax.train --config=configs/phrases/duo.py --workdir=runs/phrases/duo

With rotary positions alone, pure noise looks the same from all positions, so that one network
evaluation could not distinguish first words from second ones. config.model.position_table
distinguishes them, as the anchors of positions do in configs/phrases/mdlm.py.

Hardware: CPU. The duration and the figures are unmeasured.
"""

from configs.phrases.recipe import baseline
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = baseline(arg or "phrases2")
    config.model.position_table = True
    choose(config, objective="uniform_diffusion")
    config.train.steps = 1500
    return config
