#!/usr/bin/env bash
# CIFAR-10 at 32x32 on one GPU, from images to a trained, measured and drawn model, with probes of every layer, nearest
# neighbours, few labels, and classifiers for CIFAR-10 and CIFAR-100: `runs/cifar10.sh RECIPE`, where RECIPE is cifar10
# (by default), cifar10-best, cifar10-masked or cifar10-rgb. It stops after 8 minutes with all work saved and exit code
# 124. Run again, it goes on and redoes nothing that is finished. OUTPUT chooses a folder, DATASET and DATASET_100 copies
# of the images, MINUTES another time.
set -euo pipefail
cd "$(dirname "$0")/.."
recipe="${1:-cifar10}"
output="${OUTPUT:-outputs/$recipe}"
dataset="${DATASET:-uoft-cs/cifar10}"
dataset_100="${DATASET_100:-uoft-cs/cifar100}"
minutes="${MINUTES:-8}"

run() {
    local left=$((60 * minutes - SECONDS))
    if [ "$left" -le 0 ]; then exit 124; fi
    # SIGTERM ends training after a whole step that is saved.
    timeout --signal TERM "$left" hf-igpt "$@"
}

run pretrain "$recipe" --dataset_name "$dataset" --output_dir "$output"
model=(--model "$output/model")
run evaluate "${model[@]}" --split test
run sample "${model[@]}" --split test
probed=(probe cifar10-probe "${model[@]}" --dataset_name "$dataset")
run "${probed[@]}" --output_dir "$output/probe"
run "${probed[@]}" --solver knn --output_dir "$output/knn"
run finetune cifar10-finetune "${model[@]}" --dataset_name "$dataset" --output_dir "$output/finetune"
run probe cifar100-probe "${model[@]}" --dataset_name "$dataset_100" --output_dir "$output/probe-100"
run finetune cifar100-finetune "${model[@]}" --dataset_name "$dataset_100" --per_device_train_batch_size 64 \
    --output_dir "$output/finetune-100"
