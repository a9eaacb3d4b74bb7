#!/usr/bin/env bash
# CIFAR-10 at 16x16 on two CPU cores, from images to a trained, measured and drawn model, with probes of every layer,
# nearest neighbours, few labels and a classifier from 200 images of every class: `runs/cifar10-cpu.sh RECIPE`, where
# RECIPE is cifar10-cpu (by default), cifar10-best-cpu or cifar10-masked-cpu. About an hour to train, and an hour for the
# rest. Run again, it redoes nothing that is finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
cd "$(dirname "$0")/.."
recipe="${1:-cifar10-cpu}"
output="${OUTPUT:-outputs/$recipe}"
images=(--dataset_name "${DATASET:-uoft-cs/cifar10}")

hf-igpt pretrain "$recipe" "${images[@]}" --output_dir "$output"
model=(--model "$output/model")
hf-igpt evaluate "${model[@]}" --split test
hf-igpt sample "${model[@]}" --split test
hf-igpt probe "${model[@]}" "${images[@]}" --pixels --labels_per_class 4 25 400 --output_dir "$output/probe"
hf-igpt probe "${model[@]}" "${images[@]}" --solver knn --output_dir "$output/knn"
hf-igpt finetune cifar10-cpu-finetune "${model[@]}" "${images[@]}" --output_dir "$output/finetune"
