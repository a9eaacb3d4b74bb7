"""Probes of frozen features: every layer is fitted on train, chosen by validation, and read on test once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.evaluation.ensembles import majority


if TYPE_CHECKING:
    import torch

# Weights of the penalty on standardised features: scikit-learn's C is 1 / (penalty x images).
PENALTIES = tuple(float(value) for value in 10.0 ** np.arange(-5, 1.5, 0.5))
# DINO's (Caron et al., 2021).
NEIGHBOURS, TEMPERATURE = (10, 20, 100, 200), 0.07
# Layers that are fitted together may take so much memory.
GROUP_BYTES = 1 << 30


@dataclass(frozen=True)
class ProbeData:
    """
    Features and labels of the splits "train", "validation" and "test".

    Args:
        features: for each split one array for each layer, float32 of shape (images, width).
        labels: for each split the classes, int64 of shape (images,).
        num_classes: how many there are.
        test_masks: of a masked model, the test features under further masks, for the ensemble.
    """

    features: Mapping[str, Sequence[np.ndarray]]
    labels: Mapping[str, np.ndarray]
    num_classes: int
    test_masks: Sequence[Sequence[np.ndarray]] = ()

    def __post_init__(self):
        if lacking := {"train", "validation", "test"} - self.features.keys():
            raise ValueError(
                f"Probes need the splits train, validation and test, got no {min(lacking)}. Give a "
                "`validation_fraction` or a `test_fraction`."
            )
        for split, arrays in self.features.items():
            for layer, array in enumerate(arrays):
                if len(array) != len(self.labels[split]):
                    raise ValueError(
                        f"`features` of {split} must have a row for each of its {len(self.labels[split])} labels, got "
                        f"{len(array)} in layer {layer}."
                    )

    @property
    def num_layers(self) -> int:
        """Layers, the embeddings included."""
        return len(self.features["train"])

    def stack(self, split: str, layers: Sequence[int], concatenate: int, device: Any, mask: int = 0) -> "torch.Tensor":
        """Features of some layers, float32 of shape (layers, images, width x concatenate)."""
        import torch

        from hf_igpt.evaluation.features import concatenated

        arrays = self.features[split] if mask == 0 else self.test_masks[mask - 1]
        chosen = np.stack([concatenated(arrays, concatenate, layer) for layer in layers])
        return torch.from_numpy(chosen).to(device)

    def targets(self, split: str, device: Any) -> "torch.Tensor":
        """Labels of a split as a tensor."""
        import torch

        return torch.from_numpy(self.labels[split]).to(device)


def fit_probes(
    data: ProbeData,
    *,
    solver: str = "lbfgs",
    layers: Sequence[int] | None = None,
    concatenate: int = 1,
    standardize: bool = True,
    penalties: Sequence[float] = PENALTIES,
    refit: bool = True,
    neighbours: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    seed: int = 0,
    device: Any = "cpu",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """
    Probes every layer and returns figures for a results JSON: "layers", a row for each, and "best", the row of the
    layer with the best validation accuracy.

    Args:
        solver: "lbfgs", multinomial logistic regression (paper, sections 2.4 and 4.2), or "knn", a vote of the nearest
            training images, weighted by exp(cosine similarity / temperature).
        layers: those to probe, by default all.
        concatenate: neighbouring layers put side by side (see `concatenated`).
        standardize: give every feature mean 0 and variance 1 over train.
        penalties: weights of half the squared weights beside the mean cross-entropy; one is chosen for each layer by
            validation accuracy, then by validation loss.
        refit: fit on train and validation with the chosen penalty before test is read (paper, section 3.1).
        neighbours, temperature: of kNN; the number is chosen by validation accuracy.
        seed: of ties in the vote of several masks.
        progress: called with the number of layers of each finished group.

    Raises:
        ValueError: an unknown layer or solver, or what the solver refuses.
    """
    layers = range(data.num_layers) if layers is None else layers
    check_layers(layers, concatenate, data.num_layers)
    if solver == "lbfgs":
        options = {"penalties": penalties, "refit": refit}
        fit: Callable[..., list[dict[str, Any]]] = _fit_logistic_group
    elif solver == "knn":
        options = {"neighbours": neighbours, "temperature": temperature}
        fit = _fit_knn_group
    else:
        raise ValueError(
            f"`solver` must be lbfgs or knn, got {solver!r}. Probes by sgd and attentive ones don't read stored "
            "features: see `train_online_probes`."
        )
    rows: list[dict[str, Any]] = []
    for group in _groups(data, list(layers), concatenate):
        rows += fit(data, group, concatenate, standardize, seed, device, **options)
        if progress is not None:
            progress(len(group))
    return {"layers": rows, "best": best_row(rows)}


def check_layers(layers: Sequence[int], concatenate: int, num_layers: int) -> None:
    """Raises ValueError for layers that a model with so many, the embeddings included, does not have."""
    if wrong := [layer for layer in layers if not 0 <= layer < num_layers]:
        raise ValueError(f"`layers` must be from 0 to {num_layers - 1}, got {wrong[0]}.")
    if not 1 <= concatenate <= num_layers:
        raise ValueError(f"`concatenate` must be from 1 to the {num_layers} layers, got {concatenate}.")


def best_row(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row with the best validation accuracy; among equals that with the lower validation loss, then the first."""
    return max(rows, key=lambda row: (row["validation_accuracy"], -row.get("validation_loss", 0.0)))


