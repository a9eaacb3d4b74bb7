#!/usr/bin/env bash
# What windows of attention cost in likelihood and in features: CIFAR-10 at 16x16, 700 steps of a model of 6 blocks, with
# two seeds each. Full attention; windows of 4 rows with a full block as every third; windows in every block. A probe of
# each on 10,000 training and 10,000 test images. About an hour on one CPU core. Run again, it redoes nothing that is
# finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/hybrid-attention}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."
source runs/parts/small_cifar10.sh

for seed in 0 1; do
    train_and_probe full "$seed"
    train_and_probe hybrid "$seed" --attention_window_rows 4
    train_and_probe windowed "$seed" --attention_window_rows 4 --full_attention_every 0
done
python benchmarks/hybrid_attention.py --results "${results[@]}" --probes "${probes[@]}" \
    --output "$output/hybrid-attention.json" --picture "$output/hybrid-attention.png"
