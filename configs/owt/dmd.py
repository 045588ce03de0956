"""Distribution matching of the FLM on OpenWebText (Simplex-DMD, arXiv 2609.40235).

python -m flm_jax.train --config=configs/owt/dmd.py --workdir=runs/owt/dmd \
    --config.objective.teacher=runs/owt/flm

As the paper reports it: 2,000 updates of the student, four of the auxiliary before each, AdamW at
3e-4, starts uniform and later times uniform after them. Its teacher is a LangFlow; here it is the
FLM, as no map is matched to a network whose own evidence is added to its output
(config.model.posterior_skip). Rows of an update, warm-up and average are our choice. Data and
hardware are the same as in configs/owt/flm.py. Duration and metrics are unmeasured here.
"""

from configs.owt.recipe import distilled, recipe


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = distilled(recipe(arg), "distribution_matching")
    config.objective.auxiliary_updates = 4
    config.optim.warmup_steps = 100
    config.optim.ema_decay = 0.99
    config.train.steps = 2000
    config.train.batch = 5 * 512
    config.eval.every = 500
    config.sampler.gamma = 1.0
    return config
