"""Probes of all layers: our logistic regression of every layer and penalty at once against scikit-learn's one by one.

    python benchmarks/probes.py --output probes.json

Features are real ones, of every layer of a randomly initialised ImageGPT on shifted copies of scikit-learn's digits.
Both minimise the same objective over the same standardised features, with one thread each. scikit-learn keeps its
default tolerance. Objectives and accuracies are compared before anything is timed.
"""

import statistics
import time
from typing import Any

import numpy as np
import torch
from common import describe_machine, machine_peaks, median_ratio, paired_seconds, parser
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_igpt import ImageGPTConfig, ImageGPTForCausalImageModeling
from hf_igpt.evaluation.features import extract_features
from hf_igpt.evaluation.logistic import LinearProbes, fit_logistic
from hf_igpt.results import write_results


CLASSES = 10
SHIFTS = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))


def digit_features(copies: int, layers: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean-pooled features (layers + 1, images, width) and labels."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).long()
    tokens = torch.cat([images.roll(shift, dims=(1, 2)) for shift in SHIFTS[:copies]]).flatten(1).numpy()
    torch.manual_seed(0)
    config = ImageGPTConfig(
        vocab_size=18, image_size=8, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4
    )
    model = ImageGPTForCausalImageModeling(config).eval()
    for parameter in model.parameters():
        # As initialised, a model hardly changes what it adds up.
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.08)
    features = torch.from_numpy(np.stack(extract_features(model, tokens)))
    return features, torch.from_numpy(np.tile(digits.target, copies))


def fit_native(features: np.ndarray, labels: np.ndarray, penalties: torch.Tensor, tolerance: float) -> list[list[Any]]:
    """One after the other; a layer is standardised once."""
    fitted = []
    for values, row in zip(features, penalties.tolist(), strict=True):
        scaled = StandardScaler().fit_transform(values)
        models = [LogisticRegression(C=1 / (p * len(labels)), tol=tolerance, max_iter=20_000) for p in row]
        fitted.append([model.fit(scaled, labels) for model in models])
    return fitted


def native_objective(model: LogisticRegression, values: np.ndarray, labels: np.ndarray, penalty: float) -> float:
    losses = -model.predict_log_proba(values)[np.arange(len(labels)), labels]
    return float(losses.mean(dtype=np.float64) + penalty / 2 * np.square(model.coef_, dtype=np.float64).sum())


def check_equal(
    native: list[list[Any]], ours: LinearProbes, features: torch.Tensor, labels: torch.Tensor, penalties: torch.Tensor
) -> dict[str, float]:
    """Largest differences over layers and penalties: of objectives, relative (ours less theirs), and of accuracies."""
    accuracies = ours.accuracies(features, labels)
    differences, gaps = [], []
    for row, models in enumerate(native):
        scaled = StandardScaler().fit_transform(features[row].numpy().astype(np.float64))
        for column, model in enumerate(models):
            theirs = native_objective(model, scaled, labels.numpy(), float(penalties[row, column]))
            differences.append(float(ours.objective[row, column]) / theirs - 1)
            gaps.append(abs(float(accuracies[row, column]) - model.score(scaled, labels.numpy())))
    assert ours.converged.all(), "some of our probes have not converged"
    assert max(map(abs, differences)) < 1e-3, f"objectives differ by up to {max(map(abs, differences)):.1e}"
    assert max(gaps) < 0.002, f"accuracies differ by up to {max(gaps):.4f}"
    return {"objective_highest": max(differences), "objective_lowest": min(differences), "accuracy": max(gaps)}


def compare(
    features: torch.Tensor, labels: torch.Tensor, penalties: list[float], tolerance: float, repeats: int
) -> dict[str, Any]:
    rows = torch.tensor([penalties] * len(features), dtype=torch.float64)
    arrays, truth = features.numpy(), labels.numpy()
    works = {
        "scikit-learn": lambda: fit_native(arrays, truth, rows, tolerance),
        "ours": lambda: fit_logistic(features, labels, rows, CLASSES),
    }
    agreement = check_equal(works["scikit-learn"](), works["ours"](), features, labels, rows)
    seconds = paired_seconds(works, repeats, warm_up=0)
    return {
        "penalties": penalties,
        "largest_differences": agreement,
        "seconds": seconds,
        "times_faster": median_ratio(seconds["scikit-learn"], seconds["ours"]),
    }


def main() -> None:
    options = parser(__doc__, repeats=3)
    options.add_argument("--layers", type=int, default=8, help="blocks; one layer more is probed (default 8)")
    options.add_argument("--width", type=int, default=128)
    options.add_argument("--copies", type=int, default=5, choices=range(1, 6), help="of the 1,797 digits (default 5)")
    options.add_argument("--tolerance", type=float, default=1e-4, help="scikit-learn's tol (default 1e-4, its own)")
    options.add_argument("--threads", type=int, default=1)
    arguments = options.parse_args()

    torch.set_num_threads(arguments.threads)
    start = time.perf_counter()
    peaks = machine_peaks()
    features, labels = digit_features(arguments.copies, arguments.layers, arguments.width)
    grids = {"one penalty": [1e-2], "8 penalties": np.logspace(-3, 1, 8).tolist()}
    found = {
        name: compare(features, labels, grid, arguments.tolerance, arguments.repeats) for name, grid in grids.items()
    }
    print(describe_machine(peaks))
    print(f"\nFeatures (layers, images, width): {tuple(features.shape)}")
    print("\n| probes of all layers | scikit-learn, s | ours, s (median) | times faster | objectives differ by |")
    print("|---|---|---|---|---|")
    for name, row in found.items():
        theirs, ours = (statistics.median(times) for times in row["seconds"].values())
        low, high = (row["largest_differences"][f"objective_{end}"] for end in ("lowest", "highest"))
        print(f"| {name} | {theirs:.2f} | {ours:.2f} | {row['times_faster']:.1f} | {low:.0e} to {high:.0e} |")
    if arguments.output:
        metrics = {"features": list(features.shape), "comparisons": found, "machine": peaks}
        elapsed = time.perf_counter() - start
        write_results(
            arguments.output, metrics=metrics, seeds={"seed": 0}, arguments=vars(arguments), wall_seconds=elapsed
        )


if __name__ == "__main__":
    main()
