"""The two stages before training: a palette from images, and tokens from images and palette, each in its folder."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_igpt.stages import is_finished, write_stage


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor

EXAMPLE_IMAGES = 16


def prepare_palette(
    folder: str | os.PathLike,
    source: "ImageSource",
    *,
    num_colors: int,
    size: dict[str, int],
    crop_size: int | None = None,
    seed: int = 0,
) -> "IGPTImageProcessor":
    """
    Fits a palette on the train split at the size it will be tokenized at and saves it as an image processor, with a
    swatch, a before/after picture and results.json. A finished folder is loaded.

    Args:
        size: height and width of the token grid.
        crop_size: side of a centre crop in pixels that comes before the reduction to `size`, or None.

    Raises:
        ValueError: as `fit_palette`; or the folder was made from other inputs.
    """
    from hf_igpt.data.palette_fitting import fit_palette
    from hf_igpt.image_processing_igpt import IGPTImageProcessor
    from hf_igpt.results import write_results
    from hf_igpt.storage import staged_folder

    crop = {} if crop_size is None else {"do_center_crop": True, "crop_size": crop_size}
    made_from = {
        "images": source.name,
        "fingerprint": source.fingerprints.get("train"),
        "num_colors": num_colors,
        "size": size,
        "crop_size": crop_size,
        "seed": seed,
    }
    if is_finished(folder, made_from):
        return IGPTImageProcessor.from_pretrained(folder)
    fitted = fit_palette(
        source.split("train"),
        num_colors,
        seed,
        image_column=source.image_column,
        processor=IGPTImageProcessor(size=size, **crop),
        image_roots=source.image_roots,
    )
    processor = IGPTImageProcessor(size=size, palette=fitted.palette, **crop)
    with staged_folder(folder, overwrite=True) as staged:
        processor.save_pretrained(staged)
        _draw_palette(staged, source, processor)
        write_stage(staged, made_from)
        write_results(staged, metrics=fitted.metrics(), seeds={"seed": seed}, arguments=made_from)
    return processor


def prepare_tokens(
    folder: str | os.PathLike,
    source: "ImageSource",
    processor: "IGPTImageProcessor",
    *,
    num_proc: int | None = None,
    skip_damaged: bool = False,
) -> "DatasetDict":
    """
    Tokenizes every split and saves them, with results.json. A finished folder is checked and loaded.

    Raises:
        ValueError: as `tokenize`; or the folder was made from other inputs.
    """
    from hf_igpt.data.token_store import load_tokens, save_tokens, token_record, tokens_info
    from hf_igpt.data.tokenization import tokenize
    from hf_igpt.results import write_results

    made_from = {
        "images": source.name,
        "fingerprints": source.fingerprints,
        "tokens": token_record(processor),
        "skip_damaged": skip_damaged,
    }
    if is_finished(folder, made_from):
        return load_tokens(folder)
    tokens = tokenize(source, processor, num_proc=num_proc, skip_damaged=skip_damaged)
    info = tokens_info(tokens)
    metrics = {"num_images": {name: len(split) for name, split in tokens.items()}, "skipped": info["skipped"]}

    def finish(staged: Path) -> None:
        write_stage(staged, made_from)
        write_results(staged, metrics=metrics, arguments=made_from, notes=list(source.notes))

    save_tokens(tokens, folder, overwrite=True, finish=finish)
    return load_tokens(folder)


def _draw_palette(folder: Path, source: "ImageSource", processor: "IGPTImageProcessor") -> None:
    from hf_igpt.plots import palette_swatch, quantization_grid, save_png

    originals = example_images(source, processor, EXAMPLE_IMAGES)
    quantized = processor.decode(processor(originals)["input_ids"])
    save_png(palette_swatch(processor.palette), folder / "palette.png")
    save_png(quantization_grid(originals, quantized, processor.num_colors), folder / "quantization.png")


def example_images(source: "ImageSource", processor: "IGPTImageProcessor", count: int) -> list[Any]:
    """The first images of the train split at the size of the grid, as Pillow images."""
    from datasets import Image as ImageFeature
    from PIL import Image

    from hf_igpt.data.columns import read_image

    rows = source.split("train").select_columns([source.image_column])
    if isinstance(rows.features[source.image_column], ImageFeature):
        rows = rows.cast_column(source.image_column, ImageFeature(decode=False))
    values = [row[source.image_column] for row in rows.take(count)]
    pixels = processor.pixels([read_image(value, source.image_roots) for value in values])
    return [Image.fromarray(image) for image in pixels]