def accuracy(predictions: "torch.Tensor | np.ndarray", labels: "torch.Tensor | np.ndarray") -> float:
    """Share of predictions that are right."""
    return float((predictions == labels).sum()) / len(labels)


def _groups(data: ProbeData, layers: list[int], concatenate: int) -> list[list[int]]:
    """Layers that are fitted together: as many as memory allows."""
    first = data.features["train"][0]
    size = max(1, GROUP_BYTES // max(1, 4 * len(first) * first.shape[1] * concatenate))
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def _fit_logistic_group(
    data: ProbeData,
    layers: list[int],
    concatenate: int,
    standardize: bool,
    seed: int,
    device: Any,
    penalties: Sequence[float],
    refit: bool,
) -> list[dict[str, Any]]:
    import torch
    import torch.nn.functional as F

    from hf_igpt.evaluation.logistic import fit_logistic

    train, labels = data.stack("train", layers, concatenate, device), data.targets("train", device)
    grid = torch.tensor(penalties, dtype=torch.float64, device=device).expand(len(layers), -1)
    probes = fit_logistic(train, labels, grid, data.num_classes, standardize=standardize)
    held_out, truth = data.stack("validation", layers, concatenate, device), data.targets("validation", device)
    logits = probes.logits(held_out)  # (layers, penalties, images, classes)
    right = (logits.argmax(dim=-1) == truth).double().mean(dim=-1)
    losses = (
        F.cross_entropy(logits.flatten(0, 2), truth.repeat(logits.shape[0] * logits.shape[1]), reduction="none")
        .view(logits.shape[:3])
        .double()
        .mean(dim=-1)
    )
    chosen = [
        max(range(len(penalties)), key=lambda index: (float(right[row, index]), -float(losses[row, index])))
        for row in range(len(layers))
    ]
    rows = [
        {
            "layer": layer,
            "penalty": float(penalties[index]),
            "train_loss": float(probes.train_loss[row, index]),
            "validation_accuracy": float(right[row, index]),
            "validation_loss": float(losses[row, index]),
        }
        for row, (layer, index) in enumerate(zip(layers, chosen, strict=True))
    ]
    best = grid[torch.arange(len(layers)), torch.tensor(chosen)].unsqueeze(1)
    if refit:
        train, labels = torch.cat([train, held_out], dim=1), torch.cat([labels, truth])
        probes, picked = (
            fit_logistic(train, labels, best, data.num_classes, standardize=standardize),
            [0] * len(layers),
        )
    else:
        picked = chosen
    del train

    def predict(mask: int) -> np.ndarray:
        logits = probes.logits(data.stack("test", layers, concatenate, device, mask))
        return np.stack([logits[row, index].argmax(dim=-1).cpu().numpy() for row, index in enumerate(picked)])

    return _with_test(data, rows, predict, seed)


def _fit_knn_group(
    data: ProbeData,
    layers: list[int],
    concatenate: int,
    standardize: bool,
    seed: int,
    device: Any,
    neighbours: Sequence[int],
    temperature: float,
) -> list[dict[str, Any]]:
    from hf_igpt.evaluation.knn import knn_predictions

    labels, truth = data.targets("train", device), data.targets("validation", device)
    train = data.stack("train", layers, concatenate, device)

    def vote(row: int, queries: Any, counts: Sequence[int]) -> Any:
        options = {"ks": tuple(counts), "temperature": temperature, "standardize": standardize}
        return knn_predictions(train[row], labels, queries, data.num_classes, **options)

    rows = []
    for row, queries in enumerate(data.stack("validation", layers, concatenate, device)):
        scores = [accuracy(predictions, truth) for predictions in vote(row, queries, neighbours)]
        best = int(np.argmax(scores))
        rows.append({"layer": layers[row], "neighbours": neighbours[best], "validation_accuracy": scores[best]})

    def predict(mask: int) -> np.ndarray:
        queries = data.stack("test", layers, concatenate, device, mask)
        votes = [vote(row, queries[row], [rows[row]["neighbours"]])[0] for row in range(len(layers))]
        return np.stack([predictions.cpu().numpy() for predictions in votes])

    return _with_test(data, rows, predict, seed)


def add_test_accuracy(
    rows: list[dict[str, Any]],
    predict: Callable[[int], np.ndarray],
    num_masks: int,
    truth: np.ndarray,
    num_classes: int,
    seed: int,
) -> list[dict[str, Any]]:
    """
    Adds test accuracies to the rows; with several masks the mean over them and that of their majority (paper, section
    4.6).

    Args:
        predict: takes the number of a mask and gives classes of shape (rows, images).
    """
    votes = np.stack([predict(mask) for mask in range(num_masks)])  # (masks, rows, images)
    for number, row in enumerate(rows):
        row["test_accuracy"] = float(np.mean([accuracy(vote, truth) for vote in votes[:, number]]))
        if num_masks > 1:
            row["ensemble_masks"] = num_masks
            row["ensemble_test_accuracy"] = accuracy(majority(votes[:, number], num_classes, seed), truth)
    return rows


def _with_test(
    data: ProbeData, rows: list[dict[str, Any]], predict: Callable[[int], np.ndarray], seed: int
) -> list[dict[str, Any]]:
    masks = len(data.test_masks) + 1
    return add_test_accuracy(rows, predict, masks, data.labels["test"], data.num_classes, seed)
