#!/usr/bin/env bash
# Trains the models of the tales, of which one ships with the library, and packs them to be carried.
#
#   bash launch/tales.sh PATH_OF_TEXTS [--dry_run] [--data=PREPARED] [--out=runs/tales] [--seconds=540]
#       [--pack=FOLDER] [--wheels=FOLDER] [--work=/tmp/flm_tales] [--smoke] [--in_turn]
#
# PATH_OF_TEXTS is a .jsonl or .jsonl.gz with one {"text"} a line; with --data, a folder that
# prepare_data wrote, none is needed. On one GPU the flow, its map and distribution matching follow
# each other, while the AR judge and masked diffusion train beside them, all within --seconds.
# Without a GPU, or with --in_turn, all stages follow each other, in float32 and with smaller batches:
# give hours. A stage that ends, by its share of the time, is exported (weights in bfloat16, to be
# computed in float32) and packed at once into --pack (default: the folder `pack` of --out), in
# files below 15 MB: map, flm, fmlm, mdlm, ar, and report with metrics, logs and samples.
# launch/tales.py unpack opens them.
# Run again, it continues where it was; with more --seconds, also the stages that had ended.
# --wheels installs wheels of launch/gpu_wheels.sh into --work first, where the compilation cache
# lies as well. --smoke does all of it with tiny sizes on the CPU. PYTHON names the interpreter.
# The exit status is 0 if the map was packed, 1 if not, 2 for bad options.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
source launch/_launch.sh
texts="" data="" out=runs/tales seconds="" pack="" wheels="" work=${TMPDIR:-/tmp}/flm_tales smoke=0 in_turn=0
for argument in "$@"; do
  case $argument in
    --help) usage "$0"; exit 0 ;;
    --dry_run) dry_run=1 ;;
    --smoke) smoke=1 ;;
    --in_turn) in_turn=1 ;;
    --*) set_option "data out seconds pack wheels work" "$argument" "--dry_run, --smoke, --in_turn or one of" "" ;;
    *)
      [ -z "$texts" ] || fail "got two paths of texts, $texts and $argument; expected one"
      texts=$argument
      ;;
  esac
done
[ -n "$seconds" ] || seconds=$((smoke ? 160 : 540))
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "got --seconds=$seconds; expected a positive number"
[ -n "$texts$data" ] || fail "no texts; expected a path such as tales.jsonl.gz, or --data=PREPARED"
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$2" "$1" ;; esac; }
out=$(absolute "$out" "$here") work=$(absolute "$work" "$here")
[ -z "$texts" ] || texts=$(absolute "$texts" "$here")
[ -z "$wheels" ] || wheels=$(absolute "$wheels" "$here")
if [ -n "$pack" ]; then pack=$(absolute "$pack" "$here"); else pack=$out/pack; fi
if [ -n "$data" ]; then data=$(absolute "$data" "$here"); else data=$out/data; fi

python=${PYTHON:-python3} platform=cuda,cpu
gpu() { command -v nvidia-smi >/dev/null; }
# What stages, and only they, are told beside their configurations: all, and those of three networks.
train=(--config.data.path="$data") rows=(--config.train.batch=512) three=(--config.train.batch=768)
start_up=13 # seconds of a stage before and after its training
if [ "$smoke" = 1 ]; then
  platform=cpu start_up=12
  run export JAX_DISABLE_MOST_OPTIMIZATIONS=1
  train+=(--config.model.dim=32 --config.model.depth=1 --config.model.heads=2 --config.model.length=16
    --config.train.log_every=5 --config.train.checkpoint_every=20)
  rows=(--config.train.batch=4) three=(--config.train.batch=12)
elif ! gpu; then
  platform=cpu in_turn=1
  train+=(--config.model.dtype=float32 --config.model.loss_tile=16 --config.train.checkpoint_every=200)
  rows=(--config.train.batch=32) three=(--config.train.batch=96)
fi
run export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2 JAX_PLATFORMS=$platform \
  XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_COMPILATION_CACHE_DIR="$work/cache" \
  PYTHONPATH="$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"

say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }

# logged NAME COMMAND: its output at the end of a log.
logged() {
  local name=$1
  shift
  if [ "$dry_run" = 1 ]; then run "$@"; else "$@" >>"$out/logs/$name.log" 2>&1; fi
}

# training NAME WORKDIR SECONDS: the command of one stage in the array `line`.
training() {
  local batch=("${rows[@]}")
  [ "$1" != dmd ] || batch=("${three[@]}")
  line=("$python" -m flm_jax.train --config="configs/tales/$1.py:$out" --workdir="$2"
    "${train[@]}" "${batch[@]}" --config.train.seconds="$3" --config.train.steps=1000000)
  # The judge reads the texts a few times and no more; it then leaves the card to the others.
  [ "$1" != ar ] || [ "$in_turn" = 1 ] || line+=(--config.train.steps=2500)
  # Without a map from the route, distribution matching starts from the flow.
  [ "$1" != dmd ] || [ "$dry_run" = 1 ] || [ -e "$out/fmlm.ended" ] || line+=(--config.objective.start=)
}

