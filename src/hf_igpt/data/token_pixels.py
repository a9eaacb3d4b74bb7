"""The RGB pixels that stored tokens were made of, read again from their images."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

_BLOCK_IMAGES = 256


def source_of_tokens(tokens: "DatasetDict", dataset_name: str | None = None) -> "ImageSource":
    """
    The images that tokens were made of, loaded again.

    Args:
        tokens: as `load_tokens` gives them.
        dataset_name: where the images lie now, if not where the tokens' record says.

    Raises:
        ValueError: the record doesn't say where they are from, or they aren't there.
    """
    from hf_igpt.data.sources import load_again
    from hf_igpt.data.token_store import tokens_info

    origin = tokens_info(tokens)["source"]
    if origin is None:
        raise ValueError(
            "The tokens don't say which images they were made of: tokenize an `ImageSource`, or with the command."
        )
    try:
        return load_again(origin, dataset_name)
    except ValueError as error:
        where = "`dataset_name`" if dataset_name else "the record of the tokens"
        raise ValueError(f"The images that {where} names are needed again: {error}") from error


def pixels_of_tokens(
    source: "ImageSource", tokens: "DatasetDict", processor: "IGPTImageProcessor", split: str
) -> Iterator[np.ndarray]:
    """
    The pixels of a split at the size of the grid, in the tokens' order: uint8 of shape (images, height, width, 3), in
    blocks.

    Args:
        source: as `source_of_tokens` gives it.
        tokens: splits that the processor made.
        processor: their image processor.

    Raises:
        ValueError: the images give other tokens, or there are more or fewer of them; or one of them is damaged that
            wasn't when the tokens were made.
    """
    from hf_igpt.data.preparation import grid_pixels
    from hf_igpt.data.token_store import token_rows, tokens_info

    stored = tokens[split]
    images = grid_pixels(source, processor, split=split, skip_damaged=bool(tokens_info(stored)["skipped"]))
    done = 0
    for block in _blocks(images):
        given = processor.quantize(block).reshape(len(block), -1)
        rows = token_rows(stored, np.arange(done, min(done + len(block), len(stored))))
        differ = np.flatnonzero((given[: len(rows)] != rows).any(axis=1))
        if len(differ) or len(rows) < len(block):
            row = done + (int(differ[0]) if len(differ) else len(rows))
            raise ValueError(_disagreement(source, split, f"image {row} gives other tokens than are stored"))
        done += len(block)
        yield block
    if done < len(stored):
        raise ValueError(_disagreement(source, split, f"it has {done} images, {len(stored)} are stored"))


def _blocks(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    block: list[np.ndarray] = []
    for image in images:
        block.append(image)
        if len(block) == _BLOCK_IMAGES:
            yield np.stack(block)
            block = []
    if block:
        yield np.stack(block)


def _disagreement(source: "ImageSource", split: str, what: str) -> str:
    return (
        f"The split {split!r} of {source.name} is not what the tokens were made of: {what}. Name the right images "
        "with `dataset_name`, or tokenize these."
    )
