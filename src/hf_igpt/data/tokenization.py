"""Images to stored tokens: `datasets` map functions.

A tokenized split has the column `input_ids`, a fixed-size list of small integers (one byte a token for up to 256
values, two above), and `label` where the images have classes.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.code_version import code_version
from hf_igpt.data.columns import damage_message, damaged_row, find_image_column, find_label_column, read_image
from hf_igpt.data.sources import ImageSource
from hf_igpt.data.token_store import token_record, write_record


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict


logger = logging.getLogger(__name__)


def tokenize(
    images: "ImageSource | DatasetDict | Dataset | IterableDataset",
    processor: Any,
    *,
    image_column: str | None = None,
    label_column: str | None = None,
    batch_size: int = 256,
    num_proc: int | None = None,
    skip_damaged: bool = False,
    image_roots: tuple[str, ...] = (),
    stream_folder: str | os.PathLike | None = None,
) -> "DatasetDict | IterableDatasetDict | Dataset | IterableDataset":
    """Turns images into tokens, cached, in several processes or as a stream.

    A second run with equal images, palette, processor settings, package version and tokenizing code reads the first
    one's cache.

    Args:
        images: A source, or one data set or a dictionary of them.
        processor: The image processor whose palette and size make the tokens.
        image_column: Column with the images; a source knows its own, otherwise found as in `load_images`.
        label_column: Column with the class, or "none"; as `image_column`.
        batch_size: Images a call of the processor.
        num_proc: Processes; None uses this one. A stream uses its reader's workers instead.
        skip_damaged: Leave out images that can't be read. They are counted and listed under "skipped" in
            `tokens_info`; a stream that stays one, whose end is unknown, logs a warning for each.
        image_roots: Folders that a row's path may point into; a source knows its own. Bytes need none.
        stream_folder: Reads streams to their end and stores their tokens in this folder, images never.

    Returns:
        What went in, as tokens: a data set, or a dictionary for a source or a dictionary. With `stream_folder` a
        stored one in any case, which lasts as long as that folder.

    Raises:
        ValueError: If a split is empty, a column is missing, or an image is damaged: names split, row and file. Rows
            count from 0 in the split as given.
    """
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    origin = None
    if isinstance(images, ImageSource):
        origin = images.origin
        image_column = image_column or images.image_column
        label_column = label_column or images.label_column or "none"
        image_roots = (*images.image_roots, *image_roots)
        images = images.splits
    settings = {
        "processor": processor,
        "image_column": image_column,
        "label_column": label_column,
        "batch_size": batch_size,
        "num_proc": num_proc,
        "skip_damaged": skip_damaged,
        "image_roots": image_roots,
        "stream_folder": stream_folder,
        "origin": origin,
    }
    if not isinstance(images, dict):
        return _tokenize_split(images, str(getattr(images, "split", None) or "train"), **settings)
    tokens = {name: _tokenize_split(split, name, **settings) for name, split in images.items()}
    stored = all(isinstance(split, Dataset) for split in tokens.values())
    return DatasetDict(tokens) if stored else IterableDatasetDict(tokens)


def _tokenize_split(images: Any, split: str, processor: Any, **settings: Any) -> Any:
    from datasets import Dataset, Image

    if images.features is None:
        raise ValueError(f"The columns of the split {split!r} are unknown; load it with `streaming=False`.")
    image_column = find_image_column(images.features, settings["image_column"])
    label_column = find_label_column(images.features, settings["label_column"])
    record = token_record(processor)
    whole_record = record | {"source": settings["origin"]}
    stored = isinstance(images, Dataset)
    if stored and len(images) == 0:
        raise ValueError(f"The split {split!r} is empty: there is nothing to tokenize.")
    if isinstance(images.features[image_column], Image):
        images = images.cast_column(image_column, Image(decode=False))
    function = partial(
        _tokenize_batch,
        processor=processor,
        split=split,
        image_column=image_column,
        label_column=label_column,
        skip_damaged=settings["skip_damaged"],
        image_roots=settings["image_roots"],
        keep_rows=stored or settings["stream_folder"] is not None,
    )
    features = _features(record, images.features, label_column, with_damage=function.keywords["keep_rows"])
    arguments = {"batched": True, "with_indices": True, "batch_size": settings["batch_size"], "features": features}
    if not stored and settings["stream_folder"] is not None:
        file = Path(settings["stream_folder"]) / f"{split}.arrow"
        return _finish(_store_stream(images, function, features, settings["batch_size"], file), whole_record, split)
    if not stored:
        tokens = images.map(function, remove_columns=list(images.features), **arguments)
        write_record(tokens, whole_record, [])
        return tokens
    fingerprint = _fingerprint(images, record, image_column, label_column, settings["skip_damaged"], split)
    tokens = images.map(
        function,
        remove_columns=images.column_names,
        num_proc=settings["num_proc"],
        new_fingerprint=fingerprint,
        cache_file_name=_cache_file(fingerprint),
        desc=f"Tokenizing {split}",
        **arguments,
    )
    return _finish(tokens, whole_record, split)


def _finish(tokens: "Dataset", record: dict[str, Any], split: str) -> "Dataset":
    tokens, skipped = _drop_damaged(tokens, split)
    write_record(tokens, record, skipped)
    return tokens


def _store_stream(
    images: "IterableDataset",
    function: Callable[..., dict[str, Any]],
    features: "Features",
    batch_size: int,
    file: Path,
) -> "Dataset":
    """Writes a stream's tokens into an Arrow file, batch by batch. Not cached: a stream tells nothing of changes."""
    from datasets import Dataset
    from datasets.arrow_writer import ArrowWriter
    from tqdm.auto import tqdm

    file.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    with (
        ArrowWriter(path=str(file), features=features) as writer,
        tqdm(desc=f"Tokenizing {file.stem}", unit=" images") as bar,
    ):
        for batch in images.iter(batch_size=batch_size):
            size = len(next(iter(batch.values())))
            writer.write_batch(function(batch, list(range(rows, rows + size))))
            rows += size
            bar.update(size)
        writer.finalize()
    if rows == 0:
        raise ValueError(f"The split {file.stem!r} is empty: there is nothing to tokenize.")
    return Dataset.from_file(str(file))


