"""Images to stored tokens: `datasets` map functions.

A tokenized split has the column `input_ids`, a fixed-size list of small integers (one byte a token for up to 256
values, two above), and `label` where the images have classes.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.data.code_version import code_version
from hf_igpt.data.columns import damage_message, damaged_row, find_image_column, find_label_column, read_image
from hf_igpt.data.sources import ImageSource
from hf_igpt.data.token_parts import tokens_in_parts
from hf_igpt.data.token_store import token_record, write_record
from hf_igpt.processes import forks_die_with_this_process
from hf_igpt.storage import work_lock


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
    in_parts: bool = False,
) -> "DatasetDict | IterableDatasetDict | Dataset | IterableDataset":
    """Turns images into tokens, cached, in several processes or as a stream.

    A second run with equal images, palette, processor settings, package version and tokenizing code reads the first
    one's cache.

    Args:
        images: A source, or one data set or a dictionary of them.
        processor: The image processor whose size and palette (or RGB levels, or VQ-VAE) make the tokens.
        image_column: Column with the images; a source knows its own, otherwise found as in `load_images`.
        label_column: Column with the class, or "none"; as `image_column`.
        batch_size: Images a call of the processor.
        num_proc: Processes; None uses this one. A stream uses its reader's workers instead. Not for a VQ-VAE's codes.
        skip_damaged: Leave out images that can't be read. They are counted and listed under "skipped" in
            `tokens_info`; a stream that stays one, whose end is unknown, logs a warning for each.
        image_roots: Folders that a row's path may point into; a source knows its own. Bytes need none.
        stream_folder: Reads streams to their end and stores their tokens in this folder, images never.
        in_parts: Called by several processes together, with a `stream_folder` that all of them see: each tokenizes a
            part of every split into it, as `part_of` cuts them, and gets the whole.

    Returns:
        What went in, as tokens: a data set, or a dictionary for a source or a dictionary. With `stream_folder` a
        stored one in any case, which lasts as long as that folder.

    Raises:
        ValueError: If `num_proc` is given for codes, a split is empty, a column is missing, or an image is damaged:
            names split, row and file. Rows
            count from 0 in the split as given, in a process's part of a stream from that part's beginning.
    """
    from datasets import Dataset, DatasetDict, IterableDatasetDict

    if num_proc is not None and processor.vqvae is not None:
        # Forks of a process that has computed on several threads can hang; and they would share no GPU.
        raise ValueError("`num_proc` must be left out for codes: one process makes them with all threads or the GPU.")
    origin, is_cut_off = None, False
    if isinstance(images, ImageSource):
        origin = images.origin
        is_cut_off = images.is_cut_off
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
        "in_parts": in_parts,
        "is_cut_off": is_cut_off,
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
    keeps_rows = stored or settings["stream_folder"] is not None
    features = _features(record, images.features, label_column, with_damage=keeps_rows)
    job = _Job(
        partial(
            _tokenize_batch,
            processor=processor,
            image_column=image_column,
            label_column=label_column,
            skip_damaged=settings["skip_damaged"],
            image_roots=settings["image_roots"],
            keep_rows=keeps_rows,
        ),
        features,
        settings["batch_size"],
        settings["num_proc"],
    )
    if not keeps_rows:
        tokens = images.map(partial(job.function, split=split), **job.map_arguments(images))
        write_record(tokens, whole_record, [])
        return tokens
    fingerprint = None
    if stored:
        fingerprint = _fingerprint(images, record, image_column, label_column, settings["skip_damaged"], split)
    if settings["in_parts"]:
        folder = Path(settings["stream_folder"])

        def store(part: Any, name: str, first_row: int, file: str) -> "Dataset":
            return job.store(part, name, fingerprint, folder / f"{fingerprint or 'stream'}-{file}", first_row)

        tokens = tokens_in_parts(images, split, settings["is_cut_off"], fingerprint, store)
    elif stored:
        with _cache_file(fingerprint) as file:
            tokens = job.store(images, split, fingerprint, file)
    else:
        tokens = job.store(images, split, None, Path(settings["stream_folder"]) / f"{split}.arrow")
        if len(tokens) == 0:
            raise ValueError(f"The split {split!r} is empty: there is nothing to tokenize.")
    tokens, skipped = _drop_damaged(tokens, split)
    write_record(tokens, whole_record, skipped)
    return tokens


@dataclass(frozen=True)
class _Job:
    """How the images of a split become tokens."""

    function: Callable[..., dict[str, Any]]
    features: "Features"
    batch_size: int
    num_proc: int | None

    def map_arguments(self, images: "Dataset | IterableDataset") -> dict[str, Any]:
        return {
            "remove_columns": list(images.features),
            "batched": True,
            "with_indices": True,
            "batch_size": self.batch_size,
            "features": self.features,
        }

    def store(
        self,
        images: "Dataset | IterableDataset",
        name: str,
        fingerprint: str | None,
        file: Path | None,
        first_row: int = 0,
    ) -> "Dataset":
        """Tokens in a file; of a data set not made again where the file has them."""
        from datasets import Dataset

        function = partial(self.function, split=name, first_row=first_row)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(images, Dataset):
            return self._store_stream(images, function, name, file)
        with forks_die_with_this_process():
            return images.map(
                function,
                num_proc=self.num_proc,
                new_fingerprint=fingerprint,
                cache_file_name=None if file is None else str(file),
                desc=f"Tokenizing {name}",
                **self.map_arguments(images),
            )

    def _store_stream(
        self, images: "IterableDataset", function: Callable[..., dict[str, Any]], name: str, file: Path
    ) -> "Dataset":
        """Batch by batch. Not cached: a stream tells nothing of changes."""
        from datasets import Dataset
        from datasets.arrow_writer import ArrowWriter
        from tqdm.auto import tqdm

        rows = 0
        with (
            ArrowWriter(path=str(file), features=self.features) as writer,
            tqdm(desc=f"Tokenizing {name}", unit=" images") as bar,
        ):
            for batch in images.iter(batch_size=self.batch_size):
                size = len(next(iter(batch.values())))
                writer.write_batch(function(batch, list(range(rows, rows + size))))
                rows += size
                bar.update(size)
            writer.finalize()
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
    first_row: int = 0,
) -> dict[str, Any]:
    """Tokens of one batch. With `keep_rows`, a damaged row stays as zeros with its damage in JSON beside it."""
    pixels, damage = [], []
    for row, value in zip(rows, batch[image_column], strict=True):
        try:
            pixels.append(processor.pixels([read_image(value, image_roots)])[0])
            damage.append(None)
        except (ValueError, OSError) as error:
            where = damaged_row(split, first_row + row, value, error)
            if not skip_damaged:
                raise ValueError(damage_message(where)) from error
            damage.append(json.dumps(where))
    good = np.array([text is None for text in damage], dtype=bool)
    values = np.zeros((len(rows), processor.num_tokens), dtype=_token_dtype(processor.num_values))
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
    # A process counts the rows of its part of a stream from that part's beginning.
    damage = [(row, text) for row, text in enumerate(texts) if text is not None]
    skipped = [json.loads(text) | {"split": split, "row": row} for row, text in damage]
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


@contextlib.contextmanager
def _cache_file(fingerprint: str) -> Iterator[Path | None]:
    """
    Also for data held in memory, which `datasets` caches for one session only. In a folder of its own, so that what
    killed runs have left of it is known, and removed.
    """
    from datasets import config, is_caching_enabled

    if not is_caching_enabled():
        yield None
        return
    folder = Path(config.HF_DATASETS_CACHE) / "hf_igpt_tokens" / fingerprint
    with work_lock(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob("tmp*"):
            left.unlink()
        yield folder / "tokens.arrow"


def _token_dtype(num_values: int) -> type[np.unsignedinteger]:
    return np.uint8 if num_values <= 256 else np.uint16
