#!/usr/bin/env bash
# From nothing to one-step text generation on two CPU cores. In its first minute, installation apart,
# the model that comes with the library writes: in one call and in four, after a prompt, in a gap.
# Then it prepares the pydoc corpus, trains an FLM, distils it into an FMLM, compares them.
# Interrupted, it continues when run again.
# RUNS names another folder for its results (default runs/quickstart).
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/_venv.sh
make_venv .venv plots
runs=${RUNS:-runs/quickstart}
began=$SECONDS

tales() { python -m flm_jax.sample --workdir=tales --num_samples=2 --gamma=0.5 "$@"; }
echo "== text of the model that comes with the library, in one network call and in four"
tales --steps=1,4
echo "== the same after a prompt, and in a gap"
tales --steps=4 --prompt="Once upon a time"
tales --steps=4 --infill='"{12}," said the king. {24}'

echo "== 1/4 data: the documentation of this Python"
python -m flm_jax.prepare_data --source=pydoc --sentencepiece_model=unigram --vocab_size=2048 \
  --out="$runs/data"
echo "== 2/4 training a flow language model (FLM)"
python -m flm_jax.train --config=configs/quickstart/flm.py:"$runs" --workdir="$runs/flm"
echo "== 3/4 distilling it into a flow map (FMLM)"
python -m flm_jax.train --config=configs/quickstart/fmlm.py:"$runs" --workdir="$runs/fmlm"
echo "== 4/4 comparing"
python -m flm_jax.evaluate --model="$runs/flm:32" --model="$runs/fmlm:1,2,4" \
  --json="$runs/report.json"
echo "done in $((SECONDS - began)) s. Try:"
echo "  .venv/bin/python -m flm_jax.sample --workdir=$runs/fmlm --steps=1,4 --prompt='The '"
