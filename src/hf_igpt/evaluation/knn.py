"""Weighted nearest neighbours of frozen features, as in DINO (Caron et al., 2021, section 3.1 and its eval_knn.py)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from torch import LongTensor, Tensor

# Whole numbers add up to the same sum in any order, which float sums on a GPU do not.
_WEIGHT_STEPS = 1 << 40


def knn_predictions(
    train: "Tensor",
    labels: "LongTensor",
    queries: "Tensor",
    num_classes: int,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    standardize: bool = True,
    batch_size: int = 256,
) -> "LongTensor":
    """
    The class that the nearest training images vote for, with weights exp(cosine similarity / temperature).

    Of equally near images those with the lower row come first, of classes with equally many votes the lower one wins.
    Memory grows with `batch_size` times the number of training images.

    Args:
        train: features of shape (images, width); computed in float32 on their device.
        labels: of shape (images,), in [0, num_classes).
        queries: features of shape (queries, width).
        ks: numbers of neighbours.
        standardize: subtract the training mean and divide by the training standard deviation, feature by feature.

    Returns:
        int64 of shape (len(ks), queries).

    Raises:
        ValueError: shapes that do not fit, labels outside the classes, features that are not finite, a temperature
            that is not above 0, or more neighbours than training images (a smaller vote under the same name would
            be misread).
    """
    import torch

    _check(train, labels, queries, num_classes, ks, temperature, batch_size)
    train, queries = _directions(train.float(), queries.float(), standardize)
    predictions = torch.empty(len(ks), len(queries), dtype=torch.int64, device=train.device)
    for start in range(0, len(queries), batch_size):
        batch = slice(start, start + batch_size)
        similarity, rows = _nearest(queries[batch] @ train.T, max(ks))
        # The nearest image weighs 1: at a low temperature exp(1 / T) overflows.
        weights = ((similarity - similarity[:, :1]).double() / temperature).exp()
        steps = (weights * _WEIGHT_STEPS).round().long()
        for index, k in enumerate(ks):
            votes = torch.zeros(len(steps), num_classes, dtype=torch.int64, device=train.device)
            votes.scatter_add_(1, labels.to(train.device)[rows[:, :k]], steps[:, :k])
            predictions[index, batch] = votes.argmax(dim=1)
    return predictions


def nearest_rows(
    train: "Tensor", queries: "Tensor", count: int, standardize: bool = True
) -> tuple["Tensor", "Tensor"]:
    """
    The nearest training images of each query by cosine similarity, nearest first; of equally near ones the lower rows.

    Args:
        train, queries, standardize: as for `knn_predictions`.
        count: how many, at most the number of training images.

    Returns:
        Similarities and rows, both of shape (queries, count).
    """
    train, queries = _directions(train.float(), queries.float(), standardize)
    return _nearest(queries @ train.T, count)


def _directions(train: "Tensor", queries: "Tensor", standardize: bool) -> tuple["Tensor", "Tensor"]:
    """Features of length 1."""
    import torch
    from torch.nn.functional import normalize

    if standardize:
        # Mean-pooled features share a large common mean, next to which all cosines are close to 1.
        variance, mean = torch.var_mean(train, dim=0, correction=0)
        scale = torch.where(variance > 0, variance, 1).sqrt()
        train, queries = (train - mean) / scale, (queries - mean) / scale
    return normalize(train, dim=1), normalize(queries, dim=1)


def _nearest(similarity: "Tensor", k: int) -> tuple["Tensor", "Tensor"]:
    """The k highest similarities of each query, in falling order, and their rows; of equal ones the lower rows."""
    import torch

    # topk picks any of equal values. Here the row stands in the lower half of a whole number, so that none are equal:
    # bits of a float in the upper half sort as the float does once those of negative ones are flipped.
    bits = (similarity + 0.0).view(torch.int32)
    ordered = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()
    keys = (ordered << 32) - torch.arange(similarity.shape[1], device=similarity.device)
    rows = keys.topk(k, dim=1).indices
    return similarity.gather(1, rows), rows


def _check(train, labels, queries, num_classes, ks, temperature, batch_size) -> None:
    if train.ndim != 2 or queries.ndim != 2 or train.shape[1] != queries.shape[1] or len(labels) != len(train):
        raise ValueError(
            "`train` (images, width), `queries` (queries, width) and `labels` (images,) must fit, got "
            f"{tuple(train.shape)}, {tuple(queries.shape)} and {tuple(labels.shape)}."
        )
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise ValueError(
            f"Numbers of neighbours must be between 1 and the {len(train)} training images, got {list(ks)}. Leave out "
            "those that are too large."
        )
    if not temperature > 0 or batch_size < 1:
        raise ValueError(
            f"`temperature` must be above 0 and `batch_size` at least 1, got {temperature} and {batch_size}."
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(
            f"`labels` must lie in [0, {num_classes - 1}], got {labels.min().item()} to {labels.max().item()}."
        )
    for name, features in (("train", train), ("queries", queries)):
        finite = features.isfinite().all(dim=1)
        if not finite.all():
            raise ValueError(f"`{name}` must be finite, row {int((~finite).nonzero()[0])} is not.")
