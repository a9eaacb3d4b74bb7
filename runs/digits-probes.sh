#!/usr/bin/env bash
# What the model of runs/digits.sh learnt, in under 10 minutes on 2 CPU cores: probes of every layer, probes that learn
# to pool, few labels, and fine-tuning beside the same classifier from fresh weights.
# Run again, it redoes nothing that is finished. OUTPUT chooses the folder with the model.
set -euo pipefail
output="${OUTPUT:-outputs/digits}"
cd "$(dirname "$0")/.."

# Logistic regression on every layer and on the pixels, and on 4 and 25 labels of every class; $output/probe/layers.png.
hf-igpt probe digits-probe --model "$output/model" --output_dir "$output/probe"

# Five neighbouring layers side by side, as the paper does for its largest model, then a learned pooling.
hf-igpt probe digits-probe --model "$output/model" --concatenate 5 --output_dir "$output/probe-concatenated"
hf-igpt probe --model "$output/model" --solver attentive --output_dir "$output/probe-attentive"

# A classifier from the checkpoint, and its baseline.
hf-igpt finetune digits-finetune --model "$output/model" --output_dir "$output/finetune"
hf-igpt finetune digits-finetune --model "$output/model" --from_scratch --output_dir "$output/scratch"

hf-igpt figure --kind bars --output_dir "$output/figure" \
    --results "$output/probe" "$output/probe-attentive" "$output/finetune" "$output/scratch"
