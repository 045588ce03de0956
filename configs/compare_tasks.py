"""FLM, FMLM, MDLM and AR on an exact task, at equal parameters and training tokens.

python -m flm_jax.evaluate --config=configs/compare_tasks.py:phrases4 --workdir=runs/compare

In docs/RESULTS.md: `phrases4` and `arithmetic1`, 44 and 37 minutes on a CPU core each; `arithmetic`
and `grammar` take longer and were not run. The baselines take as many steps of as many rows as FLM
and FMLM together.
"""

from ml_collections import ConfigDict

from flm_jax.defaults import base_config

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


def _model(task: str, steps: int):
    sizes = TASKS[task]
    config = base_config()
    config.data.task = task
    config.model.length = sizes["length"]
    config.model.dim = sizes["dim"]
    config.model.depth = sizes["depth"]
    config.model.heads = 4
    config.optim.lr = sizes.get("lr", 1e-3)
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.998
    config.train.steps = steps
    config.train.batch = sizes["batch"]
    config.train.log_every = 500
    config.train.checkpoint_every = 1000
    config.eval.every = 0
    config.eval.sample_steps = 8
    return config


def get_config(arg: str = ""):
    """`arg` names the task: phrases4 (default), phrases2, arithmetic1, arithmetic, grammar."""
    task = arg or "phrases4"
    flow, distil = TASKS[task]["flow"], TASKS[task]["distil"]
    flm = _model(task, flow)
    fmlm = _model(task, distil)
    fmlm.optim.lr = 2e-3
    fmlm.model.two_time = True
    fmlm.objective.name = "semigroup"
    mdlm = _model(task, flow + distil)
    mdlm.objective.name = "masked"
    ar = _model(task, flow + distil)
    ar.model.name = "causal"
    ar.objective.name = "autoregressive"
    ar.model.dim = TASKS[task]["ar_dim"]
    length = TASKS[task]["length"]
    config = ConfigDict()
    config.title = f"{task}: samples of models trained on as many tokens"
    config.samples = 10_000
    config.batch_size = 2500
    config.seed = 0
    config.models = ConfigDict()
    for name, model, steps, teacher in (
        ("FLM", flm, (1, 4, 8, 64), ""),
        ("FMLM", fmlm, (1, 2, 4, 8), "FLM"),
        ("MDLM", mdlm, (1, 2, 4, 8, 64), ""),
        ("AR", ar, (length,), ""),
    ):
        config.models[name] = ConfigDict({"config": model, "steps": steps, "teacher": teacher})
    return config
