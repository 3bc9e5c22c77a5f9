#!/bin/bash
# Try slurm.sbatch without a cluster: Slurm on this machine as two nodes, a small chain over both, its time limit.
#
#   bash examples/cluster/try_slurm.sh FOLDER        # Debian: apt-get install slurm-wlm munge; a quarter of an hour
#
# A chain of four stages is submitted with a limit of seven minutes, for which its second stage waits in the middle. It
# is stopped by its time limit, queued again (Slurm does so after two minutes), and goes on. The same chain without the
# waiting is a second job, which nothing interrupts. Prints Slurm's record and the first one's log, and compares every
# weight of both to the bit; ends with 1 where one differs or the job was never queued again. FOLDER gets everything;
# the daemons end with the script.
set -euo pipefail

: "${1:?say which folder: try_slurm.sh FOLDER}"
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
for program in slurmctld slurmd sbatch munged align; do
  PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || { echo "error: there is no $program here"; exit 1; }
done
export PATH=$PATH:/usr/sbin SLURM_CONF=$folder/slurm.conf OMP_NUM_THREADS=1
user=$(id -un) host=$(hostname -s)

mkdir -p "$folder"/{state,first,second,munge}
chmod 700 "$folder/munge"
cat >"$SLURM_CONF" <<END
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
MinJobAge=36000
NodeName=first NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=1
NodeName=second NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=1
PartitionName=main Nodes=first,second Default=YES
END

end() {
  for daemon in slurmd.first slurmd.second slurmctld munge/munged; do
    [[ ! -f "$folder/$daemon.pid" ]] || kill "$(cat "$folder/$daemon.pid")" 2>/dev/null || true
  done
}
trap end EXIT
[[ -f "$folder/munge/key" ]] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
munged --force --key-file "$folder/munge/key" --socket "$folder/munge/socket" --pid-file "$folder/munge/munged.pid" \
  --log-file "$folder/munge/log" --seed-file "$folder/munge/seed"
slurmctld
slurmd -N first
slurmd -N second
until sinfo --noheader --states idle --format %D | grep -qx 2; do sleep 1; done
sinfo --Node --format "%N %T"

cat >"$folder/wait.py" <<'END'
"""Waits after the twentieth step, until that start of the job is asked to stop; the next one begins behind it."""

import os
import signal
import time

from transformers import TrainerCallback


class Wait(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        flag = signal.getsignal(signal.SIGUSR1).__self__
        while os.environ["WAIT"] == "1" and state.global_step == 20 and not flag.is_set():
            time.sleep(0.2)
END
cat >"$folder/chain.yaml" <<END
name: chain
output_dir: $folder/stopped
model:
  architecture: {vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 2, num_attention_heads: 4,
    num_key_value_heads: 2, max_position_embeddings: 256}
tinyworld: {documents: 300, demonstrations: 300, coarse_comparisons: 100, comparisons: 100, heldout_comparisons: 50,
  prompts: 60, eval_prompts: 20}
base: {data: ["tinyworld:documents"], max_length: 64, batch_size: 16, micro_batch_size: 8, max_steps: 10,
  learning_rate: 4.0e-3}
sft: {data: ["tinyworld:demonstrations"], max_length: 128, batch_size: 16, micro_batch_size: 8, max_steps: 40,
  learning_rate: 1.5e-3, eval_num_replies: 8, max_completion_length: 16, callbacks: [$folder/wait.py:Wait]}
rm: {data: ["tinyworld:comparisons"], max_length: 128, batch_size: 16, micro_batch_size: 8, max_steps: 5,
  learning_rate: 5.0e-4}
ppo:
  data: ["tinyworld:prompts"]
  num_iterations: 3
  rollout_batch_size: 8
  num_mini_batches: 2
  critic_warmup_steps: 2
  rollout: {max_prompt_length: 64, max_completion_length: 16}
  policy: {learning_rate: 1.0e-4}
  critic: {learning_rate: 5.0e-4}
END

submit() { # name, whether it waits for its limit, arguments of sbatch, then RECIPE key=value
  WAIT=$2 ALIGN_CONFIG=ddp sbatch --parsable --chdir "$folder" --job-name "$1" --nodes 2 "${@:3}"
}
ended() { [[ "$(scontrol show job "$1" | grep -oP 'JobState=\K\S+')" =~ ^(COMPLETED|FAILED|TIMEOUT|CANCELLED)$ ]]; }

stopped=$(submit stopped 1 --time 7 --signal B:USR1@60 "$here/slurm.sbatch" chain.yaml)
calm=$(submit calm 0 --time 60 "$here/slurm.sbatch" chain.yaml output_dir="$folder/calm")
until ended "$stopped" && ended "$calm"; do sleep 5; done
for job in "$stopped" "$calm"; do
  scontrol show job "$job" | grep -oE '(JobId|JobName|JobState|Restarts|ExitCode|TimeLimit)=\S+' | tr '\n' ' '
  echo
done
cat "$folder/stopped-$stopped.log"

different=0
while read -r file; do
  cmp "$folder/calm/$file" "$folder/stopped/$file" && echo "equal to the bit: $file" || different=1
done < <(cd "$folder/calm" && find . -path '*/checkpoints' -prune -o -name '*.safetensors' -print | sort)
restarts=$(scontrol show job "$stopped" | grep -oP 'Restarts=\K\d+')
((restarts > 0)) || { echo "error: the job was never queued again"; exit 1; }
exit "$different"
