"""Distribution matching on the phrase tasks: the FMLM of configs/phrases/fmlm.py, finished by it.

python -m flm_jax.train --config=configs/phrases/dmd.py --workdir=runs/phrases/dmd \
    --config.objective.teacher=runs/phrases/flm --config.objective.start=runs/phrases/fmlm

Hardware: CPU. The duration is unmeasured. Expected for `phrases4`: docs/methods/flow_map.md,
"Distribution matching"; the other tasks are unmeasured.
"""

from configs.phrases.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = recipe(arg or "phrases2")
    config.model.two_time = True
    choose(config, objective="distribution_matching")
    config.objective.teacher = "runs/phrases/flm"
    config.objective.start = "runs/phrases/fmlm"
    config.objective.auxiliary_updates = 2
    config.objective.auxiliary_lr = 1e-3
    config.objective.auxiliary_lead = 10
    config.objective.from_noise = 0.5
    config.objective.row_weighting = "distance"
    config.optim.name = "muon"
    config.optim.lr = 5e-4
    config.train.batch = 768
    config.train.steps = 500
    config.train.log_every = 100
    config.eval.every = 0
    config.eval.sample_steps = 1
    return config
