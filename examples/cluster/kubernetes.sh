#!/bin/bash
# Prints a Kubernetes Job that runs a recipe's chain on NODES pods of CARDS GPUs each, and the Service they meet at.
#
#   bash examples/cluster/kubernetes.sh NAME IMAGE CLAIM NODES CARDS my.yaml [key=value ...] | kubectl apply -f -
#
# IMAGE is one of Dockerfile.cuda (or Dockerfile.cpu, CARDS 0). CLAIM is a PersistentVolumeClaim that all pods can
# write; it is /runs there, the working folder: the recipe, the data and output_dir lie in it.
#
# A pod that is asked to leave (a drain, a preemption) gets SIGTERM and ten minutes; its ranks and those of the other
# pods save and end with 75, which counts as no failure: new pods go on from the checkpoint. What fails otherwise is
# tried again three times a pod; words that align cannot read (2) end the Job at once.
#
# In the environment: ALIGN_CONFIG, a config file of accelerate (default: nodes, FSDP2; ddp where a card holds the
# models, or without cards). Kubernetes 1.26 or later (podFailurePolicy).
set -euo pipefail

usage="kubernetes.sh NAME IMAGE CLAIM NODES CARDS RECIPE [key=value ...]"
name=${1:?$usage} image=${2:?$usage} claim=${3:?$usage} nodes=${4:?$usage} cards=${5:?$usage}
: "${6:?$usage}"
shift 5
[[ "$name" =~ ^[a-z]([-a-z0-9]{0,40}[a-z0-9])?$ ]] || { echo "error: NAME is of lower case, digits and -: $name" >&2; exit 2; }
[[ "$nodes" =~ ^[1-9][0-9]*$ && "$cards" =~ ^[0-9]+$ ]] || { echo "error: NODES, CARDS: $nodes, $cards" >&2; exit 2; }

words() { # each as a line of a YAML list; $(VARIABLE) is Kubernetes's, $$ a plain $
  local word
  for word in "$@"; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    printf '            - "%s"\n' "$word"
  done
}
options=(
  --config_file "${ALIGN_CONFIG:-nodes}" --num_machines "$nodes" --num_processes "$((nodes * (cards ? cards : 1)))"
  --machine_rank '$(NODE)' --main_process_ip "$name-0.$name" --main_process_port 29500
)

cat <<END
apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    job-name: $name
  ports:
    - {name: ranks, port: 29500}
---
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  completionMode: Indexed
  completions: $nodes
  parallelism: $nodes
  backoffLimit: $((3 * nodes))
  podFailurePolicy:
    rules:
      - action: Ignore # saved, to go on
        onExitCodes: {containerName: align, operator: In, values: [75]}
      - action: Ignore # drained, preempted, its node gone
        onPodConditions: [{type: DisruptionTarget, status: "True"}]
      - action: FailJob
        onExitCodes: {containerName: align, operator: In, values: [2]}
  template:
    spec:
      subdomain: $name
      restartPolicy: Never
      terminationGracePeriodSeconds: 600
      securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000}
      containers:
        - name: align
          image: "$image"
          workingDir: /runs
          env:
            - name: NODE
              valueFrom:
                fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
            - {name: HOME, value: /runs}
          command: [align, launch]
          args:
$(words "${options[@]}" -m align.cli run "$@")
          resources:
            limits: {nvidia.com/gpu: $cards}
          securityContext:
            allowPrivilegeEscalation: false
            capabilities: {drop: [ALL]}
          volumeMounts:
            - {name: runs, mountPath: /runs}
            - {name: shm, mountPath: /dev/shm}
      volumes:
        - name: runs
          persistentVolumeClaim: {claimName: "$claim"}
        - name: shm # what NCCL's processes of one pod share
          emptyDir: {medium: Memory}
END
