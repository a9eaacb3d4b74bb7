#!/usr/bin/env bash
# Time to a validation likelihood on CIFAR-10 at 16x16 of transformers' ImageGPT under its Trainer, a plain GPT loop, and
# ours, with nothing else on the machine: every contestant at several rates and the peers at several lengths with one
# seed, then the best of each with three. About an hour and a half on two CPU cores. Run again, it redoes nothing
# that is finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/speedrun}"
cd "$(dirname "$0")/.."

# Our way once, as one would type it: small images, then large ones. Its palette and its tokens serve all contestants.
images=(--dataset_name "${DATASET:-uoft-cs/cifar10}")
small="$output/first-8x8" large="$output/first-16x16"
hf-igpt pretrain cifar10-speedrun "${images[@]}" --image_size 8 --max_steps 250 \
    --warmup_epochs 0.018 --output_dir "$small"
hf-igpt pretrain cifar10-speedrun "${images[@]}" --init_from "$small/model" --output_dir "$large"

race() {
    python benchmarks/speedrun.py --contestant "$1" --tokens "$large/tokens" --output "$output/$2.json" "${@:3}"
}
ours() {
    race ours "$1" --palette "$large/model" --small_tokens "$small/tokens" --small_palette "$small/model" \
        --small_steps 250 "${@:2}"
}

# Rates and lengths, with one seed.
ours ours --steps 60 --learning_rate 0.006 0.01 0.015
race plain plain --steps 600 650 700 --learning_rate 0.008 0.012 0.018
race plain plain --steps 700 --learning_rate 0.006 0.024
race native native --steps 600 650 700 --learning_rate 0.0025 0.004 0.006 0.009
# The best of each, in turn.
for seed in 0 1 2; do
    ours ours-final --steps 80 --learning_rate 0.01 --seeds "$seed"
    race plain plain-final --steps 650 700 --learning_rate 0.012 --seeds "$seed"
    race native native-final --steps 700 --learning_rate 0.004 --seeds "$seed"
done
python benchmarks/speedrun.py --summarize "$output"/{native,plain,ours}{,-final}.json --target 2.86 \
    --output "$output/speedrun.json"
