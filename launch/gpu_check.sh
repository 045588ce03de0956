#!/usr/bin/env bash
# Checks and measures flm_jax on one GPU, without a network and without a virtual environment.
#
#   bash launch/gpu_check.sh [--dry_run] [--wheels=FOLDER] [--out=runs/gpu_check] [--seconds=540]
#       [--work=/tmp/flm_gpu_check] [--parts=train,bench] [--quick] [--smoke]
#
# It installs the wheels of launch/gpu_wheels.sh beside the interpreter's own packages, into --work,
# where the compilation cache and the runs lie as well; a second call finds them there. Then come, in
# the order of worth, each with a time limit and a line of result: versions; a small training that is
# resumed and sampled, against the same on the CPU; attention kernels; products of experts; the tests of tests/goldens; the
# benchmark gpu_quick; the benchmark gpu (not with --quick); two processes on one card. What is worth
# keeping lies in --out, in files below 15 MB. --seconds bounds all together; --parts runs some parts
# alone, after the wheels: versions, train, attention, experts, goldens, bench_quick, bench, two_processes.
# --smoke does the same on the CPU with tiny sizes, to try this script, and takes twice the time for a
# part. PYTHON names the interpreter (default python3).
# The exit status is 0 if no part failed, 1 if one did, 2 for bad options.
set -euo pipefail
here=$PWD
cd "$(dirname "$0")/.."
source launch/_launch.sh
wheels="" out=runs/gpu_check seconds=540 work=${TMPDIR:-/tmp}/flm_gpu_check quick=0 smoke=0
all=versions,train,attention,experts,goldens,bench_quick,bench,two_processes
parts=$all
for argument in "$@"; do
  case $argument in
    --help) usage "$0"; exit 0 ;;
    --dry_run) dry_run=1 ;;
    --quick) quick=1 ;;
    --smoke) smoke=1 ;;
    *) set_option "wheels out seconds work parts" "$argument" "--dry_run, --quick, --smoke or one of" "" ;;
  esac
done
[[ $seconds =~ ^[1-9][0-9]*$ ]] || fail "got --seconds=$seconds; expected a positive number"
for name in ${parts//,/ }; do
  case ,$all, in *,"$name",*) ;; *) fail "got --parts=$parts; expected some of $all" ;; esac
