"""Likelihood of a model that learnt on small images first, beside one of the same training FLOPs that didn't; see
runs/progressive.sh.

python benchmarks/progressive_resolution.py --results outputs/progressive/*-[01] --output progressive.json
"""

import argparse
import statistics
from typing import Any

from hf_igpt.data.token_store import token_hash_in
from hf_igpt.results import read_results, write_results


SMALL, PROGRESSIVE, DIRECT = "small", "progressive", "direct"


def way_of(result: dict[str, Any], largest: int) -> str:
    if result["metrics"]["validation"]["tokens_per_image"] < largest:
        return SMALL
    return PROGRESSIVE if result["arguments"]["init_from"] else DIRECT


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
                "command": result["command"],
                "commit": result["commit"],
            }
        )
    return {"nats_per_token": statistics.mean(run["validation_nats_per_token"] for run in runs), "runs": runs}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", nargs="+", required=True, help="folders of finished runs of pretrain")
    options.add_argument("--output", help="results JSON to write")
    arguments = options.parse_args()
    results = [read_results(folder) for folder in arguments.results]
    if len({token_hash_in(result) for result in results}) > 1:
        raise SystemExit("The runs have different palettes: their likelihoods can't be compared.")
    largest = max(result["metrics"]["validation"]["tokens_per_image"] for result in results)
    ways: dict[str, dict[int, dict[str, Any]]] = {SMALL: {}, PROGRESSIVE: {}, DIRECT: {}}
    for result in results:
        ways[way_of(result, largest)][result["seeds"]["seed"]] = result
    rows = {way: summary(ways, way) for way in (DIRECT, PROGRESSIVE)}
    for way, row in rows.items():
        flops = statistics.mean(run["training_flops"] for run in row["runs"])
        print(f"{way:12}{row['nats_per_token']:8.4f} nats/token{flops:12.3g} FLOP")
    if arguments.output:
        shared = next(iter(ways[DIRECT].values()))["arguments"]
        seeds = {f"run {seed}": seed for seed in sorted(ways[DIRECT])}
        metrics = {"ways": rows, "parameters": results[0]["metrics"]["parameters"], "tokens_per_image": largest}
        write_results(arguments.output, metrics=metrics, arguments=shared, seeds=seeds)


if __name__ == "__main__":
    main()
