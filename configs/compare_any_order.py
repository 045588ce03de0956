"""FLM and FMLM trained with random clean context, and MDLM, at equal parameters and tokens.

python -m flm_jax.evaluate --config=configs/compare_any_order.py:arithmetic1 --workdir=runs/any

`sudoku` and `arithmetic` (three digits) are the other tasks. MDLM takes as many steps of as many
rows as FLM and FMLM together.
"""

from ml_collections import ConfigDict

from flm_jax.defaults import base_config

# task -> sizes, learning rate of the FLM, rows, steps of the FLM, steps of its distillation, calls
# to compare at, share of rows with a context, and share of pairs (0, 1) in distillation (refinement
# asks no others).
TASKS = {
    "arithmetic1": dict(
        length=6,
        dim=64,
        depth=3,
        lr=5e-3,
        batch=256,
        flow=4000,
        distil=2000,
        calls=(2, 4, 8),
        context=0.5,
        boundary=1 / 32,
    ),
    "arithmetic": dict(
        length=12,
        dim=128,
        depth=4,
        lr=1e-3,
        batch=256,
        flow=2000,
        distil=2000,
        calls=(2, 4, 8),
        context=0.5,
        boundary=1 / 32,
    ),
    "sudoku": dict(
        length=81,
        dim=96,
        depth=4,
        lr=2e-3,
        batch=32,
        flow=1500,
        distil=600,
        calls=(2, 4, 8, 16),
        context=1.0,
        boundary=0.25,
    ),
}


def _model(task: str, steps: int):
    sizes = TASKS[task]
    config = base_config()
    config.data.task = task
    config.model.length = sizes["length"]
    config.model.dim = sizes["dim"]
    config.model.depth = sizes["depth"]
    config.model.heads = 4
    # Rotary positions alone do not tell a row of the grid from the next.
    config.model.position_table = task == "sudoku"
    config.optim.name = "muon"
    config.optim.lr = sizes["lr"]
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
    """`arg` names the task: arithmetic1 (default), arithmetic, sudoku."""
    task = arg or "arithmetic1"
    flow, distil, calls = (TASKS[task][key] for key in ("flow", "distil", "calls"))
    flm = _model(task, flow)
    flm.model.posterior_input = True
    flm.objective.context = TASKS[task]["context"]
    fmlm = _model(task, distil)
    fmlm.optim.lr = 2e-3
    fmlm.model.two_time = True
    fmlm.model.posterior_input = True
    fmlm.objective.name = "semigroup"
    fmlm.objective.context = TASKS[task]["context"]
    fmlm.objective.boundary = TASKS[task]["boundary"]
    mdlm = _model(task, flow + distil)
    mdlm.objective.name = "masked"
    config = ConfigDict()
    config.title = f"{task}: posterior refinement against plain jumps and masked diffusion"
    config.samples = 1000 if task == "sudoku" else 10_000
    config.batch_size = 250 if task == "sudoku" else 2500
    config.seed = 0
    config.models = ConfigDict()
    refined = {label: {"steps": calls, "refine": label} for label in ("topk", "uniform")}
    if task == "sudoku":  # where one answer is right: its most probable digits
        refined["marginal"] = {"steps": calls, "refine": "topk", "refine_until": 0.0}
    confident = {"confidence": {"steps": calls, "method": "confidence"}}
    for name, model, steps, teacher, ways in (
        ("FLM", flm, (1, *calls, 64), "", {}),
        ("FMLM", fmlm, (1, *calls), "FLM", refined),
        ("MDLM", mdlm, (1, *calls), "", confident),
    ):
        config.models[name] = ConfigDict(
            {"config": model, "steps": steps, "teacher": teacher, "ways": ways}
        )
    return config
