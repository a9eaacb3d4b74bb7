"""Likelihood, probe and cost of runs that differ in the size of the images alone; see runs/resolution.sh.

python benchmarks/resolution.py --results outputs/resolution/{8,16,24,32} \
        --probes outputs/resolution/{8,16,24,32}-probe --output resolution.json --picture resolution.png
"""

from typing import Any

from compared_runs import config_of, options_parser, probe_of, read_probes, read_runs

from hf_igpt.results import write_results
from hf_igpt.storage import atomic_path
from hf_igpt.training.cost import forward_flops, head_flops, training_flops


# What may differ between the runs.
VARIED = ("image_size", "palette", "output_dir", "dataset_name")


def row_of(run: dict[str, Any], probe: dict[str, Any]) -> dict[str, Any]:
    """What the table says of one size."""
    config, scores = config_of(run), run["metrics"]["validation"]
    return {
        "grid": list(config.grid),
        "tokens_per_image": config.n_positions,
        "parameters": run["metrics"]["parameters"],
        "training_gflop_per_image": training_flops(config) / 1e9,
        "feature_gflop_per_image": (forward_flops(config) - head_flops(config)) / 1e9,
        "nats_per_token": scores["nats_per_token"],
        "nats_per_token_standard_error": scores["nats_per_token_standard_error"],
        "unigram_nats_per_token": scores["unigram_nats_per_token"],
        "validation_images": scores["num_images"],
        "probe": probe,
        "training_seconds": run["training_seconds"],
        "commit": run["commit"],
        "command": run["command"],
    }


def draw(rows: list[dict[str, Any]], path: str) -> None:
    """Likelihood and probe over the cost of an image, one point a size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    costs = [row["training_gflop_per_image"] for row in rows]
    names = [f"{cost:.2g}\n{'x'.join(map(str, row['grid']))}" for cost, row in zip(costs, rows, strict=True)]
    likelihood, accuracy = figure.subplots(1, 2)
    likelihood.plot(costs, [row["nats_per_token"] for row in rows], "o-")
    likelihood.set_ylabel("nats/token on validation")
    probes = [row["probe"] for row in rows]
    accuracy.plot(costs, [100 * probe["test_accuracy"] for probe in probes], "o-", label="best layer")
    accuracy.plot(costs, [100 * probe["pixels_test_accuracy"] for probe in probes], "s--", label="pixels alone")
    accuracy.set_ylabel("accuracy on test, %")
    accuracy.legend()
    for axes in (likelihood, accuracy):
        axes.set_xscale("log")
        axes.set_xlabel("GFLOP an image, forward and backward")
        axes.set_xticks(costs, names)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=120)


def main() -> None:
    options = options_parser(__doc__)
    options.add_argument("--picture", help="plot to write")
    arguments = options.parse_args()
    runs, shared = read_runs(arguments.results, VARIED)
    probes = read_probes(arguments.probes)
    rows = [row_of(run, probe_of(run, probes)) for run in runs]
    rows.sort(key=lambda row: row["tokens_per_image"])
    for row in rows:
        print(
            f"{row['grid']!s:10}{row['nats_per_token']:8.4f} nats/token{100 * row['probe']['test_accuracy']:8.2f} %"
            f"{row['training_gflop_per_image']:8.3f} GFLOP an image"
        )
    if arguments.picture:
        draw(rows, arguments.picture)
    if arguments.output:
        metrics = {
            "sizes": rows,
            "optimizer_steps": runs[0]["metrics"]["optimizer_steps"],
            "images_seen": runs[0]["metrics"]["images_seen"],
        }
        write_results(arguments.output, metrics=metrics, arguments=shared, seeds={"seed": shared["seed"]})


if __name__ == "__main__":
    main()
