"""Images by name or path, with fixed seeded splits."""

import glob
import hashlib
import json
import logging
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.columns import find_image_column, find_label_column
from hf_igpt.data.splitting import check_fractions, check_not_empty, choose_splits, cut, fold, limit


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")

# Files that may be named themselves, and their builder in `datasets`; tar files are WebDataset's shards.
FILES = {".parquet": "parquet", ".tar": "webdataset"}

# The paper's for CIFAR and STL-10 (section 3.1).
VALIDATION_FRACTION = 0.1


@dataclass
class ImageSource:
    """Images in splits, ready to fit a palette on or to tokenize.

    Attributes:
        name: What `load_images` was asked for.
        splits: "train" and, where they exist, "validation" and "test", as data sets of the `datasets` library.
        image_column: Column with the images.
        label_column: Column with the class, or None.
        label_names: Class names in the order of their numbers, or None.
        revision: Revision of the data set on the Hub that was asked for, or None.
        hub: Name on the Hub and the commit that was read (None for a stream); None for local images.
        notes: What a reader of results must know about the splits, in words.
        image_roots: Folders a row's path may point into; bytes need none.
        asked_for: Arguments of `load_images` that decide which images there are in which split.
    """

    name: str
    splits: dict[str, "Dataset | IterableDataset"]
    image_column: str
    label_column: str | None = None
    label_names: list[str] | None = None
    revision: str | None = None
    hub: dict[str, str | None] | None = None
    notes: tuple[str, ...] = ()
    image_roots: tuple[str, ...] = ()
    asked_for: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> "Dataset | IterableDataset":
        """The split called `name`; ValueError lists those there are."""
        if name not in self.splits:
            raise ValueError(
                f"{self.name} has no split {name!r}, only {', '.join(sorted(self.splits))}. {' '.join(self.notes)}"
            )
        return self.splits[name]

    @property
    def is_cut_off(self) -> bool:
        """Whether its splits may be only the beginning of what there is."""
        return self.asked_for.get("max_images") is not None

    @property
    def fingerprints(self) -> dict[str, str]:
        """Fingerprint of each split: changes when the images do, of a stream only when something else is asked for."""
        asked_for = json.dumps([self.name, self.revision, self.asked_for], sort_keys=True)
        of_stream = hashlib.sha256(asked_for.encode()).hexdigest()[:16]
        return {name: getattr(split, "_fingerprint", of_stream) for name, split in self.splits.items()}

    @property
    def origin(self) -> dict[str, Any]:
        """Where the images are from, for a results JSON, and all that it takes to load them again."""
        return {
            "name": self.name,
            "revision": self.revision,
            "hub": self.hub,
            "notes": list(self.notes),
            "image_column": self.image_column,
            "asked_for": self.asked_for,
        }


