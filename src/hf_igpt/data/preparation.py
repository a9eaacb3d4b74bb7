"""The two stages before training, each in its folder: an image processor (a palette is fitted), and its tokens."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from hf_igpt.data.code_version import code_version
from hf_igpt.processes import failing_together, on_first_process, process_state
from hf_igpt.stages import is_finished, write_stage
from hf_igpt.storage import clean_leftovers, scratch_folder, work_lock


if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset, DatasetDict, IterableDataset

    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

EXAMPLE_IMAGES = 16
Given, Made = ParamSpec("Given"), TypeVar("Made")


def _one_at_a_time(prepare: Callable[Given, Made]) -> Callable[Given, Made]:
    """
    Of two commands that make one folder, the second waits for the first and finds it finished. Of the processes of one
    command the first stands for all.
    """

    @functools.wraps(prepare)
    def locked(*args: Given.args, **kwargs: Given.kwargs) -> Made:
        folder = Path(kwargs["folder"] if "folder" in kwargs else args[0])
        is_first = process_state().is_main_process
        with work_lock(folder) if is_first else contextlib.nullcontext():
            if is_first:
                clean_leftovers(folder.parent, folder.name)
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
    swatch, a before/after picture and results.json. A finished folder is loaded. Several processes must call it
    together: each counts the colours of its part of the images, the first one fits and saves, all get the same.

    Args:
        size: height and width of the token grid.
        crop_size: side of a centre crop in pixels that comes before the reduction to `size`, or None.
        skip_damaged: leave out images that can't be read.

    Raises:
        ValueError: as `fit_palette`; an image is damaged (names row and file); the folder was made from other inputs.
    """
    from hf_igpt.data.options import crop_fields
    from hf_igpt.data.palette_fitting import check_num_colors, fit_histogram
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.results import write_results
    from hf_igpt.storage import staged_folder

    crop = crop_fields(crop_size)
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
    if on_first_process(lambda: is_finished(folder, made_from)):
        return IGPTImageProcessor.from_pretrained(folder)
    started = time.perf_counter()
    check_num_colors(num_colors)
    counts = count_in_parts(source, IGPTImageProcessor(size=size, **crop), skip_damaged)
    with failing_together():
        if process_state().is_main_process:
            fitted = fit_histogram(counts, num_colors, seed)
            processor = IGPTImageProcessor(size=size, palette=fitted.palette, **crop)
            with staged_folder(folder, overwrite=True) as staged:
                processor.save_pretrained(staged)
                pixels = grid_pixels(source, processor, skip_damaged=skip_damaged)
                _draw_tokens(staged, processor, pixels)
                write_stage(staged, made_from)
                write_results(
                    staged,
                    metrics=fitted.metrics(),
                    seeds={"seed": seed},
                    arguments=made_from,
                    wall_seconds=time.perf_counter() - started,
                )
    return IGPTImageProcessor.from_pretrained(folder)


def count_in_parts(source: "ImageSource", processor: "IGPTImageProcessor", skip_damaged: bool) -> "np.ndarray":
    """
    How often each colour occurs in the training images at the size of the grid, as `count_colors` gives it. All
    processes call it together: each reads a part.
    """
    import torch

    from hf_igpt.data.palette_fitting import count_colors
    from hf_igpt.data.token_parts import part_of

    part, first_row = part_of(source.split("train"), source.is_cut_off)
    with failing_together():
        options = {"skip_damaged": skip_damaged, "first_row": first_row}
        counts = count_colors([] if part is None else grid_pixels(source, processor, part, **options))
    state = process_state()
    if state.num_processes == 1:
        return counts
    total = torch.from_numpy(counts).to(state.device)
    torch.distributed.all_reduce(total)
    return total.cpu().numpy()


