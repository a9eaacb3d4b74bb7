#!/usr/bin/env bash
# What windows of attention cost in likelihood and in features: CIFAR-10 at 16x16, 700 steps of a model of 6 blocks, with
# two seeds each. Full attention; windows of 4 rows with a full block as every third; windows in every block. A probe of
# each on 10,000 training and 10,000 test images. About an hour on one CPU core. Run again, it redoes nothing that is
# finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/hybrid-attention}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."

images=(--dataset_name "$dataset")
results=()
probes=()
for seed in 0 1; do
    for attention in full hybrid windowed; do
        windows=()
        if [ "$attention" != full ]; then windows+=(--attention_window_rows 4); fi
        if [ "$attention" = windowed ]; then windows+=(--full_attention_every 0); fi
        hf-igpt pretrain cifar10-cpu "${images[@]}" --hidden_size 64 --num_attention_heads 2 --max_steps 700 \
            --warmup_epochs 0.05 --eval_steps 700 --sample_steps 0 --cpu_threads 1 --seed "$seed" \
            --output_dir "$output/$attention-$seed" "${windows[@]}"
        hf-igpt probe --model "$output/$attention-$seed/model" --dataset_name "$dataset" --max_images 10000 \
            --cpu_threads 1 --output_dir "$output/$attention-$seed-probe"
        results+=("$output/$attention-$seed")
        probes+=("$output/$attention-$seed-probe")
        # The first run's palette and tokens serve the others.
        images=(--tokens "$output/full-0/tokens")
    done
done
python benchmarks/hybrid_attention.py --results "${results[@]}" --probes "${probes[@]}" \
    --output "$output/hybrid-attention.json" --picture "$output/hybrid-attention.png"
