"""FLM, FMLM, MDLM and AR on an exact task, at equal parameters and training tokens.

python -m flm_jax.evaluate --config=configs/comparisons/tasks.py:phrases4 --workdir=runs/compare

MDLM and AR take as many steps of as many rows as FLM and FMLM together.

Hardware: one CPU core. Duration: 44 minutes for `phrases4`, 37 for `arithmetic1`. Expected: on
`phrases4` 99.1% of FMLM's samples in one network call are valid, and 91.7% of MDLM's in 8; on
`arithmetic1` MDLM leads from 4 calls on (docs/RESULTS.md). `phrases2`, `arithmetic` and `grammar`
are unmeasured; the last two take longer.
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from flm_jax.config import choose

# task -> sizes, learning rate, rows, steps of the FLM, steps of its distillation. The causal
# network has no time conditioning: a wider one has as many parameters.
TASKS = {
    "phrases2": dict(length=2, dim=64, depth=2, ar_dim=104, batch=512, flow=1500, distil=3000),
    "phrases4": dict(length=2, dim=64, depth=4, ar_dim=96, batch=512, flow=1500, distil=6000),
    "arithmetic1": dict(
        length=6, dim=64, depth=3, ar_dim=104, batch=256, lr=5e-3, flow=4000, distil=2000
    ),
    "arithmetic": dict(length=12, dim=128, depth=4, ar_dim=160, batch=256, flow=2000, distil=2000),
    "grammar": dict(length=16, dim=128, depth=4, ar_dim=160, batch=256, flow=2000, distil=2000),
}


def small_model(task: str, steps: int):
    """The FLM of a task; other models differ from it."""
    sizes = TASKS[task]
    config = recipe.model(sizes, steps, sizes.get("lr", 1e-3))
    config.data.task = task
    return config


def get_config(arg: str = ""):
    """`arg` names the task: phrases4 (default), phrases2, arithmetic1, arithmetic, grammar."""
    task = arg or "phrases4"
    flow, distil = TASKS[task]["flow"], TASKS[task]["distil"]
    flm = small_model(task, flow)
    fmlm = small_model(task, distil)
    fmlm.optim.lr = 2e-3
    fmlm.model.two_time = True
    choose(fmlm, objective="semigroup")
    mdlm = small_model(task, flow + distil)
    choose(mdlm, objective="masked_diffusion")
    ar = small_model(task, flow + distil)
    choose(ar, model="causal", objective="autoregressive")
    ar.model.dim = TASKS[task]["ar_dim"]
    length = TASKS[task]["length"]
    config = recipe.comparison(f"{task}: samples of models trained on as many tokens")
    for name, model, steps, teacher in (
        ("FLM", flm, (1, 4, 8, 64), ""),
        ("FMLM", fmlm, (1, 2, 4, 8), "FLM"),
        ("MDLM", mdlm, (1, 2, 4, 8, 64), ""),
        ("AR", ar, (length,), ""),
    ):
        config.models[name] = ConfigDict({"config": model, "steps": steps, "teacher": teacher})
    return config
