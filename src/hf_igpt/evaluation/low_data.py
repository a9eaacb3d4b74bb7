"""Probes on few labels of every class: the mean and spread over seeded subsets (paper, section 4.7)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.classes import class_subset
from hf_igpt.data.randomness import random_permutation
from hf_igpt.evaluation.probes import PENALTIES, ProbeData


if TYPE_CHECKING:
    import torch

# Few labels are separated by any weights: below these, probes differ in nothing but the time they take.
LOW_DATA_PENALTIES = tuple(penalty for penalty in PENALTIES if penalty >= 9e-4)
MAX_FOLDS = 5


def low_data_probes(
    data: ProbeData,
    layer: int,
    labels_per_class: Sequence[int],
    *,
    num_subsets: int = 5,
    seed: int = 0,
    concatenate: int = 1,
    standardize: bool = True,
    penalties: Sequence[float] = LOW_DATA_PENALTIES,
    device: Any = "cpu",
) -> list[dict[str, Any]]:
    """
    Logistic regression on one layer's features of `num_subsets` subsets of train for each size, read on test. Nothing
    but the subset's own labels is used: the penalty is chosen by cross-validation inside it, and is the middle one
    where a class has one label.

    Returns:
        A row for each size: "per_class", "accuracy_mean", "accuracy_std" (over subsets, of the sample; None for a
        single one), "accuracies", "penalties".

    Raises:
        ValueError: a class with fewer images than asked for.
    """
    labels = data.labels["train"]
    # All of them first: a size that can't be had ends the work before it begins.
    subsets = {
        count: [class_subset(labels, count, seed + number, data.num_classes) for number in range(num_subsets)]
        for count in labels_per_class
    }
    train = data.stack("train", [layer], concatenate, device)[0]
    test = data.stack("test", [layer], concatenate, device)
    truth = data.targets("test", device)
    rows = []
    for count, chosen in subsets.items():
        accuracies, picked = [], []
        for number, subset in enumerate(chosen):
            features, targets = train[subset], data.targets("train", device)[subset]
            penalty = _cross_validated(
                features, targets, labels[subset], count, penalties, data.num_classes, standardize, seed + number
            )
            predictions = _fit(features, targets, [penalty], data.num_classes, standardize).logits(test)[0, 0]
            accuracies.append(float((predictions.argmax(dim=-1) == truth).double().mean()))
            picked.append(penalty)
        rows.append(
            {
                "per_class": count,
                "accuracy_mean": float(np.mean(accuracies)),
                "accuracy_std": float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else None,
                "accuracies": accuracies,
                "penalties": picked,
            }
        )
    return rows


def _cross_validated(
    features: "torch.Tensor",
    targets: "torch.Tensor",
    labels: np.ndarray,
    per_class: int,
    penalties: Sequence[float],
    num_classes: int,
    standardize: bool,
    seed: int,
) -> float:
    """The penalty with the best accuracy over folds of equal class shares; the largest among equals."""
    folds = min(per_class, MAX_FOLDS)
    if folds < 2:
        return penalties[len(penalties) // 2]
    fold_of = np.empty(len(labels), dtype=np.int64)
    for number in range(num_classes):
        members = np.flatnonzero(labels == number)
        order = random_permutation(f"folds of class {number}", seed, 0, len(members))
        fold_of[members[order]] = np.arange(len(members)) % folds
    right = np.zeros(len(penalties))
    for fold in range(folds):
        inside, outside = np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold)
        probes = _fit(features[inside], targets[inside], penalties, num_classes, standardize)
        predictions = probes.logits(features[outside].unsqueeze(0))[0].argmax(dim=-1)  # (penalties, images)
        right += (predictions == targets[outside]).sum(dim=-1).cpu().numpy()
    return penalties[int(np.flatnonzero(right == right.max())[-1])]


def _fit(
    features: "torch.Tensor", targets: "torch.Tensor", penalties: Sequence[float], num_classes: int, standardize: bool
) -> Any:
    import torch

    from hf_igpt.evaluation.logistic import fit_logistic

    grid = torch.tensor([list(penalties)], dtype=torch.float64, device=features.device)
    return fit_logistic(features.unsqueeze(0), targets, grid, num_classes, standardize=standardize)
