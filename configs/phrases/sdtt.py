"""SDTT (arXiv 2410.21035), self-distillation through time of the MDLM of configs/phrases/mdlm.py.

python -m flm_jax.train --config=configs/phrases/sdtt.py --workdir=runs/phrases/sdtt \
    --config.objective.teacher=runs/phrases/mdlm

Five rounds, from steps of 1/32 of the time to steps of 1/2.

Hardware: CPU. The duration and the figures are unmeasured.
"""

from configs.phrases.recipe import baseline
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = baseline(arg or "phrases2")
    choose(config, objective="through_time")
    config.objective.teacher = "runs/phrases/mdlm"
    config.objective.first_span = 1 / 32
    config.objective.round_steps = 200
    config.train.steps = 1000
    return config
