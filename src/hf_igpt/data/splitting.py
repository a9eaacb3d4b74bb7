"""Splits of a data set: which is which, and seeded parts of one."""

from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.columns import row_key
from hf_igpt.data.randomness import random_permutation, random_words


if TYPE_CHECKING:
    from datasets import IterableDataset


VALIDATION_NAMES = ("validation", "valid", "val", "dev")


def choose_splits(name: str, found: list[str], train: str, validation: str | None, test: str | None) -> dict[str, str]:
    """The data set's own names by role, of the splits it has: "train", "validation", "test"."""
    chosen = {"train": train}
    if test is not None or "test" in found:
        chosen["test"] = test or "test"
    if validation is None:
        usual = [split for split in VALIDATION_NAMES if split in found and split not in chosen.values()]
        validation = usual[0] if usual else "none"
    if validation != "none":
        chosen["validation"] = validation
    for role, split in chosen.items():
        if split not in found:
            raise ValueError(f"`{role}_split` {split!r} is not in {name}, which has {', '.join(sorted(found))}.")
    if len(set(chosen.values())) < len(chosen):
        raise ValueError(f"One split of {name} can't have two roles: {chosen}.")
    return chosen


def cut(split: Any, role: str, fraction: float, seed: int, image_column: str) -> tuple[Any, Any]:
    """(the rest, the part): cuts a seeded share off a split.

    The choice depends on `seed` and the row's number, in a stream on `seed` and the row's own bytes.

    Raises:
        ValueError: If one of the two would be empty; of a stream this can't be known.
    """
    from datasets import Dataset

    if not isinstance(split, Dataset):
        return tuple(_stream_part(split, role, fraction, seed, image_column, wanted) for wanted in (False, True))
    size = round(len(split) * fraction)
    if not 0 < size < len(split):
        raise ValueError(
            f"`{role}_fraction` {fraction} of {len(split)} images leaves "
            f"{'nothing to train on' if size else f'no image for {role}'}; choose another fraction or more images."
        )
    order = random_permutation(role, seed, 0, len(split))
    return split.select(np.sort(order[size:])), split.select(np.sort(order[:size]))


def _stream_part(
    stream: "IterableDataset", role: str, fraction: float, seed: int, image_column: str, wanted: bool
) -> "IterableDataset":
    settings = {"role": role, "fraction": fraction, "seed": seed, "image_column": image_column, "wanted": wanted}
    # In the arrow format rows are read without decoding their images. Not by `filter`: the features of what it gives
    # name its mask as a column, on which a second one stumbles.
    rows = stream.with_format("arrow")
    return rows.map(_part, batched=True, fn_kwargs=settings, features=stream.features).with_format(None)


def _part(table: Any, role: str, fraction: float, seed: int, image_column: str, wanted: bool) -> Any:
    keys = [row_key(value) for value in table[image_column].to_pylist()]
    words = random_words(role, seed, 0, np.array(keys), 1)[:, 0]
    return table.filter((words < np.uint64(fraction * 2**64)) == wanted)


def fold(train: Any, validation: Any | None) -> Any:
    """Train with validation at its end."""
    from datasets import concatenate_datasets

    return train if validation is None else concatenate_datasets([train, validation])


def limit(split: Any, role: str, max_images: int | None, seed: int) -> Any:
    """At most `max_images` of a split: a seeded choice, in a stream the first ones."""
    from datasets import Dataset

    if max_images is None:
        return split
    if not isinstance(split, Dataset):
        return split.take(max_images)
    order = random_permutation(f"limit {role}", seed, 0, len(split))
    return split.select(np.sort(order[:max_images]))


def check_fractions(validation: float | None, test: float | None, max_images: int | None) -> None:
    """Raises ValueError for sizes that no data set could satisfy."""
    if validation is not None and not 0 < validation < 1:
        raise ValueError(
            f"`validation_fraction` must lie between 0 and 1, got {validation}; "
            "to train on all images set `fold_validation`."
        )
    if test is not None and not 0 < test < 1:
        raise ValueError(f"`test_fraction` must lie between 0 and 1, got {test}.")
    if max_images is not None and max_images < 1:
        raise ValueError(f"`max_images` must be at least 1, got {max_images}.")


def check_not_empty(name: str, role: str, split: Any) -> None:
    """Raises ValueError if a split has no image; of a stream, reads one."""
    from datasets import Dataset

    if isinstance(split, Dataset):
        empty = len(split) == 0
    else:
        # In the arrow format no image is decoded, so no address in a row is fetched.
        empty = next(iter(split.with_format("arrow").take(1)), None) is None
    if empty:
        raise ValueError(f"The split {role!r} of {name} is empty.")
