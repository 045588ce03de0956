"""FMLM on the phrase tasks, distilled from the FLM of configs/phrases/flm.py.

python -m flm_jax.train --config=configs/phrases/fmlm.py --workdir=runs/phrases/fmlm \
    --config.objective.teacher=runs/phrases/flm

Hardware: CPU. The duration is unmeasured. Expected: of 10,000 samples in one network call 99.2% are
valid, at a total variation of 0.009 from the true distribution on `phrases2` and of 0.010 on
`phrases4` (docs/results/tasks.md, "A flow and its map"); `phrases_shared` is unmeasured.
"""

from configs.phrases.recipe import recipe
from flm_jax.config import choose

STEPS = {"phrases2": 3000, "phrases4": 6000, "phrases_shared": 6000}
LR = {"phrases2": 1e-3, "phrases4": 2e-3, "phrases_shared": 2e-3}
EMA = {"phrases2": 0.99, "phrases4": 0.998, "phrases_shared": 0.998}


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    task = arg or "phrases2"
    config = recipe(task)
    config.model.two_time = True
    choose(config, objective="semigroup")
    config.objective.teacher = "runs/phrases/flm"
    config.optim.lr = LR.get(task, 1e-3)
    config.optim.ema_decay = EMA.get(task, 0.99)
    config.train.steps = STEPS.get(task, 3000)
    config.train.log_every = 500
    config.eval.every = 2000
    config.eval.sample_steps = 1
    return config
