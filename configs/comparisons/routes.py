"""One-call flow maps by every route, with and without a teacher, at equal training time.

python -m flm_jax.evaluate --config=configs/comparisons/routes.py:arithmetic1 --workdir=runs/routes

A route whose steps take longer takes fewer of them: COST is the time of a step relative to one of
the semigroup route, measured by `python -m flm_jax.bench --filter=routes`. With a teacher a flow
map starts from the teacher's weights; without one it starts from random weights and trains for the
same time.

Hardware: two CPU cores. The duration is unmeasured. Expected: on `arithmetic1` between 33.4% and
34.7% of the samples are valid with a teacher, and between 7.5% and 9.0% without one
(docs/methods/flow_map.md, "One call on sums, at equal time"). `phrases4` is unmeasured.
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from flm_jax.config import choose

COST = {"semigroup": 1.0, "eulerian": 1.07, "lagrangian": 1.09, "endpoint": 1.78}
# task -> sizes, learning rate, rows, steps of the teacher, steps of the semigroup route.
TASKS = {
    "phrases4": dict(length=2, dim=64, depth=4, lr=1e-3, batch=256, flow=1500, distil=1000),
    "arithmetic1": dict(length=6, dim=64, depth=3, lr=5e-3, batch=256, flow=4000, distil=600),
}


def _model(task: str, steps: int, lr: float):
    config = recipe.model(TASKS[task], steps, lr)
    config.data.task = task
    config.optim.name = "muon"
    config.optim.ema_decay = 0.998 if steps > 1000 else 0.99
    config.train.log_every = 200
    config.eval.sample_steps = 1
    return config


def get_config(arg: str = ""):
    """`arg` names the task: arithmetic1 (default), phrases4."""
    task = arg or "arithmetic1"
    sizes = TASKS[task]
    config = recipe.comparison(f"{task}: routes to a flow map at equal training time")
    teacher = _model(task, sizes["flow"], sizes["lr"])
    config.models.FLM = ConfigDict({"config": teacher, "steps": (1, 8, 64), "teacher": ""})
    for alone in (False, True):
        for route, cost in COST.items():
            model = _model(task, round(sizes["distil"] / cost), sizes["lr"] if alone else 2e-3)
            model.model.two_time = True
            choose(model, objective=route)
            config.models[f"{route}_alone" if alone else route] = ConfigDict(
                {"config": model, "steps": (1,), "teacher": "" if alone else "FLM"}
            )
    return config
