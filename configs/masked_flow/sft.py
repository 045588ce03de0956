"""MLFM (arXiv 2606.27617): the adapters of configs/masked_flow/adapt.py fine-tuned on answers.

python -m flm_jax.train --config=configs/masked_flow/sft.py --workdir=runs/mlfm_sft

The adapters start from the averaged ones of runs/mlfm_adapt, with a fresh optimizer. In half of the
rows everything but the prompt is hidden, and gamma follows the cross entropy of whole answers. The
number of steps, the batch and the length are not from the paper.

Hardware: accelerators. Duration and metrics are unmeasured.
"""

from configs.masked_flow import adapt, recipe


def get_config(arg: str = ""):
    """`arg` is the folder of runs, runs by default."""
    runs = arg or "runs"
    config = adapt.get_config(runs)
    recipe.fine_tune(config, start=f"{runs}/mlfm_adapt")
    config.data.path = ""
    config.data.chat = (("data/gsm8k/train.jsonl", 1.0),)
    config.model.length = 512
    config.optim.lr = 5e-5
    config.train.steps = 20_000
    return config
