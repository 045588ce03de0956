"""MLFM (2606.27617): fine-tuning of the adapters on answers, from those of mlfm_adapt.

python -m flm_jax.train --config=configs/mlfm_sft.py --workdir=runs/mlfm_sft

The adapters start from the average of runs/mlfm_adapt with a fresh optimizer; half of the rows hide
everything but the prompt, and gamma follows the cross entropy of whole answers. Number of steps,
batch and length are not from the paper. Hardware: accelerators; duration and metrics unmeasured.
"""

from configs import mlfm_adapt


def get_config(arg: str = ""):
    """`arg` is the folder of runs, runs by default."""
    runs = arg or "runs"
    config = mlfm_adapt.get_config(runs)
    config.adapters.start = f"{runs}/mlfm_adapt"
    config.data.path = ""
    config.data.chat = (("data/gsm8k/train.jsonl", 1.0),)
    config.model.length = 512
    config.bridge.learnt = "empirical"
    config.bridge.normal = 0.0
    config.bridge.whole = 0.5
    config.optim.lr = 5e-5
    config.train.steps = 20_000
    return config
