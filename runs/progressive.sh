#!/usr/bin/env bash
# Does it pay to learn on small images first? CIFAR-10 at 16x16, with two seeds each: 700 steps on 16x16, against 1,000
# steps on 8x8 and 493 on 16x16, with positions resampled: the same training FLOPs. One CPU core, about an
# hour. Run again, it redoes nothing that is finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/progressive}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."

model=(--hidden_size 64 --num_attention_heads 2 --warmup_epochs 0.05 --sample_steps 0 --cpu_threads 1)
results=()
# The palette is fitted once, on the small images, and both ways at both seeds use it.
small_images=(--dataset_name "$dataset")
large_images=(--dataset_name "$dataset")
for seed in 0 1; do
    hf-igpt pretrain cifar10-cpu "${small_images[@]}" --image_size 8 "${model[@]}" --max_steps 1000 --eval_steps 1000 \
        --seed "$seed" --output_dir "$output/small-$seed"
    hf-igpt pretrain cifar10-cpu-progressive "${large_images[@]}" --init_from "$output/small-$seed/model" \
        "${model[@]}" --max_steps 493 --eval_steps 493 --seed "$seed" --output_dir "$output/progressive-$seed"
    small_images=(--tokens "$output/small-0/tokens")
    large_images=(--tokens "$output/progressive-0/tokens" --palette "$output/progressive-0/model")
    hf-igpt pretrain cifar10-cpu "${large_images[@]}" "${model[@]}" --max_steps 700 --eval_steps 700 --seed "$seed" \
        --output_dir "$output/direct-$seed"
    results+=("$output/small-$seed" "$output/progressive-$seed" "$output/direct-$seed")
done
python benchmarks/progressive_resolution.py --results "${results[@]}" --output "$output/progressive.json"
