"""FLM on OpenWebText with 1.45 B parameters, 1024 tokens: a size for planning and for large slices.

python -m flm_jax.compile --config=configs/owt/flm_1b.py --vocab_size=50257 \
    --topology=v5p:4x4x4 --config.mesh.data=1 --config.mesh.fsdp=64 --config.model.attention=splash
python -m flm_jax.train --config=configs/owt/flm_1b.py --workdir=runs/owt/flm_1b

The data are the same as in configs/owt/flm.py. Hardware: 64 TPU v5p chips or 8 H200, for which it
was compiled, never run (docs/guides/planning.md). Duration and metrics are unmeasured.
"""

from configs.owt.recipe import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of prepared data, data/owt by default."""
    config = recipe(arg)
    config.objective.name = "denoising"
    config.model.dim = 2048
    config.model.depth = 24
    config.model.heads = 16
    config.model.remat = "matmuls"
    config.optim.lr = 2e-4
    config.train.steps = 500_000
    return config