def load_images(
    dataset_name: str,
    dataset_config: str | None = None,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    train_split: str = "train",
    validation_split: str | None = None,
    test_split: str | None = None,
    validation_fraction: float | None = None,
    test_fraction: float | None = None,
    fold_validation: bool = False,
    seed: int = 0,
    streaming: bool = False,
    max_images: int | None = None,
    revision: str | None = None,
) -> ImageSource:
    """Loads a data set of images and gives it the splits train, validation and test.

    Where the data set has no validation split, a seeded part of train becomes one: 10 % by default, the paper's share
    for CIFAR and STL-10; it takes 4 % for ImageNet (paper §3.1). The choice depends on `seed` and the row's number, in
    a stream on `seed` and the row's own bytes, so that it is the same whatever workers read the stream.

    Args:
        dataset_name: "digits" (scikit-learn's 1,797 grey images of 8x8), a data set on the Hub, a local folder of
            parquet files, images or WebDataset's tar files, or a parquet or tar file or glob.
        dataset_config: Configuration of the data set.
        image_column: Column with the images; found where only one column holds images.
        label_column: Column with the class; found where only one is a class, and "none" for none.
        train_split: The data set's own name of the split to train on.
        validation_split: Its validation split; found by its usual names unless `test_split` takes it; "none" ignores
            it.
        test_split: Its test split, defaults to "test" where there is one. ImageNet's test images have no public
            labels: there, choose "validation".
        validation_fraction: Share of train that becomes validation where there is none, between 0 and 1, by default
            0.1.
        test_fraction: Share of train that becomes the test split where there is none; by default there is none then.
        fold_validation: Put validation back into train (after tuning, before the test split is read).
        seed: Seed of the splits and of `max_images`.
        streaming: Read rows as they come; nothing is stored.
        max_images: At most this many images a split: a seeded choice, in a stream the first ones.
        revision: Revision on the Hub (commit, branch or tag).

    Raises:
        ValueError: If the data set, a column or a split is missing or ambiguous, or a split would be empty.
    """
    check_fractions(validation_fraction, test_fraction, max_images)
    raw = _load(dataset_name, dataset_config, revision, streaming)
    names = choose_splits(dataset_name, list(raw), train_split, validation_split, test_split)
    splits = {role: raw[name] for role, name in names.items()}
    if splits["train"].features is None:
        raise ValueError(f"The columns of {dataset_name} are unknown before reading it: set `streaming` to False.")
    features = splits["train"].features
    image, label = find_image_column(features, image_column), find_label_column(features, label_column)
    fractions = {"test": test_fraction, "validation": None if fold_validation else validation_fraction}
    splits, notes = _complete(splits, fractions, fold_validation, seed, image)
    if fold_validation:
        splits["train"] = fold(splits["train"], splits.pop("validation", None))
        notes.append("Validation is part of train.")
    for note in notes:
        logger.info("%s: %s", dataset_name, note)
    splits = {role: limit(split, role, max_images, seed) for role, split in splits.items()}
    for role, split in splits.items():
        check_not_empty(dataset_name, role, split)
    return ImageSource(
        name=dataset_name,
        splits=splits,
        image_column=image,
        label_column=label,
        label_names=getattr(features[label], "names", None) if label else None,
        revision=revision,
        hub=_hub_origin(dataset_name, raw[names["train"]]),
        notes=tuple(notes),
        image_roots=_image_roots(dataset_name),
        asked_for={
            "dataset_config": dataset_config,
            "splits": [train_split, validation_split, test_split],
            "fractions": [validation_fraction, test_fraction],
            "fold_validation": fold_validation,
            "seed": seed,
            "max_images": max_images,
            "streaming": streaming,
        },
    )


def load_again(origin: dict[str, Any], dataset_name: str | None = None) -> ImageSource:
    """The images that an `ImageSource.origin` is of, in the same splits.

    Args:
        origin: As stored tokens record it.
        dataset_name: Where the images lie now, if not where the record says.

    Raises:
        ValueError: The record doesn't say how its splits were made, or as `load_images`.
    """
    if "asked_for" not in origin:
        raise ValueError(
            f"The tokens of {origin['name']} don't say how the images were split: an older version made them. "
            "Tokenize the images again."
        )
    asked_for = origin["asked_for"]
    train_split, validation_split, test_split = asked_for["splits"]
    validation_fraction, test_fraction = asked_for["fractions"]
    revision = (origin["hub"] or {}).get("revision") or origin["revision"]
    return load_images(
        dataset_name or origin["name"],
        asked_for["dataset_config"],
        image_column=origin["image_column"],
        label_column="none",
        train_split=train_split,
        validation_split=validation_split,
        test_split=test_split,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        fold_validation=asked_for["fold_validation"],
        seed=asked_for["seed"],
        streaming=asked_for["streaming"],
        max_images=asked_for["max_images"],
        revision=revision if dataset_name is None else None,
    )