# stage NAME UNTIL: trains until so many seconds after the start of this script, then exports.
stage() {
  local name=$1 left=$(($2 - SECONDS)) began=$SECONDS status=0 line=()
  if [ "$(cat "$out/$name.ended" 2>/dev/null || echo 0)" -ge "$seconds" ]; then
    say "$name: ended before"
  elif [ "$left" -lt $((start_up + 2)) ]; then
    say "$name: no time left"
    return 1
  else
    training "$name" "$out/$name" $((left - start_up))
    # The signal is for a stage that hangs: one that trains ends by itself, long before.
    logged "$name" timeout --preserve-status --signal=TERM --kill-after=30 $((left + 30)) "${line[@]}" || status=$?
    [ "$dry_run" = 1 ] || printf '%s\t%s\t%s\n' "$name" "$status" $((SECONDS - began)) >>"$out/stages.tsv"
    say "$name: status $status after $((SECONDS - began)) s: $(last "$name")"
    [ "$status" = 0 ] || [ "$dry_run" = 1 ] || tail -n 4 "$out/logs/$name.log"
    case $status in
      0) [ "$dry_run" = 1 ] || echo "$seconds" >"$out/$name.ended" ;;
      75) ;; # stopped after it saved
      *) return 1 ;;
    esac
  fi
  carry "$name" &
  carried+=($!)
}

last() { [ "$dry_run" = 1 ] || grep '^step ' "$out/logs/$1.log" | tail -n 1 || true; }

# carry NAME: exports and packs what a stage made; of the map also some texts.
carry() {
  local name=$1 shown=$1 left
  [ "$name" != dmd ] || shown=map
  run rm -rf "$out/export/$shown"
  JAX_PLATFORMS=cpu logged export "$python" launch/tales.py export "$out/$name" "$out/export/$shown" || return
  JAX_PLATFORMS=cpu logged export "$python" launch/tales.py pack "$out/export/$shown" "$pack" || return
  say "$shown: packed"
  if [ "$shown" = map ]; then
    "$python" launch/tales.py report "$out" "$pack" >/dev/null || true # lest the texts come too late
    left=$((seconds - SECONDS))
    JAX_PLATFORMS=cpu logged sample timeout $((left > 10 ? left : 10)) "$python" -m flm_jax.sample --workdir="$out/export/map" \
      --steps=1,4 --gamma=0.5 --num_samples=32 --out="$out/samples.jsonl" || true
  fi
}

# warm: compiles the steps of the later stages beside the flow's training, by one step of each; two
# of them start from what there is of the flow.
warm() {
  local name
  warm_one mdlm || true
  if [ "$dry_run" = 0 ]; then
    until compgen -G "$out/flm/checkpoints/[0-9]*/ema" >/dev/null || [ -e "$work/flow.over" ]; do sleep 1; done
  fi
  for name in fmlm dmd; do
    [ -e "$work/flow.over" ] || warm_one "$name" || return 0
  done
}

warm_one() {
  local line=()
  training "$1" "$work/warm/$1" 0.1
  [ "$1" != dmd ] || line+=(--config.objective.start="$work/warm/fmlm")
  logged "warm_$1" timeout 150 "${line[@]}" || return
  say "warm: the step of $1 is compiled"
}

if [ -n "$wheels" ]; then
  ls "$wheels"/*.whl >/dev/null 2>&1 || fail "--wheels=$wheels holds no wheels; make them with launch/gpu_wheels.sh"
fi
run mkdir -p "$out/logs" "$pack" "$work"
if [ -n "$wheels" ]; then
  logged wheels "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --upgrade --target "$work/site" "$wheels"/*.whl
fi
[ "$dry_run" = 1 ] || (gpu && nvidia-smi --query-gpu=name --format=csv,noheader || echo "no GPU") >"$out/card.txt"
if [ ! -e "$data/manifest.json" ]; then
  pieces=4096
  [ "$smoke" = 0 ] || pieces=512
  run "$python" -m flm_jax.prepare_data --source=jsonl --path="$texts" --sentencepiece_model=unigram \
    --vocab_size=$pieces --valid_fraction=0.02 --out="$data"
fi
say "the texts are ready"

using=""
if [ "$dry_run" = 0 ] && gpu; then
  nvidia-smi --query-gpu=timestamp,utilization.gpu,utilization.memory,memory.used --format=csv,noheader -l 5 \
    >"$out/logs/gpu_use.log" 2>&1 &
  using=$!
fi
carried=()
begin=$SECONDS budget=$((seconds - SECONDS))
share() { printf '%d' $((begin + budget * $1 / 100)); }
if [ "$in_turn" = 1 ]; then
  stage ar "$(share 10)" || true
  stage flm "$(share 45)" && { stage fmlm "$(share 58)" || true; } && { stage dmd "$(share 76)" || true; }
  stage mdlm "$(share 98)" || true
else
  (stage ar "$(share 46)" || true; wait) &
  beside=($!)
  run rm -rf "$work/warm" "$work/flow.over"
  warm &
  beside+=($!)
  flow=0
  stage flm "$(share 46)" || flow=$?
  run touch "$work/flow.over"
  # The flow, on which all depends, has had the card to itself but for the judge; masked diffusion
  # takes about as many tokens in the time of the other two stages.
  (stage mdlm "$(share 90)" || true; wait) &
  beside+=($!)
  if [ "$flow" = 0 ]; then
    stage fmlm "$(share 65)" || true
    stage dmd "$(share 91)" || true
  fi
  wait "${beside[@]}" || true
fi
wait "${carried[@]}" || true
[ -z "$using" ] || kill "$using" || true
if [ "$dry_run" = 0 ]; then
  "$python" launch/tales.py report "$out" "$pack"
  ls -l "$pack"
fi
[ "$dry_run" = 1 ] || compgen -G "$pack/map.tar.xz*" >/dev/null || exit 1
