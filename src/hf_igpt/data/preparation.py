"""The two stages before training: a palette from images, and tokens from images and palette, each in its folder."""

import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from hf_igpt.data.code_version import code_version
from hf_igpt.stages import is_finished, write_stage
from hf_igpt.storage import scratch_folder, work_lock


if TYPE_CHECKING:
    import numpy as np
    from datasets import DatasetDict

    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

EXAMPLE_IMAGES = 16
Given, Made = ParamSpec("Given"), TypeVar("Made")


def _one_at_a_time(prepare: Callable[Given, Made]) -> Callable[Given, Made]:
    """Of two processes that make one folder, the second waits for the first and finds it finished."""

    @functools.wraps(prepare)
    def locked(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        with work_lock(kwargs["folder"] if "folder" in kwargs else args[0]):
            return prepare(*args, **kwargs)

    return locked


@_one_at_a_time
def prepare_palette(
    folder: str | os.PathLike,
    source: "ImageSource",
    *,
    num_colors: int,
    size: dict[str, int],
    crop_size: int | None = None,
    seed: int = 0,
    skip_damaged: bool = False,
) -> "IGPTImageProcessor":
    """
    Fits a palette on the train split at the size it will be tokenized at and saves it as an image processor, with a
    swatch, a before/after picture and results.json. A finished folder is loaded.

    Args:
        size: height and width of the token grid.
        crop_size: side of a centre crop in pixels that comes before the reduction to `size`, or None.
        skip_damaged: leave out images that can't be read.

    Raises:
        ValueError: as `fit_palette`; an image is damaged (names row and file); the folder was made from other inputs.
    """
    from hf_igpt.data.palette_fitting import fit_palette
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.results import write_results
    from hf_igpt.storage import staged_folder

    crop = {} if crop_size is None else {"do_center_crop": True, "crop_size": crop_size}
    made_from = {
        "images": source.name,
        "fingerprint": source.fingerprints["train"],
        "image_column": source.image_column,
        "num_colors": num_colors,
        "size": size,
        "crop_size": crop_size,
        "seed": seed,
        "skip_damaged": skip_damaged,
        "code": code_version(),
    }
    if is_finished(folder, made_from):
        return IGPTImageProcessor.from_pretrained(folder)
    started = time.perf_counter()
    pixels = _train_pixels(source, IGPTImageProcessor(size=size, **crop), skip_damaged)
    fitted = fit_palette(pixels, num_colors, seed)
    processor = IGPTImageProcessor(size=size, palette=fitted.palette, **crop)
    with staged_folder(folder, overwrite=True) as staged:
        processor.save_pretrained(staged)
        _draw_palette(staged, processor, _train_pixels(source, processor, skip_damaged))
        write_stage(staged, made_from)
        write_results(
            staged,
            metrics=fitted.metrics(),
            seeds={"seed": seed},
            arguments=made_from,
            wall_seconds=time.perf_counter() - started,
        )
    return processor


@_one_at_a_time
def prepare_tokens(
    folder: str | os.PathLike,
    source: "ImageSource",
    processor: "IGPTImageProcessor",
    *,
    num_proc: int | None = None,
    skip_damaged: bool = False,
) -> "DatasetDict":
    """
    Tokenizes every split and saves them, with results.json; a stream is read to its end and only its tokens are kept.
    A finished folder is checked and loaded.

    Raises:
        ValueError: as `tokenize`; or the folder was made from other inputs.
    """
    from hf_igpt.data.token_store import load_tokens, save_tokens, token_record, tokens_info
    from hf_igpt.data.tokenization import tokenize
    from hf_igpt.results import write_results

    made_from = {
        "images": source.name,
        "fingerprints": source.fingerprints,
        "columns": [source.image_column, source.label_column],
        "tokens": token_record(processor),
        "skip_damaged": skip_damaged,
        "code": code_version(),
    }
    if is_finished(folder, made_from):
        return load_tokens(folder)
    folder, started = Path(folder), time.perf_counter()
    with scratch_folder(folder) as stream_folder:
        tokens = tokenize(source, processor, num_proc=num_proc, skip_damaged=skip_damaged, stream_folder=stream_folder)
        metrics = {
            "num_images": {name: len(split) for name, split in tokens.items()},
            "skipped": tokens_info(tokens)["skipped"],
        }

        def finish(staged: Path) -> None:
            write_stage(staged, made_from)
            write_results(
                staged,
                metrics=metrics,
                arguments=made_from,
                wall_seconds=time.perf_counter() - started,
                source=source.origin,
            )

        save_tokens(tokens, folder, overwrite=True, finish=finish)
    return load_tokens(folder)


def _train_pixels(
    source: "ImageSource", processor: "IGPTImageProcessor", skip_damaged: bool
) -> Iterator["np.ndarray"]:
    """The training images at the size of the grid, uint8 of shape (height, width, 3)."""
    from datasets import Image

    from hf_igpt.data.columns import damage_message, damaged_row, read_image

    rows = source.split("train").select_columns([source.image_column])
    if isinstance(rows.features[source.image_column], Image):
        rows = rows.cast_column(source.image_column, Image(decode=False))
    for number, row in enumerate(rows):
        value = row[source.image_column]
        try:
            pixels = processor.pixels([read_image(value, source.image_roots)])[0]
        except (ValueError, OSError) as error:
            if skip_damaged:
                continue
            raise ValueError(damage_message(damaged_row("train", number, value, error))) from error
        yield pixels


def _draw_palette(folder: Path, processor: "IGPTImageProcessor", pixels: Iterator["np.ndarray"]) -> None:
    from PIL import Image

    from hf_igpt.plots import palette_swatch, quantization_grid, save_png

    originals = [Image.fromarray(image) for image in itertools.islice(pixels, EXAMPLE_IMAGES)]
    quantized = processor.decode(processor(originals)["input_ids"])
    save_png(palette_swatch(processor.palette), folder / "palette.png")
    save_png(quantization_grid(originals, quantized, processor.num_colors), folder / "quantization.png")
