"""Distribution matching of the masked flow of configs/masked_flow/sft.py: an answer in one call.

python -m flm_jax.train --config=configs/masked_flow/dmd.py --workdir=runs/mlfm_dmd

Masked flows (arXiv 2606.27617) with Simplex-DMD (arXiv 2609.40235), which nobody published; the
settings are taken from fine-tuning and from distribution matching of text. With
--config.adapters.start=runs/mlfm_map the student starts from the flow map of
configs/masked_flow/map.py. The tests trace it; nothing of this size was run.

Hardware: accelerators. Duration and metrics are unmeasured.
"""

from configs.masked_flow import recipe, sft


def get_config(arg: str = ""):
    """`arg` is the folder of runs, runs by default."""
    runs = arg or "runs"
    config = sft.get_config(runs)
    recipe.match(config, flow=f"{runs}/mlfm_sft")
    # Four updates of the auxiliary, one of the student: each has a fifth of the batch.
    config.train.batch = 5 * (config.train.batch // 4)
    config.train.steps = 2_000
    config.eval.sample_steps = 1
    return config
