"""Reinforce-DMD on the phrase tasks: distribution matching by the score function.

python -m flm_jax.train --config=configs/phrases/reinforce.py --workdir=runs/phrases/reinforce \
    --config.objective.teacher=runs/phrases/flm

As in configs/phrases/dmd.py, the discriminator has two updates before each of the map, each on a
third of the batch; the map starts from the flow. Hardware: CPU. The duration is unmeasured.
Expected for `phrases4`: docs/methods/flow_map.md, "Drawn tokens and a discriminator"; the other
tasks are unmeasured.
"""

from configs.phrases.recipe import recipe
from flm_jax.config import choose


def get_config(arg: str = ""):
    """`arg` names the task: phrases2 (default), phrases4, phrases_shared."""
    config = recipe(arg or "phrases2")
    config.model.two_time = True
    choose(config, objective="reinforce_matching")
    config.objective.teacher = "runs/phrases/flm"
    config.objective.auxiliary_updates = 2
    config.objective.auxiliary_lr = 1e-3
    config.objective.auxiliary_lead = 10
    config.optim.name = "muon"
    config.optim.lr = 5e-4
    config.train.batch = 768
    config.train.steps = 360
    config.train.log_every = 100
    config.eval.every = 0
    config.eval.sample_steps = 64
    return config
