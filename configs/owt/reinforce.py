"""Reinforce-DMD of the FLM on OpenWebText (arXiv 2609.40235).

python -m flm_jax.train --config=configs/owt/reinforce.py --workdir=runs/owt/reinforce \
    --config.objective.teacher=runs/owt/flm

As the paper reports it: four texts are drawn from each state, and the divergence from the teacher
has weight 0.5; it was best in 128 calls and more. Its teacher is a LangFlow, which is possible here
too; the FLM is what configs/owt/dmd.py has. All else is as there, since the paper's text was not at
hand: updates of the discriminator, learning rates, rows and steps. Data and hardware are the same
as in configs/owt/flm.py. Duration and metrics are unmeasured here.
"""

from configs.owt.recipe import distilled, recipe


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = distilled(recipe(arg), "reinforce_matching")
    config.objective.auxiliary_updates = 4
    config.objective.draws = 4
    config.objective.teacher_weight = 0.5
    config.optim.warmup_steps = 100
    config.optim.ema_decay = 0.99
    config.train.steps = 2000
    config.train.batch = 5 * 512
    config.eval.every = 500
    config.eval.sample_steps = 128
    return config
