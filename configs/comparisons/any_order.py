"""FLM and FMLM trained with random clean context, and MDLM, at equal parameters and tokens.

python -m flm_jax.evaluate --config=configs/comparisons/any_order.py:arithmetic1 --workdir=runs/any

MDLM takes as many steps of as many rows as FLM and FMLM together.

Hardware: CPU. Duration: `sudoku` takes about an hour and a half on one busy core; the others are
unmeasured. Expected: on `arithmetic1`, in 4 network calls, 98% of the samples of posterior
refinement are valid, and 62 to 91% of MDLM's; on `sudoku`, in 16 calls, posterior refinement solves
22% of the puzzles, MDLM 5%, and MDLM decoded by confidence 88% (docs/results/tasks.md, "Sums
with clean context: posterior refinement" and "Sudoku"). `arithmetic` is unmeasured.
"""

from ml_collections import ConfigDict

from configs.comparisons import recipe
from flm_jax.config import choose

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
    config = recipe.model(TASKS[task], steps, TASKS[task]["lr"])
    config.data.task = task
    # Rotary positions alone do not tell a row of the grid from the next.
    config.model.position_table = task == "sudoku"
    config.optim.name = "muon"
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
    choose(fmlm, objective="semigroup")
    fmlm.objective.context = TASKS[task]["context"]
    fmlm.objective.boundary = TASKS[task]["boundary"]
    mdlm = _model(task, flow + distil)
    choose(mdlm, objective="masked_diffusion")
    config = recipe.comparison(
        f"{task}: posterior refinement against plain jumps and masked diffusion"
    )
    # So were the figures of docs/results/tasks.md made: they are older than the authors' rule.
    way = {"steps": calls, "sampler": "posterior_refinement", "spread": "even", "threshold": 1.0}
    refined = {label: way | {"budget": label} for label in ("topk", "uniform")}
    if task == "sudoku":
        config.samples = 1000
        config.batch_size = 250
        # One answer is right: its most probable digits.
        refined["marginal"] = way | {"until": 0.0}
    confident = {"confidence": {"steps": calls, "sampler": "confidence"}}
    for name, model, steps, teacher, ways in (
        ("FLM", flm, (1, *calls, 64), "", {}),
        ("FMLM", fmlm, (1, *calls), "FLM", refined),
        ("MDLM", mdlm, (1, *calls), "", confident),
    ):
        config.models[name] = ConfigDict(
            {"config": model, "steps": steps, "teacher": teacher, "ways": ways}
        )
    return config
