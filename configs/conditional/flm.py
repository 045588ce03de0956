"""A flow that answers questions: the answer comes from noise beside the clean question.

python -m flm_jax.generate_data --exchanges=topics --num=10000 \
    --out=runs/conditional/topics.jsonl
python -m flm_jax.train --config=configs/conditional/flm.py --workdir=runs/conditional/flm

Hardware: one CPU core. Duration: 5 minutes. Expected: 87% right answers in 32 network calls
(docs/results/tasks.md, "Questions and answers").
"""

from configs.conditional import recipe


def get_config(arg: str = ""):
    """`arg` is the folder of the runs, runs/conditional by default."""
    config = recipe.flow(arg)
    config.optim.lr = 5e-3
    config.train.steps = recipe.FLOW_STEPS
    return config
