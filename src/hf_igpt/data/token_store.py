"""Stored tokens: the record that says what they mean, checks against it, and folders on disk.

The record is JSON in a split's `info.description`, where it survives `save_to_disk` and every map, select and format.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.token_kinds_igpt import PALETTE


if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, IterableDataset


RECORD_KEY = "hf_igpt_tokens"
# What says that tokens mean the same.
MEANING = ("token_kind", "token_hash", "grid", "num_channels", "num_values")


def token_record(processor: Any) -> dict[str, Any]:
    """What the tokens of a processor mean, as `tokens_info` describes, without "source" and "skipped"."""
    return {
        "token_kind": processor.token_kind,
        "token_hash": processor.token_hash,
        "grid": [int(side) for side in processor.grid],
        "num_channels": processor.num_channels,
        "num_values": int(processor.num_values),
        "processor": _processor_settings(processor),
        "version": _package_version(),
    }


def token_meaning(processor: Any) -> dict[str, Any]:
    """What decides whether tokens mean the same: kind, hash, grid, tokens a cell, number of values."""
    record = token_record(processor)
    return {key: record[key] for key in MEANING}


def token_hash_in(results: dict[str, Any]) -> str:
    """The token hash in a results JSON of training or scoring, those from before there were kinds included."""
    return results["tokens"]["token_hash"] if "tokens" in results else results["palette_hash"]


def write_record(tokens: "Dataset | IterableDataset", record: dict[str, Any], skipped: list[dict[str, Any]]) -> None:
    """Writes the record of a split into it."""
    tokens.info.description = json.dumps({RECORD_KEY: {**record, "skipped": skipped}})


def tokens_info(tokens: "Dataset | DatasetDict | IterableDataset") -> dict[str, Any]:
    """The record of a tokenized data set.

    Returns:
        Dictionary with "token_kind", "token_hash", "grid" [height, width], "num_channels" (tokens a cell),
        "num_values", "processor" (its settings), "version" (of this package), "source" (where the images are from, see
        `ImageSource.origin`; None where nobody said) and "skipped" (a list of {"split", "row", "file", "reason"}).
        For a dictionary of splits, "skipped" covers all of them.

    Raises:
        ValueError: If there is no such record, or splits have different ones.
    """
    if not isinstance(tokens, dict):
        return _read_record(tokens.info.description)
    records = [_read_record(split.info.description) for split in tokens.values()]
    if not records:
        raise ValueError("The tokenized data set has no split.")
    skipped = [row for record in records for row in record.pop("skipped")]
    if any(record != records[0] for record in records[1:]):
        raise ValueError(f"The splits {', '.join(tokens)} were tokenized differently; tokenize them together.")
    return {**records[0], "skipped": skipped}


def recorded_cell_pixels(tokens: "Dataset | np.ndarray") -> int:
    """Pixels that a cell of the grid stands for by a split's record; 1 for tokens without one."""
    description = getattr(getattr(tokens, "info", None), "description", None) or ""
    if RECORD_KEY not in description:
        return 1
    record = _read_record(description)
    (height, width), size = record["grid"], record["processor"]["size"]
    return size["height"] * size["width"] // (height * width)


def recorded_kind(folder: str | os.PathLike) -> str:
    """
    The kind of stored tokens, from their record alone.

    Raises:
        ValueError: the folder has no splits, or no record.
    """
    from hf_igpt.storage import read_json

    record = next(iter(sorted(Path(folder).glob("*/dataset_info.json"))), None)
    if record is None:
        raise ValueError(f"{folder} holds no tokenized data set: run tokenize_dataset.")
    return _read_record(read_json(record).get("description"))["token_kind"]


def check_tokens(tokens: "Dataset | DatasetDict | IterableDataset", reference: Any = None) -> dict[str, Any]:
    """Checks that tokens fit a processor or a model's config, and that every stored token is in the vocabulary.

    The check of the values reads each column once (CIFAR-10's 51 million tokens take under a tenth of a second); a
    stream's values are checked when batches are made.

    Args:
        tokens: What `tokenize` returned.
        reference: An image processor, a model's config, or None to check the values alone.

    Returns:
        The record of `tokens_info`.

    Raises:
        ValueError: If kind, palette (or VQ-VAE), grid or number of values differ (names both), or a token is out of
            range.
    """
    info = tokens_info(tokens)
    if reference is not None:
        _check_reference(info, reference)
    for name, split in tokens.items() if isinstance(tokens, dict) else [("tokens", tokens)]:
        if hasattr(split, "data"):
            _check_values(split, name, info)
    return info


