"""One call of flow maps by every route, with a teacher and without, at equal training time.

python -m flm_jax.evaluate --config=configs/compare_routes.py:arithmetic1 --workdir=runs/routes

`phrases4` is the other task. A route whose steps take longer takes fewer of them: COST is the time
of a step in units of the semigroup's, measured by `python -m flm_jax.bench --filter=routes`. Routes
without a teacher begin from nothing, in the same time as the others, which begin as the teacher.
"""

from ml_collections import ConfigDict

from flm_jax.defaults import base_config

COST = {"semigroup": 1.0, "eulerian": 1.07, "lagrangian": 1.09, "endpoint": 1.78}
# task -> sizes, learning rates, steps of the teacher, steps of the semigroup route.
TASKS = {
    "phrases4": dict(length=2, depth=4, lr=1e-3, flow=1500, distil=1000),
    "arithmetic1": dict(length=6, depth=3, lr=5e-3, flow=4000, distil=600),
}


def _model(task: str, steps: int, lr: float):
    sizes = TASKS[task]
    config = base_config()
    config.data.task = task
    config.model.length = sizes["length"]
    config.model.dim = 64
    config.model.depth = sizes["depth"]
    config.model.heads = 4
    config.optim.name = "muon"
    config.optim.lr = lr
    config.optim.schedule = "cosine"
    config.optim.ema_decay = 0.998 if steps > 1000 else 0.99
    config.train.steps = steps
    config.train.batch = 256
    config.train.log_every = 200
    config.train.checkpoint_every = 1000
    config.eval.every = 0
    config.eval.sample_steps = 1
    return config


def get_config(arg: str = ""):
    """`arg` names the task: arithmetic1 (default), phrases4."""
    task = arg or "arithmetic1"
    sizes = TASKS[task]
    config = ConfigDict()
    config.title = f"{task}: routes to a flow map at equal training time"
    config.samples = 10_000
    config.batch_size = 2500
    config.seed = 0
    config.models = ConfigDict()
    teacher = _model(task, sizes["flow"], sizes["lr"])
    config.models.FLM = ConfigDict({"config": teacher, "steps": (1, 8, 64), "teacher": ""})
    for alone in (False, True):
        for route, cost in COST.items():
            model = _model(task, round(sizes["distil"] / cost), sizes["lr"] if alone else 2e-3)
            model.model.two_time = True
            model.objective.name = route
            config.models[f"{route}_alone" if alone else route] = ConfigDict(
                {"config": model, "steps": (1,), "teacher": "" if alone else "FLM"}
            )
    return config
