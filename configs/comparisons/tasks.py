"""FLM, FMLM, MDLM, Duo and AR on an exact task, at equal parameters and training tokens.

python -m flm_jax.evaluate --config=configs/comparisons/tasks.py:phrases4 --workdir=runs/compare

MDLM, Duo and AR take as many steps of as many rows as FLM and FMLM together. So do their distilled
forms MDLM_sdtt and Duo_dcd with the bases that they start from. ReMDM is the MDLM sampled
otherwise. Duo has a table of positions, since pure noise carries no position
(configs/phrases/duo.py).

Hardware: one CPU core. Duration: 44 minutes for `phrases4`, 37 for `arithmetic1`. Expected: on
`phrases4` 99.1% of FMLM's samples in one network call are valid, and 91.7% of MDLM's in 8; on
`arithmetic1` MDLM leads from 4 calls on (docs/results/tasks.md). `phrases2`, `arithmetic` and
`grammar` are unmeasured; the last two take longer.
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
    sdtt = recipe.distilled(small_model(task, distil), "through_time")
    masked = small_model(task, flow)
    choose(masked, objective="masked_diffusion")
    duo, uniform, dcd = (small_model(task, steps) for steps in (flow + distil, flow, distil))
    for model in (duo, uniform, dcd):
        model.model.position_table = True
        choose(model, objective="uniform_diffusion")
    recipe.distilled(dcd, "discrete_consistency")
    ar = small_model(task, flow + distil)
    choose(ar, model="causal", objective="autoregressive")
    ar.model.dim = TASKS[task]["ar_dim"]
    length = TASKS[task]["length"]
    config = recipe.comparison(f"{task}: samples of models trained on as many tokens")
    few, many = (1, 2, 4, 8), (1, 2, 4, 8, 64)
    remasked = {name: way | {"steps": (8, 64)} for name, way in recipe.REMASKED.items()}
    greedy = {"greedy": {"steps": few, "tail": "greedy"}}
    for name, model, steps, teacher, ways in (
        ("FLM", flm, (1, 4, 8, 64), "", {}),
        ("FMLM", fmlm, few, "FLM", {}),
        ("MDLM", mdlm, many, "", remasked),
        ("MDLM_base", masked, (), "", {}),
        ("MDLM_sdtt", sdtt, few, "MDLM_base", {}),
        ("Duo", duo, many, "", {}),
        ("Duo_base", uniform, (), "", {}),
        ("Duo_dcd", dcd, few, "Duo_base", greedy),
        ("AR", ar, (length,), "", {}),
    ):
        config.models[name] = ConfigDict(
            {"config": model, "steps": steps, "teacher": teacher, "ways": ways}
        )
    return config
