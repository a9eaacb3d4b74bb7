"""Features of every layer for probes: `extract_features` against transformers' ImageGPT with the same weights.

    python benchmarks/features.py --output features.json

Native gives all hidden states (`output_hidden_states=True`, no cache, no dropout, inference mode); each is normed as
its block would and averaged over positions. It runs at the fastest of several batch sizes. Features are compared
first; then both are timed in turns, and peak memory is measured in a process of its own for each.
"""

import statistics

import numpy as np
import torch
from common import (
    build_native,
    build_ours,
    describe_machine,
    machine_peaks,
    median_ratio,
    memory_above,
    paired_seconds,
    parser,
)

from hf_igpt.evaluation.features import extract_features
from hf_igpt.results import write_results


def native_features(model, tokens: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Mean over positions of what goes into each block's attention and, last, of the final norm."""
    backbone, batches = model.transformer, []
    with torch.inference_mode():
        for rows in torch.from_numpy(tokens).split(batch_size):
            start = rows.new_full((len(rows), 1), model.config.vocab_size - 1)
            ids = torch.cat([start, rows[:, :-1]], dim=1)
            states = backbone(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
            # The last of them has been through the final norm.
            normed = [block.ln_1(hidden) for block, hidden in zip(backbone.h, states[:-1], strict=True)]
            batches.append([hidden.mean(dim=1).numpy() for hidden in [*normed, states[-1]]])
    return [np.concatenate(layers) for layers in zip(*batches, strict=True)]


def largest_difference(native: list[np.ndarray], ours: list[np.ndarray]) -> float:
    """Over layers, relative to the layer's largest feature."""
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in zip(native, ours, strict=True))


def main() -> None:
    options = parser(__doc__, repeats=5)
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--width", type=int, default=512)
    options.add_argument("--heads", type=int, default=8)
    options.add_argument("--tokens", type=int, default=1024)
    options.add_argument("--images", type=int, default=8)
    options.add_argument("--native_batches", type=int, nargs="+", default=[1, 2, 4, 8], help="default 1 2 4 8")
    arguments = options.parse_args()

    shape = (arguments.images, arguments.tokens)
    tokens = torch.randint(0, 512, shape, generator=torch.Generator().manual_seed(0)).numpy()
    sizes = (arguments.layers, arguments.width, arguments.heads, arguments.tokens)
    # First: a fork must not follow work in threads.
    memory = {
        f"native, {size} at once": memory_above(lambda size=size: _native_work(sizes, tokens, size))
        for size in arguments.native_batches
    }
    memory["ours"] = memory_above(lambda: _our_work(sizes, tokens))
    peaks = machine_peaks()
    native = build_native(*sizes).eval()
    ours = build_ours(native).eval()
    works = {
        f"native, {size} at once": lambda size=size: native_features(native, tokens, size)
        for size in arguments.native_batches
    } | {"ours": lambda: extract_features(ours, tokens)}
    difference = largest_difference(works[f"native, {arguments.native_batches[0]} at once"](), works["ours"]())
    assert difference < 1e-4, f"features differ by {difference}"
    seconds = paired_seconds(works, arguments.repeats)
    fastest = min((name for name in works if name != "ours"), key=lambda name: statistics.median(seconds[name]))
    faster = median_ratio(seconds[fastest], seconds["ours"])

    print(describe_machine(peaks))
    print("\n| features of all layers | images/s (median) | peak memory above the model, MB |\n|---|---|---|")
    for name, times in seconds.items():
        print(f"| {name} | {arguments.images / statistics.median(times):.2f} | {memory[name]:.0f} |")
    print(f"\nOurs is {faster:.2f} times as fast as {fastest}; features differ by {difference:.0e} at most.")
    if arguments.output:
        metrics = {
            "seconds": seconds,
            "fastest_native": fastest,
            "times_faster": faster,
            "peak_megabytes": memory,
            "largest_difference": difference,
            "machine": peaks,
        }
        write_results(arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments))


def _native_work(sizes: tuple[int, int, int, int], tokens: np.ndarray, batch_size: int):
    model = build_native(*sizes).eval()
    return lambda: native_features(model, tokens, batch_size)


def _our_work(sizes: tuple[int, int, int, int], tokens: np.ndarray):
    model = build_ours(build_native(*sizes)).eval()
    return lambda: extract_features(model, tokens)


if __name__ == "__main__":
    main()
