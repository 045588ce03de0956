"""LLaDA2.0-mini aligned on answers that it wrote itself: 400 steps of LoRA.

python -m flm_jax.train --config=configs/x_prediction/llada2_align.py --workdir=runs/llada2/align

The model is what `convert --source=llada2 --length=1024` wrote to runs/llada2/base, its answers
what `generate_data` wrote to runs/llada2/own (docs/methods/x_prediction.md has all commands). LoRA
is of the matrices that every token passes: attention, the first block's MLP, the shared experts.

Hardware: 8 accelerators of 80 GiB or more. Duration and metrics are unmeasured.
"""

from configs.x_prediction import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/llada2 by default."""
    runs = arg or "runs/llada2"
    config = recipe.published_align(runs)
    config.adapters.base = f"{runs}/base"
    config.adapters.time = "none"
    config.adapters.fused_qkv = False
    config.adapters.head_rank = 0
    config.adapters.rank = 64
    config.adapters.alpha = 128.0
    # The sizes of the base model, for `compile`; `train` reads them from the base model.
    config.model.vocab_size = 157184
    config.model.dim = 2048
    config.model.depth = 20
    config.model.heads = 16
    config.model.kv_heads = 4
    config.model.mlp_hidden = 5120
    config.model.rope_base = 600_000.0
    config.model.rotary_share = 0.5
    config.model.norm_eps = 1e-6
    config.model.qk_norm = True
    config.model.mask_id = 156895
    config.model.block_length = 32
    config.model.param_dtype = "bfloat16"
    config.model.experts.number = 256
    config.model.experts.groups = 8
    config.model.experts.active_groups = 4
    config.model.experts.scale = 2.5
    config.sampler.block_length = 32
    # The base is frozen, and each device holds it whole.
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.optim.lr = 1e-4
    config.train.steps = 400
    return config