@_one_at_a_time
def prepare_fixed(
    folder: str | os.PathLike,
    source: "ImageSource",
    *,
    token_kind: str,
    vqvae: str | None,
    size: dict[str, int],
    crop_size: int | None = None,
    skip_damaged: bool = False,
) -> "IGPTImageProcessor":
    """
    Saves the image processor of tokens that need no fitting, with a before/after picture. A finished folder is loaded.
    Several processes must call it together: the first one saves.

    Args:
        token_kind, vqvae, size, crop_size: as in `fixed_processor`.
        skip_damaged: leave out images that can't be read.

    Raises:
        ValueError: as `fixed_processor`; an image is damaged; the folder was made from other inputs.
    """
    from hf_igpt.data.options import fixed_processor
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.storage import staged_folder

    with failing_together():
        if process_state().is_main_process:
            processor = fixed_processor(token_kind, size, crop_size, vqvae)
            made_from = {"tokens": processor.token_hash, "size": size, "crop_size": crop_size, "code": code_version()}
            if not is_finished(folder, made_from):
                with staged_folder(folder, overwrite=True) as staged:
                    processor.save_pretrained(staged)
                    _draw_tokens(staged, processor, grid_pixels(source, processor, skip_damaged=skip_damaged))
                    write_stage(staged, made_from)
    return IGPTImageProcessor.from_pretrained(folder)


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
    A finished folder is checked and loaded. Several processes must call it together: each tokenizes a part, the first
    one puts them together and saves, and all read what it saved.

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
    if on_first_process(lambda: is_finished(folder, made_from)):
        return load_tokens(folder)
    folder, started, state = Path(folder), time.perf_counter(), process_state()
    with _room_beside(folder) as room:
        with _on_device(processor, state.device):
            tokens = tokenize(
                source,
                processor,
                num_proc=num_proc,
                skip_damaged=skip_damaged,
                stream_folder=room,
                in_parts=state.num_processes > 1,
            )
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

        with failing_together():
            if state.is_main_process:
                save_tokens(tokens, folder, overwrite=True, finish=finish)
    return load_tokens(folder)


@contextlib.contextmanager
def _on_device(processor: "IGPTImageProcessor", device: Any) -> Iterator[None]:
    """The VQ-VAE of codes on the GPU for as long as they are made. Workers of a data loader couldn't use it there."""
    if processor.vqvae is None:
        yield
        return
    processor.vqvae.to(device)
    try:
        yield
    finally:
        processor.vqvae.to("cpu")


@contextlib.contextmanager
def _room_beside(folder: Path) -> Iterator[Path]:
    """The first process's scratch folder, which all of them write into."""
    with contextlib.ExitStack() as held:
        yield on_first_process(lambda: held.enter_context(scratch_folder(folder)))


def grid_pixels(
    source: "ImageSource",
    processor: "IGPTImageProcessor",
    rows: "Dataset | IterableDataset | None" = None,
    split: str = "train",
    *,
    skip_damaged: bool = False,
    first_row: int = 0,
) -> Iterator["np.ndarray"]:
    """
    Images of a source's split at the size of the grid, one by one: uint8 of shape (height, width, 3).

    Args:
        rows: a part of the split, by default all of it.
        skip_damaged: leave out images that can't be read.
        first_row: the number of the part's first row.

    Raises:
        ValueError: an image is damaged (names row and file).
    """
    from datasets import Image

    from hf_igpt.data.columns import damage_message, damaged_row, read_image

    rows = (source.split(split) if rows is None else rows).select_columns([source.image_column])
    if isinstance(rows.features[source.image_column], Image):
        rows = rows.cast_column(source.image_column, Image(decode=False))
    for number, row in enumerate(rows, first_row):
        value = row[source.image_column]
        try:
            pixels = processor.pixels([read_image(value, source.image_roots)])[0]
        except (ValueError, OSError) as error:
            if skip_damaged:
                continue
            raise ValueError(damage_message(damaged_row(split, number, value, error))) from error
        yield pixels


def _draw_tokens(folder: Path, processor: "IGPTImageProcessor", pixels: Iterator["np.ndarray"]) -> None:
    from PIL import Image

    from hf_igpt.plots import palette_swatch, quantization_grid, save_png

    originals = [Image.fromarray(image) for image in itertools.islice(pixels, EXAMPLE_IMAGES)]
    quantized = processor.decode(processor(originals)["input_ids"])
    if processor.palette is not None:
        save_png(palette_swatch(processor.palette), folder / "palette.png")
    save_png(quantization_grid(originals, quantized, processor.description), folder / "quantization.png")
