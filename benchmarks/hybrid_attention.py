"""Likelihood of runs that differ in attention and seed alone, beside their cost; see runs/hybrid-attention.sh.

python benchmarks/hybrid_attention.py --results outputs/hybrid-attention/*-[01] --output hybrid-attention.json \
        --picture hybrid-attention.png
"""

import argparse
import dataclasses
import statistics
from typing import Any

from hf_igpt.data.options import token_layout
from hf_igpt.data.token_store import token_hash_in
from hf_igpt.results import read_results, write_results
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.cost import training_flops
from hf_igpt.training.pretraining import model_config


# What may differ between the runs.
VARIED = ("attention_window_rows", "full_attention_every", "seed", "output_dir", "dataset_name", "tokens")


def attention_of(arguments: dict[str, Any]) -> str:
    rows, every = arguments["attention_window_rows"], arguments["full_attention_every"]
    if rows is None:
        return "full"
    return f"{rows} rows in every block" if every == 0 else f"{rows} rows, one block of {every} full"


def flops_of(arguments: dict[str, Any]) -> int:
    options = PretrainArguments(**arguments)
    return training_flops(model_config(options, token_layout(options)))


def draw(rows: dict[str, dict[str, Any]], path: str) -> None:
    """Likelihood over the cost of an image: one point a run, a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(rows.items(), key=lambda item: item[1]["training_gflop_per_image"])
    costs = [row["training_gflop_per_image"] for _, row in ordered]
    axes.plot(costs, [row["nats_per_token"] for _, row in ordered], color="grey", linewidth=1)
    for name, row in ordered:
        nats = [run["validation_nats_per_token"] for run in row["runs"]]
        axes.plot([row["training_gflop_per_image"]] * len(nats), nats, "o", label=name)
    axes.set_xlabel("GFLOP an image, forward and backward")
    axes.set_ylabel("nats/token on validation")
    axes.legend()
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", nargs="+", required=True, help="folders of finished runs of pretrain")
    options.add_argument("--output", help="results JSON to write")
    options.add_argument("--picture", help="plot to write")
    arguments = options.parse_args()
    results = [read_results(folder) for folder in arguments.results]
    # With the defaults of options that a run's version didn't have.
    options_of = [dataclasses.asdict(PretrainArguments(**result["arguments"])) for result in results]
    shared = [{name: value for name, value in options.items() if name not in VARIED} for options in options_of]
    if any(settings != shared[0] for settings in shared) or len({token_hash_in(result) for result in results}) > 1:
        raise SystemExit("The runs differ in more than attention and seed: their likelihoods can't be compared.")
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row = rows.setdefault(attention_of(result["arguments"]), {"runs": []})
        row["training_gflop_per_image"] = flops_of(result["arguments"]) / 1e9
        row["runs"].append(
            {
                "seed": result["seeds"]["seed"],
                "validation_nats_per_token": result["metrics"]["validation"]["nats_per_token"],
                "training_seconds": result["training_seconds"],
                "commit": result["commit"],
                "command": result["command"],
            }
        )
    for name, row in rows.items():
        row["nats_per_token"] = statistics.mean(run["validation_nats_per_token"] for run in row["runs"])
        print(f"{name:32}{row['nats_per_token']:8.4f} nats/token{row['training_gflop_per_image']:8.2f} GFLOP an image")
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
        write_results(arguments.output, metrics=metrics, arguments=shared[0], seeds=seeds)


if __name__ == "__main__":
    main()
