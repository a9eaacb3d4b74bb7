"""Likelihood of a model that learnt on small images first, beside one of the same training FLOPs that didn't; see
runs/progressive.sh.

python benchmarks/progressive_resolution.py --results outputs/progressive/*-[01] --output progressive.json
"""

import argparse
import statistics
from typing import Any

from compared_runs import read_runs

from hf_igpt.results import write_results


# What may differ between the runs.
VARIED = ("image_size", "max_steps", "eval_steps", "init_from", "palette")
VARIED += ("seed", "output_dir", "dataset_name", "tokens", "num_train_epochs")
SMALL, PROGRESSIVE, DIRECT = "small", "progressive", "direct"


def way_of(result: dict[str, Any], largest: int) -> str:
    if result["metrics"]["validation"]["tokens_per_image"] < largest:
        return SMALL
    return PROGRESSIVE if result["arguments"]["init_from"] else DIRECT


def ways_of(results: list[dict[str, Any]], largest: int) -> dict[str, dict[int, dict[str, Any]]]:
    """
    The runs of every way by their seeds.

    Raises:
        SystemExit: two runs of one way have the same seed, or a way lacks a seed that another has.
    """
    ways: dict[str, dict[int, dict[str, Any]]] = {SMALL: {}, PROGRESSIVE: {}, DIRECT: {}}
    for result in results:
        way, seed = way_of(result, largest), result["seeds"]["seed"]
        if seed in ways[way]:
            raise SystemExit(f"Two {way} runs have the seed {seed}: leave one out.")
        ways[way][seed] = result
    if len({tuple(sorted(runs)) for runs in ways.values()}) > 1:
        found = "; ".join(f"{way} {sorted(runs)}" for way, runs in ways.items())
        raise SystemExit(f"Every way needs the same seeds, got {found}.")
    return ways


def summary(ways: dict[str, dict[int, dict[str, Any]]], way: str) -> dict[str, Any]:
    """The likelihood of one way, with the FLOPs of the small images where it began with them."""
    runs = []
    for seed, result in sorted(ways[way].items()):
        stages = [ways[SMALL][seed], result] if way == PROGRESSIVE else [result]
        runs.append(
            {
                "seed": seed,
                "validation_nats_per_token": result["metrics"]["validation"]["nats_per_token"],
                "training_flops": sum(stage["metrics"]["training_flops"] for stage in stages),
                "optimizer_steps": [stage["metrics"]["optimizer_steps"] for stage in stages],
                "training_seconds": sum(stage["training_seconds"] for stage in stages),
                "commands": [stage["command"] for stage in stages],
                "commit": result["commit"],
            }
        )
    return {"nats_per_token": statistics.mean(run["validation_nats_per_token"] for run in runs), "runs": runs}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", nargs="+", required=True, help="folders of finished runs of pretrain")
    options.add_argument("--output", help="results JSON to write")
    arguments = options.parse_args()
    results, shared = read_runs(arguments.results, VARIED)
    largest = max(result["metrics"]["validation"]["tokens_per_image"] for result in results)
    ways = ways_of(results, largest)
    rows = {way: summary(ways, way) for way in (DIRECT, PROGRESSIVE)}
    costs = [run["training_flops"] for row in rows.values() for run in row["runs"]]
    if max(costs) > 1.01 * min(costs):
        raise SystemExit(f"The ways differ in training FLOPs by more than 1 %: {min(costs):.4g} to {max(costs):.4g}.")
    for way, row in rows.items():
        print(f"{way:12}{row['nats_per_token']:8.4f} nats/token{row['runs'][0]['training_flops']:12.3g} FLOP")
    if arguments.output:
        seeds = {f"run {seed}": seed for seed in ways[DIRECT]}
        model = next(iter(ways[DIRECT].values()))
        metrics = {"ways": rows, "parameters": model["metrics"]["parameters"], "tokens_per_image": largest}
        write_results(arguments.output, metrics=metrics, arguments=shared, seeds=seeds)


if __name__ == "__main__":
    main()
