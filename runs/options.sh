#!/usr/bin/env bash
# What Muon and rotary positions are worth at equal steps, beside Adam at several learning rates: CIFAR-10 at 16x16, 700
# steps of a model of 6 blocks, with two seeds each, and a probe of each on 10,000 training and 10,000 test images; then
# options that aren't in the package, each on a small GPT. Three hours and a half on one CPU core. Run again, it redoes
# nothing that is finished. OUTPUT chooses a folder, DATASET a copy of the images.
set -euo pipefail
output="${OUTPUT:-outputs/options}"
dataset="${DATASET:-uoft-cs/cifar10}"
cd "$(dirname "$0")/.."
source runs/parts/small_cifar10.sh

for seed in 0 1; do
    for rate in 0.003 0.006 0.01; do
        train_and_probe "adam-$rate" "$seed" --learning_rate "$rate"
    done
    train_and_probe rotary-0.006 "$seed" --learning_rate 0.006 --rotary_base 100
    train_and_probe muon-0.006 "$seed" --learning_rate 0.006 --optimizer muon
    train_and_probe muon-rotary-0.006 "$seed" --learning_rate 0.006 --optimizer muon --rotary_base 100
done
python benchmarks/options.py --results "${results[@]}" --probes "${probes[@]}" --output "$output/options.json"
python benchmarks/option_trials.py --tokens "$output/adam-0.003-0/tokens" --output "$output/option-trials.json"
