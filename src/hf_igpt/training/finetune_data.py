"""The classes of a fine-tuning: checked labels, a subset of train, and its examples."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.augmentation import RESIZED_CROP
from hf_igpt.training.jobs import crop_dataset, token_dataset


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.training.finetune_arguments import FinetuneArguments
    from hf_igpt.training.finetune_trainer import LabelledTokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledData:
    """
    What a classifier is trained and measured on.

    Args:
        names: of the classes, in the order of their numbers.
        splits: "train", and where they exist "validation" and "test".
        rows: rows of the images that train was cut down to, None for all of them.
        source: where the images are from, as in `tokens_info`.
    """

    names: list[str]
    splits: "dict[str, LabelledTokens]"
    rows: np.ndarray | None
    source: dict[str, Any] | None


def labelled_data(settings: "FinetuneArguments", tokens: "DatasetDict") -> LabelledData:
    """
    Checks the classes of every split and cuts train down to the subset that is asked for.

    Raises:
        ValueError: no validation split to stop by, labels that `class_names` and `labels_of` refuse, or a subset that
            can't be had.
    """
    from hf_igpt.data.classes import class_names, labels_of
    from hf_igpt.data.token_store import tokens_info
    from hf_igpt.training.finetune_trainer import LabelledTokens

    if not settings.fold_validation and "validation" not in tokens:
        raise ValueError(
            "There is no validation split to stop by. Give `dataset_name` with a `validation_fraction`, or "
            "`--fold_validation` to train for a fixed number of epochs."
        )
    names = class_names(tokens)
    used = [split for split in ("train", "validation", "test") if split in tokens]
    splits = {split: LabelledTokens(tokens[split], labels_of(tokens[split], len(names), split)) for split in used}
    rows = _train_rows(settings, splits["train"].labels, names)
    if rows is not None:
        train = splits["train"]
        splits["train"] = LabelledTokens(train.tokens.select(rows), train.labels[rows])
    return LabelledData(names, splits, rows, tokens_info(tokens)["source"])


def _train_rows(settings: "FinetuneArguments", labels: np.ndarray, names: list[str]) -> np.ndarray | None:
    """The rows of the subset that is asked for, None for all."""
    from hf_igpt.data.classes import class_subset
    from hf_igpt.data.randomness import random_permutation

    seed = settings.subset_seed or 0
    if settings.labels_per_class is not None:
        return class_subset(labels, settings.labels_per_class, seed, len(names))
    count = settings.max_train_images
    if count is not None and count > len(labels):
        raise ValueError(f"`max_train_images` is {count}, but there are {len(labels)} training images. Ask for fewer.")
    rows = None if count is None else np.sort(random_permutation("train subset", seed, 0, len(labels))[:count])
    present = np.bincount(labels if rows is None else labels[rows], minlength=len(names))
    absent = [name for name, number in zip(names, present, strict=True) if not number]
    if absent and rows is not None:
        raise ValueError(
            f"Class {absent[0]!r} has no image among the {count} of `max_train_images`. Ask for more, for another "
            "`subset_seed`, or for `labels_per_class`."
        )
    if absent:
        logger.warning("%d of %d classes have no training image: %s.", len(absent), len(names), ", ".join(absent[:5]))
    return rows


def train_examples(settings: "FinetuneArguments", processor: "IGPTImageProcessor", data: LabelledData) -> Any:
    """The training images as examples, augmented as the options say."""
    from hf_igpt.data.options import load_source

    if settings.augmentation != RESIZED_CROP:
        return token_dataset(
            data.splits["train"].tokens,
            processor,
            augment=settings.augmentation,
            seed=settings.seed,
            padding=settings.augmentation_padding,
        )
    source = load_source(settings)
    images = source.split("train")
    images = images if data.rows is None else images.select(data.rows)
    return crop_dataset(source, images, processor, settings.seed, label_column=source.label_column)
