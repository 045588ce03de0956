"""The small masked diffusion model of functions aligned on programs of its own; CPU.

python -m flm_jax.generate --workdir=runs/functions/base --num=6000 --steps=24 --block_length=4 \
    --batch_size=500 --method=confidence --temperature=0 --out=runs/functions/own
python -m flm_jax.train --config=configs/xflow_functions_align.py --workdir=runs/functions/align
"""

from configs import xflow_functions_base


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/functions by default."""
    runs = arg or "runs/functions"
    config = xflow_functions_base.get_config()
    config.objective.name = "alignment"
    config.objective.prompt = 0  # the prompts of what was generated are known
    config.objective.teacher = f"{runs}/base"
    config.data.generated = f"{runs}/own"
    config.alignment.inputs = "predicted"
    config.optim.lr = 1e-3
    config.optim.warmup_steps = 20
    config.train.steps = 400
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.eval.batches = 2
    return config
