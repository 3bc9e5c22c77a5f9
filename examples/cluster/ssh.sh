#!/bin/bash
# A recipe's chain on several machines over ssh: torchrun on each, no scheduler.
#
#   bash examples/cluster/ssh.sh "node1 me@node2" my.yaml [key=value ...]
#
# Run it in the folder of the recipe. Every machine has that folder under the same path, with the data and a shared
# output_dir in it, and an environment with align; the first one is reached by the others under its name here. Ctrl-C,
# SIGTERM and SIGUSR1 reach every rank: they finish their step and save. Ends with 0, 130 after Ctrl-C, 75 after one of
# the other two, else with the code of the first machine that failed; the same command goes on.
#
# In the environment: ALIGN_CONFIG, a config file of accelerate (default: nodes, FSDP2; ddp where a card holds the
# models), ALIGN_RANKS, processes a machine (default: a card each, alike everywhere), ALIGN_VENV, an environment to
# enter, ALIGN_PORT (default 29500).
set -euo pipefail

read -r -a nodes <<<"${1:?say which machines: ssh.sh \"node1 node2\" RECIPE [key=value ...]}"
: "${2:?say which recipe: ssh.sh \"node1 node2\" RECIPE [key=value ...]}"
shift

options=(
  --config_file "${ALIGN_CONFIG:-nodes}" --num_machines "${#nodes[@]}" --main_process_ip "${nodes[0]#*@}"
  --main_process_port "${ALIGN_PORT:-29500}"
)
[[ -z "${ALIGN_RANKS:-}" ]] || options+=(--num_processes "$((${#nodes[@]} * ALIGN_RANKS))")

pid_file() { printf '.align-ssh-%s-%s' "$$" "$1"; }

start() { # number of a machine, then RECIPE key=value: what it does in its own shell
  printf 'cd %q || exit 1; ' "$PWD"
  [[ -z "${ALIGN_VENV:-}" ]] || printf '. %q/bin/activate || exit 1; ' "$ALIGN_VENV"
  printf 'trap "rm -f %s" EXIT; ' "$(pid_file "$1")"
  printf '%q ' align launch "${options[@]}" --machine_rank "$1" -m align.cli run "${@:2}"
  # shellcheck disable=SC2016  # of the process there
  printf '& echo $! >%s; wait $!' "$(pid_file "$1")"
}

signalled=""
pass_on() { # a signal's name
  local i
  signalled=1
  for i in "${!nodes[@]}"; do
    ssh -n -o BatchMode=yes "${nodes[$i]}" "cd $(printf '%q' "$PWD") && kill -$1 \$(cat $(pid_file "$i"))" || true
  done
}
for signal in INT TERM USR1; do
  # shellcheck disable=SC2064  # the name as it is now
  trap "pass_on $signal" "$signal"
done

processes=()
for i in "${!nodes[@]}"; do
  ssh -n -o BatchMode=yes "${nodes[$i]}" "bash -c $(printf '%q' "$(start "$i" "$@")")" &
  processes+=($!)
done

code_of() { # a process: waits for its exit code, again where a signal to this script ended the wait
  local code
  while code=0 signalled=""; do
    wait "$1" || code=$?
    [[ -n "$signalled" ]] || return "$code"
  done
}
code=0
for process in "${processes[@]}"; do
  one=0
  code_of "$process" || one=$?
  ((code)) || code=$one
done
exit "$code"
