#!/usr/bin/env bash
# What the colours within a palette's cells cost in bits/dim: digits, and CIFAR-10 at 16x16 and 32x32. That doesn't depend
# on the model, so that the models here are tiny and train for one step; the palettes are those of the recipes. Minutes on
# one CPU core. Run again, it redoes nothing that is finished. OUTPUT chooses a folder, DATASET a copy of CIFAR-10.
set -euo pipefail
output="${OUTPUT:-outputs/color-bits}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."

tiny=(--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 1 --max_steps 1 --sample_steps 0 --cpu_threads 1)

measure() {
    for density in uniform empirical; do
        hf-igpt evaluate --model "$output/$1/model" --color_density "$density" --cpu_threads 1 \
            --output_dir "$output/$1-$density"
    done
}

hf-igpt pretrain digits "${tiny[@]}" --output_dir "$output/digits"
measure digits
for side in 16 32; do
    hf-igpt pretrain cifar10-cpu --dataset_name "$dataset" --image_size "$side" "${tiny[@]}" \
        --output_dir "$output/cifar10-$side"
    measure "cifar10-$side"
done
