#!/usr/bin/env bash
# What the colours within a palette's cells cost in bits/dim: the digits model, and CIFAR-10 at 16x16 and 32x32. What
# colours cost doesn't depend on the model, so that those of CIFAR-10 are tiny and train for one step; the palette of
# 16x16 is that of the recipe cifar10-cpu. Minutes on one CPU core. Run again, it redoes nothing that is finished.
# OUTPUT chooses a folder, DATASET a copy of CIFAR-10.
set -euo pipefail
output="${OUTPUT:-outputs/color-bits}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."

hf-igpt pretrain digits --output_dir "$output/digits" --cpu_threads 1
for side in 16 32; do
    hf-igpt pretrain cifar10-cpu --dataset_name "$dataset" --image_size "$side" --hidden_size 16 --num_hidden_layers 1 \
        --num_attention_heads 1 --max_steps 1 --sample_steps 0 --cpu_threads 1 --output_dir "$output/cifar10-$side"
done
for run in digits cifar10-16 cifar10-32; do
    for density in uniform empirical; do
        hf-igpt evaluate --model "$output/$run/model" --color_density "$density" --cpu_threads 1 \
            --output_dir "$output/$run-$density"
    done
done
