"""Sums of one digit: FLM and FMLM, plain and self-conditioned, at equal steps and rows.

python -m flm_jax.evaluate --config=configs/compare_self_conditioning.py --workdir=runs/self

FMLM_self is distilled from the self-conditioned FLM, two calls at each state: it has no estimate of
its own, and costs what FMLM costs. All have random clean context.
"""

from ml_collections import ConfigDict

from flm_jax.defaults import base_config


def _model(steps: int):
    config = base_config()
    config.data.task = "arithmetic1"
    config.model.length = 6
    config.model.dim = 64
    config.model.depth = 3
    config.model.heads = 4
    config.objective.context = 0.5
    config.optim.name = "muon"
    config.optim.lr = 5e-3
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.998
    config.train.steps = steps
    config.train.batch = 256
    config.train.log_every = 500
    config.train.checkpoint_every = 1000
    config.eval.every = 0
    config.eval.sample_steps = 8
    return config


def _student():
    config = _model(2000)
    config.optim.lr = 2e-3
    config.model.two_time = True
    config.objective.name = "semigroup"
    return config


def get_config(arg: str = ""):
    flm = _model(4000)
    own = _model(4000)
    own.model.self_conditioning = True
    twice = {"iterated": {"steps": (1, 4, 32), "iterations": 2}}
    config = ConfigDict()
    config.title = "arithmetic1: self-conditioned flows, and flow maps distilled from them"
    config.samples = 10_000
    config.batch_size = 2500
    config.seed = 0
    config.models = ConfigDict()
    for name, model, steps, teacher, ways in (
        ("FLM", flm, (1, 8, 64), "", {}),
        ("FLM_self", own, (1, 8, 64), "", twice),
        ("FMLM", _student(), (1, 2, 4, 8), "FLM", {}),
        ("FMLM_self", _student(), (1, 2, 4, 8), "FLM_self", {}),
    ):
        config.models[name] = ConfigDict(
            {"config": model, "steps": steps, "teacher": teacher, "ways": ways}
        )
    return config
