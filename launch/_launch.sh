# shellcheck shell=bash
# Sourced by the launchers: options, dry runs, messages.

dry_run=0
program=${program:-flm_jax.train} # whose flags follow --

# Runs a command; in a dry run prints it, quoted so that it can be pasted into a shell.
run() {
  if [ "$dry_run" = 1 ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    "$@"
  fi
}

fail() {
  echo "error: $*" >&2
  exit 2
}

# usage SCRIPT: the comment at the head of the script.
usage() {
  sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"
}

# set_option NAMES ARGUMENT [BEFORE AFTER]: sets the variable of --NAME=VALUE if NAME is one of NAMES;
# BEFORE and AFTER are what else may be given, for the message.
set_option() {
  local key=${2#--}
  local value=${key#*=}
  local before=${3-"--dry_run or one of"} after=${4-", then -- and the flags of $program"}
  key=${key%%=*}
  case " $1 " in
    *" $key "*) ;;
    *) fail "unknown option $2; expected $before: ${1// /, }$after" ;;
  esac
  case $2 in
    --*=?*) printf -v "$key" '%s' "$value" ;;
    *) fail "option $2 has no value; expected --$key=VALUE" ;;
  esac
}

# parse NAMES "$@": options up to --, the rest into the array `train`.
parse() {
  local names=$1
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --) shift; break ;;
      --help) usage "$0"; exit 0 ;;
      --dry_run) dry_run=1 ;;
      *) set_option "$names" "$1" ;;
    esac
    shift
  done
  # shellcheck disable=SC2034  # read by the script that sources this
  train=("$@")
  [ $# -gt 0 ] || fail "no flags for $program; put them after --, such as -- --config=configs/owt/flm.py --workdir=runs/owt"
}

# quoted ARGUMENTS: one line that a shell on another machine splits into the same arguments.
quoted() {
  local line
  printf -v line '%q ' "$@"
  printf '%s' "${line% }"
}
