"""The masked flow of configs/masked_flow/sft.py distilled into its flow map: few calls an answer.

python -m flm_jax.train --config=configs/masked_flow/map.py --workdir=runs/mlfm_map

The authors of masked flows (arXiv 2606.27617) name such a distillation as future work; the settings
are taken from fine-tuning and from flow maps. The tests trace it; nothing of this size was run.

Hardware: accelerators. Duration and metrics are unmeasured.
"""

from configs.masked_flow import recipe, sft


def get_config(arg: str = ""):
    """`arg` is the folder of runs, runs by default."""
    runs = arg or "runs"
    config = sft.get_config(runs)
    recipe.distil(config, flow=f"{runs}/mlfm_sft")
    config.train.steps = 20_000
    config.eval.sample_steps = 4
    return config
