#!/usr/bin/env bash
# The same for the masked objective: a model of hidden pixels that has a likelihood bound, draws images and fills holes.
# Training takes under 5 minutes on 2 CPU cores, scoring with 64 masks and the table of steps as long again. It comes
# after `runs/digits.sh`, whose model judges the samples. OUTPUT chooses a folder.
set -euo pipefail
output="${OUTPUT:-outputs/digits-masked}"
next_pixel="${NEXT_PIXEL:-outputs/digits}"
cd "$(dirname "$0")/.."

# Palette, tokens, training; the checkpoint is in $output/model.
hf-igpt pretrain digits-masked --output_dir "$output"

# An upper bound on what the next-pixel model has exactly: with 64 masks there is one for each number of hidden pixels.
hf-igpt evaluate --model "$output/model" --split test --num_masks 64

# Samples and completions, then the middle of the first test images filled in.
hf-igpt sample --model "$output/model" --split test
hf-igpt sample --model "$output/model" --split test --mask center --num_samples 0 --output_dir "$output/inpainted"

# Quality against the number of passes of the model.
python benchmarks/decoding_steps.py --model "$output/model" --judge "$next_pixel/model" \
    --tokens "$next_pixel/tokens" --output "$output/decoding-steps.json"
