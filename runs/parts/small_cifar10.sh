# Sourced by comparisons of small models: one training run of CIFAR-10 at 16x16 and the probe of its model. Wants $output
# and $dataset; gathers the folders for the script that compares them in `results` and `probes`.
images=(--dataset_name "$dataset")
results=()
probes=()

# train_and_probe NAME SEED [OPTION ...]: 700 steps of 6 blocks, 64 wide, on one CPU core.
train_and_probe() {
    local run="$output/$1-$2"
    hf-igpt pretrain cifar10-cpu "${images[@]}" --hidden_size 64 --num_attention_heads 2 --max_steps 700 \
        --warmup_epochs 0.05 --eval_steps 700 --sample_steps 0 --cpu_threads 1 --seed "$2" --output_dir "$run" "${@:3}"
    hf-igpt probe --model "$run/model" --dataset_name "$dataset" --max_images 10000 --cpu_threads 1 \
        --output_dir "$run-probe"
    # The first run's palette and tokens serve the others.
    if [ "${#results[@]}" = 0 ]; then images=(--tokens "$run/tokens"); fi
    results+=("$run")
    probes+=("$run-probe")
}
