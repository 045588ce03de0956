"""Embedding flows and their flow maps on an exact task, as in configs/comparisons/tasks.py.

python -m flm_jax.evaluate --config=configs/comparisons/embedding_flows.py:phrases4 \
    --workdir=runs/embedding

Sizes, optimizer, rows and steps are the same as for the FLM and the FMLM there. States are
normalised embeddings with N(0, I) noise, times follow a learned distribution of gamma, and the path
is linear or variance-preserving. Each map is distilled by the semigroup route with its flow's table
frozen.

Hardware: one CPU core. Expected: see docs/results/tasks.md, "Embedding flows".
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from configs.comparisons.tasks import TASKS, small_model
from flm_jax.config import choose

PATHS = {"VP": "variance_preserving", "linear": "linear"}


def _embedded(task: str, steps: int, path: str):
    config = small_model(task, steps)
    choose(config, flow=path)
    config.flow.noise = "unit"
    config.flow.clock = "learnt"
    config.model.normalised_table = True
    return config


def get_config(arg: str = ""):
    """`arg` names the task: phrases4 (default) or another one of configs/comparisons/tasks.py."""
    task = arg or "phrases4"
    config = recipe.comparison(f"{task}: embedding flows and their maps")
    for short, path in PATHS.items():
        flow = _embedded(task, TASKS[task]["flow"], path)
        flow_map = _embedded(task, TASKS[task]["distil"], path)
        flow_map.optim.lr = 2e-3
        flow_map.model.two_time = True
        choose(flow_map, objective="semigroup")
        for name, model, steps, teacher in (
            (f"{short}_flow", flow, (1, 4, 8, 64), ""),
            (f"{short}_map", flow_map, (1, 2, 4, 8), f"{short}_flow"),
        ):
            entry = {"config": model, "steps": steps, "teacher": teacher}
            config.models[name] = ConfigDict(entry)
    return config
