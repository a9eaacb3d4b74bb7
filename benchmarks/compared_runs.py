"""Runs of pretrain that differ in named options alone, and the probes of their checkpoints."""

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Collection, Sequence
from typing import Any

from hf_igpt.data.options import token_layout
from hf_igpt.data.token_store import token_hash_in
from hf_igpt.results import read_results, write_results
from hf_igpt.training.arguments import PretrainArguments
from hf_igpt.training.cost import training_flops
from hf_igpt.training.pretraining import model_config


VALIDATED_ON = ("num_images", "unigram_nats_per_token")


def options_parser(description: str | None) -> argparse.ArgumentParser:
    """What every comparison is asked for."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--results", nargs="+", required=True, help="folders of finished runs of pretrain")
    options.add_argument("--probes", nargs="+", required=True, help="folders of probes of their models")
    options.add_argument("--output", help="results JSON to write")
    return options


def read_runs(folders: Sequence[str], varied: Collection[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """
    The results of runs, and the options that all of them share, with the defaults of options that a run's version
    didn't have.

    Raises:
        SystemExit: the runs differ in another option, or in what their tokens mean.
    """
    results = [read_results(folder) for folder in folders]
    shared = [
        {name: value for name, value in dataclasses.asdict(options_of(result)).items() if name not in varied}
        for result in results
    ]
    differing = {name for options in shared for name, value in options.items() if value != shared[0][name]}
    if differing or len({token_hash_in(result) for result in results}) > 1:
        what = ", ".join(sorted(differing)) or "what their tokens mean"
        raise SystemExit(f"The runs differ in {what}: they can't be compared.")
    return results, shared[0]


def options_of(result: dict[str, Any]) -> PretrainArguments:
    """The options of a run."""
    return PretrainArguments(**result["arguments"])


def config_of(result: dict[str, Any]) -> Any:
    """The config of a run's model."""
    options = options_of(result)
    return model_config(options, token_layout(options))


def read_probes(folders: Sequence[str]) -> dict[str, dict[str, Any]]:
    """
    What a table says of every probe, by the sum of the weights that it read.

    Raises:
        SystemExit: the probes differ in solver, norm or images.
    """
    results = [read_results(folder) for folder in folders]
    compared = [(result["probe"], result["dataset"]["num_images"]) for result in results]
    if any(other != compared[0] for other in compared):
        raise SystemExit("The probes differ in more than their checkpoint: they can't be compared.")
    return {result["checkpoint"]["sha256"]: _summary(result) for result in results}


def probe_of(run: dict[str, Any], probes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The probe of a run's model. Raises SystemExit where there is none."""
    if run["model_sha256"] not in probes:
        raise SystemExit(f"No probe is of the model of {run['arguments']['output_dir']}.")
    return probes[run["model_sha256"]]


def over_seeds(
    results: Sequence[dict[str, Any]],
    probes: dict[str, dict[str, Any]],
    name_of: Callable[[dict[str, Any]], str],
) -> dict[str, dict[str, Any]]:
    """
    Likelihood, probe and cost of runs that `name_of` calls the same, with their means over seeds; prints them.

    Raises:
        SystemExit: the runs were validated on different images, or two of one name have the same seed.
    """
    # The same images have the same frequencies of colours.
    seen = {tuple(result["metrics"]["validation"][name] for name in VALIDATED_ON) for result in results}
    if len(seen) > 1:
        raise SystemExit("The runs were validated on different images: they can't be compared.")
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        name = name_of(result["arguments"])
        row = rows.setdefault(name, {"runs": []})
        if result["seeds"]["seed"] in [run["seed"] for run in row["runs"]]:
            raise SystemExit(f"Two runs of {name} have the seed {result['seeds']['seed']}: leave one out.")
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
            f"{name:40}{row['nats_per_token']:8.4f} nats/token{100 * row['probe_test_accuracy']:8.2f} %"
            f"{row['training_gflop_per_image']:8.2f} GFLOP an image"
        )
    return rows


def write_comparison(
    path: str, what: str, rows: dict[str, dict[str, Any]], result: dict[str, Any], shared: dict[str, Any]
) -> None:
    """The rows of `over_seeds` under the name `what`, with what all runs share, of which `result` is one."""
    counts = ("optimizer_steps", "images_seen", "parameters")
    metrics = {what: rows} | {name: result["metrics"][name] for name in counts}
    metrics["unigram_nats_per_token"] = result["metrics"]["validation"]["unigram_nats_per_token"]
    numbers = sorted({run["seed"] for row in rows.values() for run in row["runs"]})
    write_results(path, metrics=metrics, arguments=shared, seeds={f"run {number}": number for number in numbers})


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    metrics = result["metrics"]
    pixels = metrics["pixels"]
    return {
        "layer": metrics["best"]["layer"],
        "test_accuracy": metrics["best"]["test_accuracy"],
        "pixels_test_accuracy": pixels and pixels["test_accuracy"],
        "num_images": result["dataset"]["num_images"],
        "command": result["command"],
        "commit": result["commit"],
    }