def save_tokens(
    tokens: "DatasetDict | Dataset",
    folder: str | os.PathLike,
    *,
    overwrite: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Writes tokenized splits into a folder that is complete or absent, never partial.

    Args:
        tokens: What `tokenize` returned; one data set is saved as a split.
        folder: Where to.
        overwrite: Replace a folder saved before.
        finish: Called with the folder before it becomes visible, to put more files into it.

    Raises:
        ValueError: If they are no tokens, one of them is a stream, or the folder exists and `overwrite` is off.
    """
    from datasets import Dataset, DatasetDict

    from hf_igpt.storage import staged_folder

    splits = tokens if isinstance(tokens, dict) else {str(tokens.split or "train"): tokens}
    if not all(isinstance(split, Dataset) for split in splits.values()):
        raise ValueError("A stream of tokens can't be saved: tokenize a data set loaded with `streaming=False`.")
    tokens_info(splits)
    with staged_folder(folder, overwrite=overwrite) as staged:
        DatasetDict(splits).save_to_disk(staged)
        if finish is not None:
            finish(staged)


def load_tokens(folder: str | os.PathLike) -> "DatasetDict":
    """Reads what `save_tokens` wrote, after checking every file against the folder's manifest.

    Raises:
        ValueError: If the folder is missing, incomplete, damaged or holds something else.
    """
    from datasets import load_from_disk

    from hf_igpt.storage import verify_folder

    verify_folder(folder)
    _check_names(Path(folder))
    try:
        tokens = load_from_disk(str(folder))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} holds no tokenized data set: {error}") from error
    check_tokens(tokens)
    return tokens


def token_rows(tokens: "Dataset | np.ndarray", rows: np.ndarray | None = None) -> np.ndarray:
    """
    The tokens of a split, or of some of its rows, as one integer array of shape (images, tokens); all of them without
    a copy where Arrow allows.
    """
    if isinstance(tokens, np.ndarray):
        return tokens if rows is None else tokens[rows]
    chosen = tokens.with_format("arrow")[:] if rows is None else tokens.with_format("arrow")[rows]
    column = chosen.column("input_ids").combine_chunks()
    return column.flatten().to_numpy(zero_copy_only=False).reshape(chosen.num_rows, -1)


def _check_names(folder: Path) -> None:
    """
    Raises ValueError where a file of `save_to_disk` names one outside: published tokens are written by others, and a
    manifest covers what is in the folder only.
    """
    from hf_igpt.storage import read_json

    for path in (folder / "dataset_dict.json", *folder.glob("*/state.json"), folder / "state.json"):
        content = read_json(path) if path.is_file() else {}
        try:
            names = [*content.get("splits", []), *(entry["filename"] for entry in content.get("_data_files", []))]
            wrong = [name for name in names if name in ("", "..") or name != Path(name).name]
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is no record of `save_to_disk`: {error}.") from error
        if wrong:
            raise ValueError(f"{path} must name files beside it, got {wrong[0]!r}.")


def _processor_settings(processor: Any) -> dict[str, Any]:
    """The settings as they are saved, less the code's map and what the hash stands for."""
    left_out = ("palette", "codes_hash", "auto_map")
    return {key: value for key, value in processor.to_dict().items() if key not in left_out}


def _package_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("hf-igpt")
    except PackageNotFoundError:
        return "not installed"


def _read_record(description: str) -> dict[str, Any]:
    try:
        record = {"source": None} | json.loads(description)[RECORD_KEY]
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            "The data set has no record of its tokens and grid: it holds no tokens made by `hf_igpt.data.tokenize`."
        ) from error
    if "palette_hash" in record:
        # Written when there were palettes only.
        record |= {"token_kind": PALETTE, "token_hash": record.pop("palette_hash")}
    return record


def _check_reference(info: dict[str, Any], reference: Any) -> None:
    if hasattr(reference, "vocab_size"):
        size = reference.image_size
        grid = [size, size] if isinstance(size, int) else list(size)
        wanted = {"grid": grid, "num_channels": reference.num_channels, "num_values": reference.vocab_size - 1}
        if reference.token_kind is not None:
            wanted = {"token_kind": reference.token_kind} | wanted
        kind = "model"
    else:
        wanted = token_meaning(reference)
        kind = "processor"
    for field, value in wanted.items():
        if info[field] != value:
            raise ValueError(
                f"`{field}` of the tokens is {info[field]}, of the {kind} {value}: they don't belong together. "
                f"Tokenize the images again for the {kind}, or take the {kind} made for them."
            )


def _check_values(tokens: "Dataset", name: str, info: dict[str, Any]) -> None:
    import pyarrow.compute as pc

    if "input_ids" not in tokens.column_names:
        raise ValueError(f"The split {name!r} has no column 'input_ids', only {', '.join(tokens.column_names)}.")
    column = tokens.data.column("input_ids")
    length = info["grid"][0] * info["grid"][1] * info["num_channels"]
    if getattr(column.type, "list_size", None) != length:
        raise ValueError(
            f"`input_ids` of the split {name!r} must hold {length} tokens a row, its type is {column.type}."
        )
    for number, chunk in enumerate(column.chunks):
        limits = pc.min_max(chunk.flatten())
        if chunk.null_count or limits["max"].as_py() is None or limits["max"].as_py() >= info["num_values"]:
            raise ValueError(
                f"`input_ids` of split {name!r} must lie in 0 to {info['num_values'] - 1} everywhere; block {number} "
                f"has {limits['min']} to {limits['max']} and {chunk.null_count} empty rows; tokenize the images again."
            )
