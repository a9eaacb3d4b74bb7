#!/usr/bin/env bash
# On one GPU: how much of its measured matrix peak training reaches for the paper's sizes, time and memory over sequence
# length, batch and size beside transformers' ImageGPT and a plain GPT, and the roofline of training, features and
# sampling. Pieces of at most 8 minutes; `runs/gpu-benchmarks.sh PIECE` runs one of them, and without a piece all of them
# run in turn. OUTPUT chooses another folder.
set -euo pipefail
cd "$(dirname "$0")/.."
output="${OUTPUT:-outputs/gpu-benchmarks}"
mkdir -p "$output"
python="${PYTHON:-python}"
gpu=(--device cuda --dtype bf16)

run() {
  local piece="$1" name="$2"
  if [[ "$chosen" == all || "$chosen" == "$piece" ]]; then
    if [[ ! -f "$output/$name.json" ]]; then
      timeout 480 "$python" "${@:3}" --output "$output/$name.json"
    fi
  fi
}

chosen="${1:-all}"
# The fraction of the matrix peak: one piece a size, for compiling the large ones takes minutes.
run s scaling-igpt-s benchmarks/scaling.py --over size "${gpu[@]}" --points igpt-s --batch 64
run m scaling-igpt-m benchmarks/scaling.py --over size "${gpu[@]}" --points igpt-m --batch 16 --kinds ours ours_compiled plain
run l scaling-igpt-l benchmarks/scaling.py --over size "${gpu[@]}" --points igpt-l --batch 4 --kinds ours ours_compiled
run tokens scaling-tokens benchmarks/scaling.py --over tokens "${gpu[@]}" --batch 4 --kinds ours ours_checkpointing native plain
run batch scaling-batch benchmarks/scaling.py --over batch "${gpu[@]}" --kinds ours ours_checkpointing native plain
run roofline-s roofline-igpt-s benchmarks/roofline.py "${gpu[@]}" --preset igpt-s --batch 64 --images 64 --feature_images 64
run loading data-loading benchmarks/data_loading.py --workers 0 4 8
