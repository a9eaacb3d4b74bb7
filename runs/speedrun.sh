#!/usr/bin/env bash
# Time to a validation likelihood on CIFAR-10 at 16x16 of transformers' ImageGPT under its Trainer, a plain GPT loop, and
# ours, with nothing else on the machine: every contestant at several rates with one seed, then its best with three.
# About an hour on two CPU cores. Run again, it redoes nothing that is finished. OUTPUT chooses a folder, DATASET a
# copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/speedrun}"
cd "$(dirname "$0")/.."

# Our way once, as one would type it: small images, then large ones. Its palette and its tokens serve all contestants.
images=(--dataset_name "${DATASET:-uoft-cs/cifar10}")
small="$output/first-8x8" large="$output/first-16x16"
hf-igpt pretrain cifar10-speedrun "${images[@]}" --image_size 8 --max_steps 250 --output_dir "$small"
hf-igpt pretrain cifar10-speedrun "${images[@]}" --init_from "$small/model" --output_dir "$large"

race() {
    python benchmarks/speedrun.py --contestant "$1" --tokens "$large/tokens" "${@:2}" --output "$output/$1.json"
}
ours() {
    race ours --palette "$large/model" --small_tokens "$small/tokens" --small_palette "$small/model" "$@"
}

# Rates, with one seed.
ours --small_steps 250 --steps 60 --learning_rate 0.006 0.01 0.015
race plain --steps 700 --learning_rate 0.004 0.006 0.008 0.012
race native --steps 700 --learning_rate 0.004 0.006 0.009
# The best of each.
ours --small_steps 250 --steps 80 --learning_rate 0.01 --seeds 0 1 2
race plain --steps 700 --learning_rate 0.012 --seeds 0 1 2
race native --steps 700 --learning_rate 0.004 --seeds 0 1 2
python benchmarks/speedrun.py --summarize "$output"/{native,plain,ours}.json --target 2.86 \
    --output "$output/speedrun.json"
