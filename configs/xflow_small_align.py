"""The small masked diffusion model of sums aligned on its own answers; CPU.

python -m flm_jax.generate --workdir=runs/xflow/base --num=20000 --method=confidence \
    --temperature=0 --steps=4 --out=runs/xflow/own
python -m flm_jax.train --config=configs/xflow_small_align.py --workdir=runs/xflow/align
"""

from configs import xflow_small_base


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/xflow by default."""
    runs = arg or "runs/xflow"
    config = xflow_small_base.get_config()
    config.objective.name = "alignment"
    config.objective.teacher = f"{runs}/base"
    config.data.generated = f"{runs}/own"
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 20
    config.train.steps = 400
    config.train.log_every = 50
    config.train.checkpoint_every = 200
    config.eval.batches = 8
    return config
