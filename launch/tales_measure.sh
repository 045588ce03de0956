#!/usr/bin/env bash
# Measures what launch/tales.sh packed, on two CPU cores in about half an hour.
#
#   bash launch/tales_measure.sh MODELS --data=PREPARED [--dry_run] [--judge=FOLDER] [--second=FOLDER]
#       [--out=runs/tales_figures] [--samples=256] [--gamma=0.5]
#
# MODELS holds the folders map, flm, fmlm, mdlm and ar, as `launch/tales.py unpack PACK MODELS` makes
# them; --judge is its `ar` by default. The table has judge perplexity, entropy, kernel distance,
# distinct pairs, share of known words and share of copied samples of map, flm and fmlm in 1, 2, 4
# and 8 calls and of mdlm in 1 to 64, and of the data. With --second, map and mdlm are judged once
# more, by another AR model. Rows and samples lie in --out: figures.json and second.json. PYTHON names
# the interpreter (default python).
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
source launch/_launch.sh
models="" data="" judge="" second="" out=runs/tales_figures samples=256 gamma=0.5
for argument in "$@"; do
  case $argument in
    --help) usage "$0"; exit 0 ;;
    --dry_run) dry_run=1 ;;
    --*) set_option "data judge second out samples gamma" "$argument" "--dry_run or one of" "" ;;
    *) models=$argument ;;
  esac
done
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$2" "$1" ;; esac; }
[ -n "$models" ] || fail "no folder of models; expected that of launch/tales.py unpack"
[ -n "$data" ] || fail "no --data; expected the prepared folder of the tales"
models=$(absolute "$models" "$here") data=$(absolute "$data" "$here") out=$(absolute "$out" "$here")
judge=$(absolute "${judge:-$models/ar}" "$here")
[ -z "$second" ] || second=$(absolute "$second" "$here")

python=${PYTHON:-python}
run export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$out/cache}" PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
run mkdir -p "$out"
run "$python" launch/tales.py words "$data" "$out/words.txt"
common=(--data="$data" --words="$out/words.txt" --num_samples="$samples" --batch_size=64 --show=2)
# Maps get some fresh noise after each jump; flows and mdlm know no such thing.
run "$python" -m flm_jax.evaluate "${common[@]}" --copied=12 --judge="$judge" --gamma="$gamma" \
  --model="$models/map:1,2,4,8" --model="$models/fmlm:1,2,4,8" --json="$out/maps.json"
run "$python" -m flm_jax.evaluate "${common[@]}" --copied=12 --judge="$judge" \
  --model="$models/flm:1,2,4,8,32" --model="$models/mdlm:1,2,4,8,16,32,64" --json="$out/others.json"
run "$python" launch/tales.py join "$out/figures.json" "$out/maps.json" "$out/others.json"
if [ -n "$second" ]; then
  run "$python" -m flm_jax.evaluate "${common[@]}" --judge="$second" --gamma="$gamma" --model="$models/map:1,4" \
    --json="$out/second_map.json"
  run "$python" -m flm_jax.evaluate "${common[@]}" --judge="$second" --model="$models/mdlm:8,32" \
    --json="$out/second_mdlm.json"
  run "$python" launch/tales.py join "$out/second.json" "$out/second_map.json" "$out/second_mdlm.json"
fi
