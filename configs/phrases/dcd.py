"""Discrete consistency distillation of Duo (arXiv 2506.10892) on the phrase tasks.

python -m flm_jax.train --config=configs/phrases/dcd.py --workdir=runs/phrases/dcd \
    --config.objective.teacher=runs/phrases/duo

Five rounds, from two states 1/32 of the time apart to two 1/2 apart.

Hardware: CPU. The duration and the figures are unmeasured.
"""

from configs.phrases.recipe import baseline
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = baseline(arg or "phrases2")
    config.model.position_table = True
    choose(config, objective="discrete_consistency")
    config.objective.teacher = "runs/phrases/duo"
    config.objective.first_span = 1 / 32
    config.objective.round_steps = 200
    config.train.steps = 1000
    return config
