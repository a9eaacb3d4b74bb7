#!/usr/bin/env bash
# Probe accuracy against validation loss over the checkpoints of two sizes of the digits model (the paper's figure 3),
# in about 6 minutes on 2 CPU cores. Run again, it redoes nothing that is finished. OUTPUT chooses a folder.
set -euo pipefail
output="${OUTPUT:-outputs/digits-checkpoints}"
cd "$(dirname "$0")/.."

hf-igpt pretrain digits --save_total_limit 20 --output_dir "$output/wide"
hf-igpt pretrain digits --hidden_size 32 --num_hidden_layers 2 --save_total_limit 20 --output_dir "$output/narrow"

results=()
for checkpoint in "$output"/{wide,narrow}/checkpoint-*[0-9]; do
    hf-igpt probe --model "$checkpoint" --tokens "$(dirname "$checkpoint")/tokens" --output_dir "$checkpoint-probe"
    results+=("$checkpoint-probe")
done
hf-igpt figure --kind checkpoints --output_dir "$output/figure" --results "${results[@]}"
