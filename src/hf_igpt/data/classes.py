"""Classes of tokenized images: their names, checked labels, and subsets of so many images of each."""

from typing import TYPE_CHECKING

import numpy as np

from hf_igpt.data.randomness import random_words


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

LABEL = "label"


def class_names(tokens: "DatasetDict") -> list[str]:
    """
    Names of the classes, in the order of their numbers: of the label column's type where it has names, otherwise the
    numbers from 0 to the largest in train.

    Raises:
        ValueError: a split without labels, or fewer than two classes.
    """
    for split, rows in tokens.items():
        if LABEL not in rows.column_names:
            raise ValueError(
                f"The split {split!r} has no labels, only {', '.join(rows.column_names)}. Tokenize images that have "
                "classes, and name their column with `--label_column`."
            )
    feature = tokens["train"].features[LABEL]
    names = getattr(feature, "names", None)
    if names is None:
        labels = _whole_numbers(tokens["train"], "train")
        names = [str(number) for number in range(int(labels.max(initial=-1)) + 1)]
    if len(names) < 2:
        raise ValueError(f"Classes must be at least two, got {len(names)} in column {LABEL!r} of train.")
    return list(names)


def labels_of(tokens: "Dataset", num_classes: int, split: str) -> np.ndarray:
    """
    The labels of a split, int64 of shape (images,), each in [0, num_classes).

    Raises:
        ValueError: a label that is missing, not whole, negative, or `num_classes` and above; names split and row.
    """
    labels = _whole_numbers(tokens, split)
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if outside.size:
        row = int(outside[0])
        raise ValueError(
            f"The label in row {row} of split {split!r} must be from 0 to {num_classes - 1}, got {labels[row]}. Mend "
            "or leave out that image, then tokenize again."
        )
    return labels


def class_subset(labels: np.ndarray, per_class: int, seed: int, num_classes: int) -> np.ndarray:
    """
    Rows of a seeded subset with `per_class` images of every class, int64 in ascending order. With one seed a smaller
    subset is part of a larger one.

    Raises:
        ValueError: a class with fewer images.
    """
    order = np.argsort(random_words("class subset", seed, 0, np.arange(len(labels)), 1)[:, 0], kind="stable")
    rows = []
    for number in range(num_classes):
        members = order[labels[order] == number]
        if len(members) < per_class:
            raise ValueError(
                f"A subset of {per_class} images of every class was asked for, but class {number} has {len(members)}. "
                "Ask for fewer."
            )
        rows.append(members[:per_class])
    return np.sort(np.concatenate(rows))


def _whole_numbers(tokens: "Dataset", split: str) -> np.ndarray:
    column = tokens.with_format("arrow")[:].column(LABEL).combine_chunks()
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise ValueError(f"The label in row {row} of split {split!r} is missing. Leave that image out.")
    try:
        values = np.asarray(column.to_numpy(zero_copy_only=False), dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"Labels of split {split!r} must be whole numbers, got {column.type}. Number the classes from 0."
        ) from None
    fractions = np.flatnonzero(values != np.floor(values))
    if fractions.size:
        row = int(fractions[0])
        raise ValueError(f"The label in row {row} of split {split!r} must be a whole number, got {values[row]}.")
    return values.astype(np.int64)
