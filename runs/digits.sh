#!/usr/bin/env bash
# From scikit-learn's digits to a trained, measured and drawn Image GPT, on 2 CPU cores in under 5 minutes.
# Run again, it redoes nothing that is finished. OUTPUT chooses another folder.
set -euo pipefail
output="${OUTPUT:-outputs/digits}"

# Palette, tokens, training; the checkpoint is in $output/model.
hf-igpt pretrain digits --output_dir "$output"

# The likelihood of the test images, beside a uniform and a unigram model.
hf-igpt evaluate --model "$output/model" --split test

# Samples, and completions of the first test images from their upper halves.
hf-igpt sample --model "$output/model" --split test
