"""Several processes tokenize one split: each a part of it, and all of them get the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.processes import failing_together, from_all_processes, process_state


if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset


def part_of(images: "Dataset | IterableDataset", is_cut_off: bool) -> "tuple[Dataset | IterableDataset | None, int]":
    """
    What this process has of a split, and the number of its first row: a run of rows; of a stream a run of its files,
    whose rows count from 0. None where there is nothing for it.

    Args:
        is_cut_off: the stream ends before its files do. Such a stream, and one of fewer files than processes, is the
            first process's as a whole.
    """
    from datasets import Dataset

    state = process_state()
    rank, count = state.process_index, state.num_processes
    if isinstance(images, Dataset):
        first, end = (len(images) * number // count for number in (rank, rank + 1))
        return (images.select(range(first, end)) if end > first else None), first
    if not is_cut_off and images.num_shards >= count:
        return images.shard(count, rank), 0
    return (images if rank == 0 else None), 0


def tokens_in_parts(
    images: "Dataset | IterableDataset",
    split: str,
    is_cut_off: bool,
    fingerprint: str | None,
    store: Callable[[Any, str, int, str], "Dataset"],
) -> "Dataset":
    """
    The tokens of a split that several processes make together.

    Args:
        is_cut_off: as for `part_of`.
        fingerprint: of the whole, for `datasets`; None for a stream.
        store: tokenizes a part. Takes it, what to call it in messages, the number of its first row, and a name for its
            file, and returns tokens stored in files that all processes see.

    Raises:
        ValueError: the split is empty, or what `store` raised on the first process that failed; on all of them.
    """
    from datasets import Dataset, concatenate_datasets

    state, files = process_state(), []
    part, first = part_of(images, is_cut_off)
    number = f"{state.process_index + 1}-of-{state.num_processes}"
    is_run_of_files = not isinstance(images, Dataset) and part is not images
    name = f"{split}, part {number.replace('-', ' ')}" if is_run_of_files else split
    with failing_together():
        if part is not None:
            files = [
                Path(file["filename"]) for file in store(part, name, first, f"{split}-{number}.arrow").cache_files
            ]
    tokens = [Dataset.from_file(str(file)) for file in from_all_processes(files)]
    tokens = [rows for rows in tokens if len(rows)]
    if not tokens:
        raise ValueError(f"The split {split!r} is empty: there is nothing to tokenize.")
    table = concatenate_datasets(tokens).data
    if fingerprint is None:
        return Dataset(table)
    # As if one process had made them.
    info = images.info.copy()
    info.features = tokens[0].features
    return Dataset(table, info=info, split=images.split, fingerprint=fingerprint)
