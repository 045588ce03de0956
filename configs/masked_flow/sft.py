"""MLFM (arXiv 2606.27617): the flow of configs/masked_flow/adapt.py fine-tuned on answers.

python -m flm_jax.train --config=configs/masked_flow/sft.py --workdir=runs/mlfm_sft

Adapters and the curve of gamma start from runs/mlfm_adapt, with a fresh optimizer. In half of the
rows everything but the prompt is hidden. Steps and warm-up are the paper's; the released
configuration takes 30,000 steps with a warm-up of 200. The base is trained as in that one; in the
paper it stays frozen (--config.adapters.base_lr=0).

The files come from the data sets' own repositories, see docs/methods/masked_flow.md.

Hardware: accelerators. Duration and metrics are unmeasured.
"""

from configs.masked_flow import adapt, recipe

_MATHEMATICS = {"gsm8k_aug_nl": 0.6, "metamathqa": 0.2, "numinamath": 0.2}
_WEIGHTS = {"general": 0.2, "code": 0.2} | {k: 0.6 * v for k, v in _MATHEMATICS.items()}


def get_config(arg: str = ""):
    """`arg` is the folder of runs, runs by default."""
    runs = arg or "runs"
    config = adapt.get_config(runs)
    recipe.fine_tune(config, start=f"{runs}/mlfm_adapt")
    config.data.path = ""
    config.data.prefix_crop = 0.0
    config.data.chat = tuple((f"data/sft/{name}.jsonl", w) for name, w in _WEIGHTS.items())
    config.optim.lr = 5e-5
    config.train.steps = 50_000
    return config
