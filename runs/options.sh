#!/usr/bin/env bash
# What Muon and rotary positions are worth at equal steps, beside Adam at several learning rates: CIFAR-10 at 16x16, 700
# steps of a model of 6 blocks, with two seeds each, and a probe of each on 10,000 training and 10,000 test images; then
# options that aren't in the package, each on a small GPT. Two hours on one CPU core. Run again, it redoes nothing that
# is finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/options}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."

images=(--dataset_name "$dataset")
results=()
probes=()
for seed in 0 1; do
    for run in adam-0.003 adam-0.006 adam-0.01 rotary-0.006 muon-0.006 muon-rotary-0.006; do
        options=(--learning_rate "${run##*-}")
        if [[ $run == muon* ]]; then options+=(--optimizer muon); fi
        if [[ $run == *rotary* ]]; then options+=(--rotary_base 100); fi
        hf-igpt pretrain cifar10-cpu "${images[@]}" --hidden_size 64 --num_attention_heads 2 --max_steps 700 \
            --warmup_epochs 0.05 --eval_steps 700 --sample_steps 0 --cpu_threads 1 --seed "$seed" \
            --output_dir "$output/$run-$seed" "${options[@]}"
        hf-igpt probe --model "$output/$run-$seed/model" --dataset_name "$dataset" --max_images 10000 \
            --cpu_threads 1 --output_dir "$output/$run-$seed-probe"
        results+=("$output/$run-$seed")
        probes+=("$output/$run-$seed-probe")
        # The first run's palette and tokens serve the others.
        images=(--tokens "$output/adam-0.003-0/tokens")
    done
done
python benchmarks/options.py --results "${results[@]}" --probes "${probes[@]}" --output "$output/options.json"
python benchmarks/option_trials.py --tokens "$output/adam-0.003-0/tokens" --output "$output/option-trials.json"
