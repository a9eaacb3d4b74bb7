"""Likelihood and probes of runs that differ in attention and seed alone, beside their cost; see
runs/hybrid-attention.sh.

python benchmarks/hybrid_attention.py --results outputs/hybrid-attention/*-[01] \
        --probes outputs/hybrid-attention/*-probe --output hybrid-attention.json --picture hybrid-attention.png
"""

import statistics
from typing import Any

from compared_runs import options_parser, over_seeds, read_probes, read_runs, write_comparison

from hf_igpt.storage import atomic_path


# What may differ between the runs.
VARIED = ("attention_window_rows", "full_attention_every", "seed", "output_dir", "dataset_name", "tokens")


def attention_of(arguments: dict[str, Any]) -> str:
    rows, every = arguments["attention_window_rows"], arguments["full_attention_every"]
    if rows is None:
        return "full"
    return f"{rows} rows in every block" if every == 0 else f"{rows} rows, one block of {every} full"


def draw(rows: dict[str, dict[str, Any]], path: str) -> None:
    """Likelihood and probe over the cost of an image: one point a run, a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    ordered = sorted(rows.items(), key=lambda item: item[1]["training_gflop_per_image"])
    costs = [row["training_gflop_per_image"] for _, row in ordered]
    panels = {
        "nats/token on validation": lambda run: run["validation_nats_per_token"],
        "probe's accuracy on test, %": lambda run: 100 * run["probe"]["test_accuracy"],
    }
    for axes, (what, value) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        values = [[value(run) for run in row["runs"]] for _, row in ordered]
        axes.plot(costs, [statistics.mean(each) for each in values], color="grey", linewidth=1)
        for cost, each, (name, _) in zip(costs, values, ordered, strict=True):
            axes.plot([cost] * len(each), each, "o", label=name)
        axes.set(xlabel="GFLOP an image, forward and backward", ylabel=what)
        axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def main() -> None:
    options = options_parser(__doc__)
    options.add_argument("--picture", help="plot to write")
    arguments = options.parse_args()
    results, shared = read_runs(arguments.results, VARIED)
    rows = over_seeds(results, read_probes(arguments.probes), attention_of)
    if arguments.picture:
        draw(rows, arguments.picture)
    if arguments.output:
        write_comparison(arguments.output, "attention", rows, results[0], shared)


if __name__ == "__main__":
    main()
