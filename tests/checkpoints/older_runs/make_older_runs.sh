#!/bin/bash
# Makes older_runs/ anew: bash make_older_runs.sh CHECKOUT PYTHON, in an empty folder.
set -euo pipefail
root=$1 python=$2
export PYTHONPATH=$root JAX_PLATFORMS=cpu
unset XLA_FLAGS
flm() { echo "--- $*" >&2; "$python" -m "flm_jax.$1" "${@:2}"; }
small="--config.model.dim=8 --config.model.depth=1 --config.model.heads=2 --config.model.cond_dim=2
 --config.model.mlp_ratio=2 --config.train.batch=16 --config.train.log_every=2 --config.eval.every=0
 --config.eval.batches=1 --config.eval.sample_steps=4 --config.optim.warmup_steps=2
 --config.optim.lr=0.01 --config.train.keep_checkpoints=1 --config.optim.ema_decay=0.9"
sums="$small --config.data.task_size=512 --config.model.length=6 --config.train.steps=4"

cat > text.txt <<'TEXT'
the flow carries noise to text
the map jumps over the whole of it
a mask hides a word of the text
the word is found and the mask is gone
one call or four calls write the line
a line of words is a text
TEXT
flm prepare_data --source=text --path=text.txt --split_documents=line --tokenizer=characters \
    --valid_fraction=0.3 --out=data
flm train --config="$root/configs/phrases_flm.py:arithmetic1" --workdir=flow $sums
flm train --config="$root/configs/phrases_fmlm.py:arithmetic1" --workdir=flow_map $sums \
    --config.objective.teacher=flow
flm train --config="$root/configs/phrases_mdlm.py:arithmetic1" --workdir=masked $sums \
    --config.train.steps=60
flm generate --workdir=masked --num=40 --method=confidence --temperature=0 --steps=2 --out=own
flm train --config="$root/configs/phrases_mdlm.py:arithmetic1" --workdir=aligned $sums \
    --config.objective.name=alignment --config.objective.teacher=masked --config.data.generated=own
# Data of a corpus, in records with BOS and EOS.
flm train --config="$root/configs/quickstart_ar.py" --workdir=autoregressive $small \
    --config.data.path=data --config.data.packing=wrap --config.model.length=8 \
    --config.model.loss_tile=0 --config.train.steps=4 --config.train.batch=8
flm train --config="$root/configs/mlfm_small_base.py" --workdir=bridge/base $sums \
    --config.data.task=arithmetic1 --config.train.steps=300 --config.train.log_every=100
flm train --config="$root/configs/mlfm_small_adapt.py:bridge" --workdir=bridge/adapt $sums \
    --config.data.task=arithmetic1 --config.adapters.rank=2 --config.adapters.head_rank=2 \
    --config.adapters.cond_dim=2 --config.bridge.refit_every=2 --config.optim.lr=0.002
flm train_policy --config="$root/configs/xflow_small_policy.py" --workdir=policy \
    --config.model=aligned --config.prompts=400 --config.prompt_batch=2 --config.group=4 \
    --config.policy.hidden=8 --config.optim.lr=0.1 --config.optim.warmup_steps=0 \
    --config.optim.ema_decay=0.5 --config.train.steps=4
flm train_reward --workdir=flow --match="= 1" --steps=4 --batch_size=64 --lr=0.003 --out=reward
for model in flow flow_map bridge/adapt; do
    flm convert --workdir=$model --export=exported/$(basename $model)
done
flm convert --workdir=flow_map --export=flow_map.safetensors
flm convert --source=flm --checkpoint=flow_map.safetensors --workdir=imported --heads=2 \
    --length=6 --tokenizer=flow_map/tokenizer
rm -rf */tensorboard */*/tensorboard */samples */*/samples flow_map.safetensors text.txt
rm -f [!f]*/metrics.jsonl flow_map/metrics.jsonl bridge/*/metrics.jsonl