def _tokenize_batch(
    batch: dict[str, list],
    rows: list[int],
    *,
    processor: Any,
    split: str,
    image_column: str,
    label_column: str | None,
    skip_damaged: bool,
    image_roots: tuple[str, ...],
    keep_rows: bool,
) -> dict[str, Any]:
    """Tokens of one batch. With `keep_rows`, a damaged row stays as zeros with its damage in JSON beside it."""
    pixels, damage = [], []
    for row, value in zip(rows, batch[image_column], strict=True):
        try:
            pixels.append(processor.pixels([read_image(value, image_roots)])[0])
            damage.append(None)
        except (ValueError, OSError) as error:
            where = damaged_row(split, row, value, error)
            if not skip_damaged:
                raise ValueError(damage_message(where)) from error
            damage.append(json.dumps(where))
    good = np.array([text is None for text in damage], dtype=bool)
    values = np.zeros((len(rows), _num_tokens(processor)), dtype=_token_dtype(processor.num_colors))
    if good.any():
        values[good] = processor.quantize(np.stack(pixels))
    if keep_rows:
        result = {"input_ids": values, "damage": damage}
    else:
        result = {"input_ids": values[good]}
        for text in filter(None, damage):
            logger.warning("Skipped: %s", damage_message(json.loads(text)))
    if label_column is not None:
        labels = batch[label_column]
        result["label"] = labels if keep_rows else [labels[row] for row in np.flatnonzero(good)]
    return result


def _drop_damaged(tokens: "Dataset", split: str) -> tuple["Dataset", list[dict[str, Any]]]:
    column = tokens.data.column("damage")
    if column.null_count == len(column):
        return tokens.remove_columns("damage"), []
    texts = column.to_pylist()
    skipped = [json.loads(text) for text in texts if text is not None]
    for where in skipped:
        logger.warning("Skipped: %s", damage_message(where))
    if len(skipped) == len(texts):
        raise ValueError(f"No image of the split {split!r} can be read. {damage_message(skipped[0])}")
    kept = tokens.select([row for row, text in enumerate(texts) if text is None])
    return kept.remove_columns("damage"), skipped


def _features(record: dict[str, Any], images: "Features", label_column: str | None, with_damage: bool) -> "Features":
    from datasets import Features, Sequence, Value

    length = record["grid"][0] * record["grid"][1] * record["num_channels"]
    dtype = np.dtype(_token_dtype(record["num_values"])).name
    features = {"input_ids": Sequence(Value(dtype), length=length)}
    if label_column is not None:
        features["label"] = images[label_column]
    if with_damage:
        features["damage"] = Value("string")
    return Features(features)


def _fingerprint(images: "Dataset", record: dict[str, Any], *settings: Any) -> str:
    """Key of the cache. `datasets` would hash our functions by name and bring back old tokens after an upgrade."""
    parts = [images._fingerprint, record, settings, code_version()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _cache_file(fingerprint: str) -> str | None:
    """Also for data held in memory, which `datasets` caches for one session only."""
    from datasets import config, is_caching_enabled

    if not is_caching_enabled():
        return None
    folder = Path(config.HF_DATASETS_CACHE) / "hf_igpt_tokens"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / f"{fingerprint}.arrow")


def _token_dtype(num_values: int) -> type[np.unsignedinteger]:
    return np.uint8 if num_values <= 256 else np.uint16


def _num_tokens(processor: Any) -> int:
    height, width = processor.grid
    return height * width
