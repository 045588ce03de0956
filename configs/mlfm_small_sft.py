"""The small masked flow fine-tuned to answer "a+b=", its prompts always clean; CPU.

python -m flm_jax.train --config=configs/mlfm_small_sft.py --workdir=runs/small/sft
"""

from configs import mlfm_small_adapt


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/small by default."""
    runs = arg or "runs/small"
    config = mlfm_small_adapt.get_config(runs)
    config.adapters.start = f"{runs}/adapt"
    config.bridge.prompt = 6
    config.bridge.learnt = "empirical"
    config.bridge.normal = 0.0
    config.bridge.whole = 0.5
    config.optim.lr = 5e-4
    config.train.steps = 180
    return config
