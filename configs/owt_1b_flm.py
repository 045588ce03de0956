"""FLM on OpenWebText with 1.45 B parameters, 1024 tokens: a size for planning and for large slices.

python -m flm_jax.compile --config=configs/owt_1b_flm.py --vocab_size=50257 \
    --topology=v5p:4x4x4 --config.mesh.data=1 --config.mesh.fsdp=64 --config.model.attention=splash
python -m flm_jax.train --config=configs/owt_1b_flm.py --workdir=runs/owt_1b_flm

Hardware: 64 TPU v5p chips or 8 H200, see docs/planning.md. Compiled only, never run: unmeasured.
"""

from flm_jax.defaults import base_config


def get_config(arg: str = ""):
    """`arg` is the prepared folder, data/owt by default."""
    config = base_config()
    config.data.path = arg or "data/owt"
    config.data.packing = "wrap"
    config.data.prefetch = 16
    config.model.length = 1024
    config.model.dim = 2048
    config.model.depth = 24
    config.model.heads = 16
    config.model.dropout = 0.1
    config.model.dtype = "bfloat16"
    config.model.scan_blocks = True
    config.model.remat = "matmuls"
    config.model.loss_tile = 128
    config.optim.lr = 2e-4
    config.optim.warmup_steps = 2500
    config.train.steps = 500_000
    config.train.batch = 512
    config.train.log_every = 100
    config.train.checkpoint_every = 5000
    config.eval.every = 10_000
    config.eval.sample_steps = 128
    return config