done
[ "$quick" = 0 ] || parts=$(printf '%s' ",$parts," | sed 's/,bench,/,/')
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s/%s' "$2" "$1" ;; esac; }
[ -z "$wheels" ] || wheels=$(absolute "$wheels" "$here")
out=$(absolute "$out" "$here") work=$(absolute "$work" "$here")
if [ -n "$wheels" ] && ! ls "$wheels"/*.whl >/dev/null 2>&1; then
  fail "--wheels=$wheels holds no wheels; make them with launch/gpu_wheels.sh on a machine with a network"
fi

python=${PYTHON:-python3}
platform=cuda,cpu suite_quick=gpu_quick suite=gpu full=()
[ "$smoke" = 0 ] || platform=cpu suite_quick=gpu_smoke suite=gpu_smoke full=(--filter=lm1b)
run export PYTHONUNBUFFERED=1 TF_CPP_MIN_LOG_LEVEL=2 JAX_PLATFORMS=$platform \
  XLA_PYTHON_CLIENT_PREALLOCATE=false JAX_COMPILATION_CACHE_DIR="$work/cache" \
  PYTHONPATH="$work/site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
log=$out/check.log result="" until=0 failed=0

# limited COMMAND: within the time of its part.
limited() {
  local left=$((until - SECONDS))
  [ "$left" -gt 0 ] || left=1
  run timeout --kill-after=5 "$left" "$@"
}

# logged NAME COMMAND: `limited`, its output in the log as a whole once it has ended.
logged() {
  local name=$1 status=0
  shift
  if [ "$dry_run" = 1 ]; then limited "$@"; return; fi
  limited "$@" >"$work/$name.log" 2>&1 || status=$?
  { printf -- '-- %s, status %s\n' "$name" "$status"; cat "$work/$name.log"; } >>"$log"
  [ "$status" = 0 ] || result="$name ended with status $status: $(last "$name")"
  return "$status"
}

# last NAME: the line of result in its log, or the last one.
last() {
  [ "$dry_run" = 0 ] || return 0
  local line
  line=$(grep '^result: ' "$work/$1.log" | tail -n 1) || line=$(tail -n 1 "$work/$1.log")
  line=${line#result: }
  printf '%s' "${line:0:600}"
}

# part NAME LIMIT RESERVE: one part, for which RESERVE seconds of later ones are left alone.
part() {
  local name=$1 began=$SECONDS most=$(($2 * (1 + smoke))) status=0 word=ok
  local left=$((seconds - SECONDS - $3))
  case ,wheels,$parts, in *,"$name",*) ;; *) return 0 ;; esac
  [ "$left" -le "$most" ] || left=$most
  if [ "$dry_run" = 1 ]; then
    printf '# %s, at most %s s\n' "$name" "$left"
    until=$((SECONDS + left))
    work_of "$name" || true
    return
  fi
  if [ "$left" -lt 10 ]; then
    word="left out" result="no time"
  else
    until=$((SECONDS + left)) result=""
    work_of "$name" || status=$?
    case $status in 0) ;; 77) word=skipped ;; *) word=failed failed=1 ;; esac
  fi
  printf '== %s: %s, %s s: %s\n' "$name" "$word" $((SECONDS - began)) "$result" | tee -a "$log"
  "$python" launch/gpu_check.py note "$out/parts.jsonl" "$name" "$word" $((SECONDS - began)) "$result"
  if [ "$(wc -c <"$log")" -gt 14000000 ]; then
    tail -c 7000000 "$log" >"$log.tail" && mv "$log.tail" "$log"
  fi
}

card() { command -v nvidia-smi >/dev/null && nvidia-smi "$@" --format=csv,noheader; }

install_wheels() {
  if [ -z "$wheels" ]; then result="no --wheels: the interpreter's own packages"; return 77; fi
  logged install "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir \
    --upgrade --target "$work/site" "$wheels"/*.whl || return
  result="$(find "$wheels" -maxdepth 1 -name '*.whl' | wc -l) wheels"
}

versions() {
  logged versions "$python" launch/gpu_check.py versions || return
  result="$(last versions)"
}

train() { # NAME STEPS; the log's name has both
  logged "train_$1_$2" "$python" -m flm_jax.train --config=configs/phrases/flm.py \
    --workdir="$work/runs/$1" --config.train.steps="$2" --config.train.batch=64 \
    --config.optim.schedule=constant --config.train.log_every=10 --config.train.checkpoint_every=20 --config.eval.every=0
}

# 40 steps, resumed and taken to 60.
resumed() { train "$1" 40 && train "$1" 60; }

# The same on the CPU, and on the GPU with full and with its usual precision of float32 products, side
# by side.
trainings() {
  run rm -rf "$work/runs"
  JAX_PLATFORMS=cpu resumed cpu &
  local on_cpu=$! status=0
  resumed usual &
  local usual=$!
  JAX_DEFAULT_MATMUL_PRECISION=highest resumed gpu || status=$?
  wait "$on_cpu" || { [ "$status" != 0 ] || result="the CPU's training failed; see the log"; status=1; }
  wait "$usual" || { [ "$status" != 0 ] || result="training at the usual precision failed; see the log"; status=1; }
  [ "$status" = 0 ] || return "$status"
  logged sample "$python" -m flm_jax.sample --workdir="$work/runs/gpu" --steps=4 --num_samples=8 || return
  logged compare "$python" launch/gpu_check.py compare "$out/losses.json" "$work/runs" || return
  result="$(last compare)"
}

kernels() {
  logged attention "$python" launch/gpu_check.py attention || return
  result="$(last attention)"
}

experts() {
  local tiny=()
  [ "$smoke" = 0 ] || tiny=(tiny)
  logged experts "$python" launch/gpu_check.py experts "${tiny[@]}" || return
  result="$(last experts)"
}

goldens() {
  if [ "$dry_run" = 0 ] && ! "$python" -c "import pytest" 2>/dev/null; then
    result="this interpreter has no pytest"
    return 77
  fi
  local four=()
  if [ "$dry_run" = 0 ] && "$python" -c "import xdist" 2>/dev/null; then four=(-n 4); fi
  JAX_DEFAULT_MATMUL_PRECISION=highest logged goldens "$python" -m pytest -q --tb=short \
    -p no:cacheprovider "${four[@]}" tests/goldens || return
  result="$(last goldens)"
}

# benchmark SUITE JSON FLAGS: its lines are shown as they come.
benchmark() {
  local bound=$((until - SECONDS - 20)) name=$1 json=$2
  shift 2
  [ "$bound" -ge 10 ] || bound=10
  local line=("$python" -m flm_jax.bench --suite="$name" --seconds="$bound" --json="$json" "$@")
  if [ "$dry_run" = 1 ]; then limited "${line[@]}"; return; fi
  local status=0
  XLA_PYTHON_CLIENT_MEM_FRACTION=.92 limited "${line[@]}" 2>"$work/bench.err" | tee "$work/bench.log" || status=$?
  { printf -- '-- bench %s, status %s\n' "$name" "$status"; cat "$work/bench.log" "$work/bench.err"; } >>"$log"
  if [ "$status" != 0 ]; then
    result="status $status; what was measured until then is in $json"
    return 1
  fi
  result="$(last bench)"
  # A suite of which nothing could be measured is no success.
  case $result in *": 0 measured"*) return 1 ;; esac
}

# Two processes that take what they need; then one as JAX starts it, which takes most of the card,
# beside a second one that does the same, and beside one that does not.
two_processes() {
  logged hold_a "$python" launch/gpu_check.py hold "$work/a.ready" 2 "$work/b.ready" &
  local first=$! together status=0
  logged hold_b "$python" launch/gpu_check.py hold "$work/b.ready" 2 "$work/a.ready" || status=$?
  wait "$first" || status=$?
  [ "$status" = 0 ] || return "$status"
  together="$(last hold_b)"
  run rm -f "$work/greedy.ready" "$work/end"
  XLA_PYTHON_CLIENT_PREALLOCATE=true logged greedy "$python" launch/gpu_check.py hold "$work/greedy.ready" 1 "$work/end" &
  local greedy=$!
  limited bash -c "until [ -e '$work/greedy.ready' ]; do sleep 0.2; done" || { result="the greedy process did not start"; return 1; }
  local second=0 shared=0 words
  XLA_PYTHON_CLIENT_PREALLOCATE=true logged second "$python" -m flm_jax.sample --workdir="$work/runs/gpu" --steps=1 --num_samples=1 || second=$?
  words="$(last second)"
  logged shared "$python" -m flm_jax.sample --workdir="$work/runs/gpu" --steps=1 --num_samples=1 || shared=$?
  run touch "$work/end"
  wait "$greedy" || true
  result="each of two $together; beside one that preallocates: a second that does so ends with status $second (${words:0:200}), one that does not with status $shared"
  return "$shared"
}

work_of() {
  case $1 in
    wheels) install_wheels ;;
    versions) versions ;;
    train) trainings ;;
    attention) kernels ;;
    experts) experts ;;
    goldens) goldens ;;
    bench_quick) benchmark "$suite_quick" "$out/bench_quick.json" ;;
    bench) benchmark "$suite" "$out/bench.json" "${full[@]}" ;;
    two_processes) two_processes ;;
  esac
}

run mkdir -p "$out" "$work"
if [ "$dry_run" = 0 ]; then
  rm -f "$work"/*.ready "$work/end"
  : >"$log"
  : >"$out/parts.jsonl"
  { card --query-gpu=name,memory.total,driver_version || echo "no nvidia-smi here"; } | tee -a "$log"
fi
part wheels 60 0
part versions 60 0
part train 150 0
part attention 60 0
part experts 60 0
part goldens 100 0
part bench_quick 140 0
case ,$parts, in *,two_processes,*) reserve=45 ;; *) reserve=0 ;; esac
part bench 380 "$reserve"
part two_processes 60 0
exit "$failed"
