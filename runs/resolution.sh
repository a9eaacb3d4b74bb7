#!/usr/bin/env bash
# The same small model at four sizes of CIFAR-10: likelihood, probe and cost of 8x8, 16x16, 24x24 and 32x32, with one
# palette, one pass over 9,000 images and one seed. About 35 minutes on one CPU core, most of them at 32x32. Run again, it
# redoes nothing that is finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/resolution}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."

# Few validation images, since those of 32x32 take their time.
images=(--dataset_name "$dataset" --validation_fraction 0.02)
results=()
probes=()
# A palette belongs to a size. The one of 32x32 is taken to the others, so that a token means the same everywhere.
hf-igpt fit_palette "${images[@]}" --max_images 9000 --image_size 32 --num_colors 512 \
    --output_dir "$output/palette-32"
for side in 8 16 24 32; do
    if [ "$side" != 32 ]; then
        python - "$output/palette-32" "$output/palette-$side" "$side" << 'RESIZE'
import sys

from hf_igpt import IGPTImageProcessor

IGPTImageProcessor.from_pretrained(sys.argv[1]).with_size(int(sys.argv[3])).save_pretrained(sys.argv[2])
RESIZE
    fi
    hf-igpt pretrain cifar10-cpu "${images[@]}" --max_images 9000 --palette "$output/palette-$side" \
        --image_size "$side" --hidden_size 64 --num_attention_heads 2 --num_train_epochs 1 --warmup_epochs 0.2 \
        --eval_steps 1000 --sample_steps 0 --cpu_threads 1 --output_dir "$output/$side"
    hf-igpt probe --model "$output/$side/model" "${images[@]}" --max_images 4000 --pixels --cpu_threads 1 \
        --output_dir "$output/$side-probe"
    results+=("$output/$side")
    probes+=("$output/$side-probe")
done
python benchmarks/resolution.py --results "${results[@]}" --probes "${probes[@]}" \
    --output "$output/resolution.json" --picture "$output/resolution.png"
