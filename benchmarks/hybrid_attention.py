"""Likelihood and probes of runs that differ in attention and seed alone, beside their cost; see
runs/hybrid-attention.sh.

python benchmarks/hybrid_attention.py --results outputs/hybrid-attention/*-[01] \
        --probes outputs/hybrid-attention/*-probe --output hybrid-attention.json --picture hybrid-attention.png
"""

import argparse
import statistics
from typing import Any

from compared_runs import config_of, probe_of, read_probes, read_runs

from hf_igpt.results import write_results
from hf_igpt.storage import atomic_path
from hf_igpt.training.cost import training_flops


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
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", nargs="+", required=True, help="folders of finished runs of pretrain")
    options.add_argument("--probes", nargs="+", required=True, help="folders of probes of their models")
    options.add_argument("--output", help="results JSON to write")
    options.add_argument("--picture", help="plot to write")
    arguments = options.parse_args()
    results, shared = read_runs(arguments.results, VARIED)
    probes = read_probes(arguments.probes)
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(attention_of(result["arguments"]), {"runs": []})
        row["training_gflop_per_image"] = training_flops(config_of(result)) / 1e9
        row["runs"].append(
            {
                "seed": result["seeds"]["seed"],
                "validation_nats_per_token": result["metrics"]["validation"]["nats_per_token"],
                "probe": probe_of(result, probes),
                "training_seconds": result["training_seconds"],
                "commit": result["commit"],
                "command": result["command"],
            }
        )
    for name, row in rows.items():
        row["nats_per_token"] = statistics.mean(run["validation_nats_per_token"] for run in row["runs"])
        row["probe_test_accuracy"] = statistics.mean(run["probe"]["test_accuracy"] for run in row["runs"])
        print(
            f"{name:32}{row['nats_per_token']:8.4f} nats/token{100 * row['probe_test_accuracy']:8.2f} %"
            f"{row['training_gflop_per_image']:8.2f} GFLOP an image"
        )
    if arguments.picture:
        draw(rows, arguments.picture)
    if arguments.output:
        metrics = {
            "attention": rows,
            "optimizer_steps": results[0]["metrics"]["optimizer_steps"],
            "images_seen": results[0]["metrics"]["images_seen"],
            "parameters": results[0]["metrics"]["parameters"],
            "unigram_nats_per_token": results[0]["metrics"]["validation"]["unigram_nats_per_token"],
        }
        numbers = sorted({run["seed"] for row in rows.values() for run in row["runs"]})
        seeds = {f"run {number}": number for number in numbers}
        write_results(arguments.output, metrics=metrics, arguments=shared, seeds=seeds)


if __name__ == "__main__":
    main()
