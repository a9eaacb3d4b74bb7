#!/usr/bin/env bash
# The same small model on three kinds of tokens, from images to samples: CIFAR-10 as 16x16 pixels of 512 colours, as the
# RGB levels of these pixels, and as 16x16 codes of the images at 32x32. Pretraining, likelihood, probe and samples of
# each. About 40 minutes on one CPU core. Run again, it redoes nothing that is finished. OUTPUT chooses a folder, DATASET
# a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/three-kinds}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."

images=(--dataset_name "$dataset" --max_images 10000)
hf-igpt train_vqvae cifar10-cpu-vqvae --dataset_name "$dataset" --output_dir "$output/tokenizer" --cpu_threads 1

run() {
    kind="$1"
    shift
    hf-igpt pretrain cifar10-cpu "${images[@]}" --token_kind "$kind" --hidden_size 64 --num_attention_heads 2 \
        --max_steps 700 --warmup_epochs 0.2 --eval_steps 700 --sample_steps 0 --cpu_threads 1 \
        --output_dir "$output/$kind" "$@"
    hf-igpt evaluate --model "$output/$kind/model" --cpu_threads 1 --output_dir "$output/$kind-test"
    hf-igpt probe --model "$output/$kind/model" --cpu_threads 1 --output_dir "$output/$kind-probe"
    hf-igpt sample --model "$output/$kind/model" --num_samples 16 --num_completions 4 --cpu_threads 1 \
        --output_dir "$output/$kind-samples"
}

run palette
hf-igpt evaluate --model "$output/palette/model" --color_density empirical --dataset_name "$dataset" --cpu_threads 1 \
    --output_dir "$output/palette-test-empirical"
run rgb
run vqvae --vqvae "$output/tokenizer/model" --image_size 32 --augmentation none
