"""FLM and FMLM on sums of one digit, plain and self-conditioned, at equal steps and rows.

python -m flm_jax.evaluate --config=configs/comparisons/self_conditioning.py --workdir=runs/self

FMLM_self is distilled from the self-conditioned FLM, which makes two calls at each state. It takes
no estimate of its own, so a call costs what one of FMLM costs. All models are trained with random
clean context.

Hardware: two CPU cores. The duration is unmeasured. Expected: in 64 network calls 82% of the
samples of the self-conditioned FLM are valid, and 69% of the plain one's; in up to 8 calls
FMLM_self differs from FMLM by -1 to 3 points (docs/methods/self_conditioning.md, "Measured").
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from flm_jax.config import choose

SIZES = dict(length=6, dim=64, depth=3, batch=256)


def _model(steps: int, lr: float):
    config = recipe.model(SIZES, steps, lr)
    config.data.task = "arithmetic1"
    config.objective.context = 0.5
    config.optim.name = "muon"
    return config


def _student():
    config = _model(2000, 2e-3)
    config.model.two_time = True
    choose(config, objective="semigroup")
    return config


def get_config(arg: str = ""):
    """`arg` is ignored."""
    flm = _model(4000, 5e-3)
    own = _model(4000, 5e-3)
    own.model.self_conditioning = True
    twice = {"iterated": {"steps": (1, 4, 32), "iterations": 2}}
    config = recipe.comparison(
        "arithmetic1: self-conditioned flows, and flow maps distilled from them"
    )
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
