"""What the modules of tables share: where the results lie, and how shares, lists and runs over seeds are written."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"


def best_accuracy(metrics: dict[str, Any]) -> float:
    """Accuracy on test of a probe's best layer; of a masked model's, of the vote over its masks."""
    return metrics["best"].get("ensemble_test_accuracy", metrics["best"]["test_accuracy"])


def listed(values: Iterable[Any]) -> str:
    """Two values or more, in words."""
    return " and ".join(map(str, values))


def likelihood_and_probe(runs: Sequence[dict[str, Any]]) -> str:
    """Four cells: validation nats per token and probe of runs that differ in their seed alone, means and each."""
    nats = [run["validation_nats_per_token"] for run in runs]
    accuracies = [run["probe"]["test_accuracy"] for run in runs]
    probes = (f"{percent(run['probe']['test_accuracy'])} (layer {run['probe']['layer']})" for run in runs)
    cells = (
        f"**{statistics.mean(nats):.3f}**",
        ", ".join(f"{each:.3f}" for each in nats),
        f"**{percent(statistics.mean(accuracies))}**",
        ", ".join(probes),
    )
    return " | ".join(cells)


def probe_note(images: dict[str, int], accuracy: float) -> str:
    """What a probe is, and how sure its accuracy."""
    error = math.sqrt(accuracy * (1 - accuracy) / images["test"])
    return (
        f"Probe: logistic regression on the best layer, which validation chose, {images['train']:,} training and "
        f"{images['test']:,} test images, so that an accuracy has a standard error of {100 * error:.1f} points."
    )