def _complete(
    splits: dict[str, Any], fractions: dict[str, float | None], fold_validation: bool, seed: int, image_column: str
) -> tuple[dict[str, Any], list[str]]:
    """Cuts the splits that are missing off train, and says so."""
    notes = []
    for role, fraction in fractions.items():
        if role in splits and fraction is not None:
            raise ValueError(f"`{role}_fraction` {fraction} has no use: there is a {role} split already.")
    if not fold_validation and fractions["validation"] is None:
        fractions = fractions | {"validation": VALIDATION_FRACTION}
    for role, fraction in fractions.items():
        if role not in splits and fraction is not None:
            splits["train"], splits[role] = cut(splits["train"], role, fraction, seed, image_column)
            notes.append(f"The {role} split is {fraction:.0%} of train, chosen with seed {seed}.")
    if "test" not in splits:
        notes.append("There is no test split, so validation is the only held-out data (see `test_fraction`).")
    return splits, notes


def _load(name: str, config: str | None, revision: str | None, streaming: bool) -> dict[str, Any]:
    if name == "digits":
        if streaming or config is not None or revision is not None:
            raise ValueError("`dataset_name` 'digits' takes no `streaming`, `dataset_config` or `revision`.")
        return _digits()
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    arguments: dict[str, Any] = {"name": config, "streaming": streaming}
    path = os.path.abspath(os.path.expanduser(name))
    if ending := _file_ending(name):
        files = sorted(glob.glob(path, recursive=True))
        if not files:
            raise ValueError(f"`dataset_name` {name!r} matches no file.")
        path, arguments["data_files"] = FILES[ending], {"train": files}
    elif not os.path.isdir(path):
        if name.startswith((".", "/", "~")) or os.path.exists(path):
            raise ValueError(f"`dataset_name` {name!r} is neither a folder nor a parquet or tar file.")
        path, arguments["revision"] = name, revision
    if revision is not None and "revision" not in arguments:
        raise ValueError(f"`revision` is for data sets on the Hub, {name!r} is local.")
    try:
        return dict(load_dataset(path, **arguments))
    except (OSError, ValueError, DatasetsError) as error:
        reason = _damaged_file(name) or error
        raise ValueError(f"`dataset_name` {name!r} can't be loaded: {reason}") from error


def _file_ending(name: str) -> str | None:
    return next((ending for ending in FILES if name.endswith(ending)), None)


def _hub_origin(name: str, split: "Dataset | IterableDataset") -> dict[str, str | None] | None:
    """Name and commit of a data set on the Hub: `datasets` keeps what it read in a folder named after the commit."""
    if name == "digits" or _file_ending(name) or os.path.isdir(os.path.expanduser(name)):
        return None
    folders = {Path(file["filename"]).parent.name for file in getattr(split, "cache_files", ())}
    commits = [folder for folder in folders if _COMMIT.fullmatch(folder)]
    return {"name": name, "revision": commits[0] if len(commits) == 1 else None}


def _damaged_file(name: str) -> str | None:
    """The first local parquet file that can't be read, and why: `datasets` doesn't say which one it was."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    path = os.path.expanduser(name)
    pattern = os.path.join(path, "**", "*.parquet") if os.path.isdir(path) else path
    for file in sorted(glob.glob(pattern, recursive=True)):
        try:
            for _ in pq.ParquetFile(file).iter_batches():
                pass
        except (OSError, ArrowException) as error:
            return f"{file} is damaged: {error}"
    return None


def _digits() -> dict[str, "Dataset"]:
    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    rows = {"image": [PILImage.fromarray(image) for image in pixels], "label": digits.target.tolist()}
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    whole = Dataset.from_dict(rows, features=features)
    # The seed is fixed: the test images are the same whatever seed a run has.
    train, test = cut(whole, "test", 0.2, 0, "image")
    return {"train": train, "test": test}


def _image_roots(name: str) -> tuple[str, ...]:
    """Where paths of a folder of images point: the folder itself, or what `datasets` downloaded and unpacked."""
    from datasets import config
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = os.path.abspath(os.path.expanduser(name))
    own = (folder,) if os.path.isdir(folder) else ()
    return (*own, os.path.abspath(config.DOWNLOADED_DATASETS_PATH), os.path.abspath(HF_HUB_CACHE))
