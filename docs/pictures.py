"""Draws the pictures of the concepts from the digits model, into docs/images.

    python docs/pictures.py --model outputs/digits/model

The model is that of `hf-igpt pretrain digits`, with its tokens beside it. The pictures show the first test images,
unselected.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from hf_igpt.commands.checkpoints import beside, load_checkpoint, load_matching_tokens
from hf_igpt.data import fit_palette
from hf_igpt.data.token_store import token_rows
from hf_igpt.evaluation import extract_features
from hf_igpt.image_processing_igpt import IGPTImageProcessor
from hf_igpt.losses_igpt import token_nats
from hf_igpt.plots import GAP, TEXT, hide_region, image_grid, save_png


IMAGES = Path(__file__).parent / "images"
CELL = 32
FEW_COLORS = (2, 4, 8, 17)


def tokens_picture(image: Image.Image, tokens: np.ndarray, palette: np.ndarray) -> Image.Image:
    """An image, the number of its palette colour in every pixel, and the palette with its numbers."""
    side, font = image.width * CELL, ImageFont.load_default(size=13)
    picture = Image.new("RGB", (2 * side + 3 * GAP, side + CELL + 3 * GAP), "white")
    large = image.resize((side, side), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(picture)

    def number(value: int, left: int, top: int, color: np.ndarray) -> None:
        ink = "black" if color.mean() > 127 else "white"
        draw.text((left + CELL // 2, top + CELL // 2), str(value), fill=ink, font=font, anchor="mm")

    for left in (GAP, side + 2 * GAP):
        picture.paste(large, (left, GAP))
    for place, token in enumerate(tokens):
        row, column = divmod(place, image.width)
        number(token, side + 2 * GAP + column * CELL, GAP + row * CELL, palette[token])
    width = (2 * side + GAP) // len(palette)
    for token, color in enumerate(palette):
        left, top = GAP + token * width, side + 2 * GAP
        draw.rectangle((left, top, left + width - 1, top + CELL - 1), fill=tuple(np.rint(color).astype(int)))
        number(token, left + (width - CELL) // 2, top, color)
    return picture


def palettes_picture(images: list[Image.Image]) -> Image.Image:
    """The same images with palettes of several sizes, one row for each, fitted to these images alone."""
    rows, pixels = list(images), np.stack([np.asarray(image) for image in images])
    for count in FEW_COLORS:
        palette = fit_palette(pixels, count).palette
        processor = IGPTImageProcessor(size=images[0].width, palette=palette)
        rows += processor.decode(processor(images, return_tensors="np").input_ids)
    return _with_row_titles(
        image_grid(rows, columns=len(images)), ["original", *(f"{count} colours" for count in FEW_COLORS)]
    )


def objectives_picture(images: list[Image.Image]) -> Image.Image:
    """What the two objectives show a model when it predicts one pixel (next pixel) or the hidden ones (masked)."""
    grid = images[0].height, images[0].width
    place, random = np.arange(grid[0] * grid[1]).reshape(grid), np.random.default_rng(0)
    cut = grid[0] * grid[1] * 7 // 16
    rows = []
    for image in images:
        hidden = [place >= cut, random.random(grid) < 0.15, random.random(grid) < 0.6]
        rows += [image, *(hide_region(image, region) for region in hidden)]
        next_pixel = np.array(rows[-3])
        next_pixel[place == cut] = (220, 60, 40)
        rows[-3] = Image.fromarray(next_pixel)
    titles = ["image", "next pixel", "masked, 15 %", "masked, 60 %"]
    return image_grid(rows, columns=4, column_titles=titles)


def likelihood_picture(model, tokens: np.ndarray, images: list[Image.Image]) -> Image.Image:
    """Images, and below each the nats that every pixel costs: white none, red five and more."""
    with torch.inference_mode():
        ids = torch.from_numpy(tokens.astype(np.int64))
        nats = token_nats(model(labels=ids).logits, ids).double().numpy()
    maps = []
    for values in nats.reshape(-1, *model.config.grid):
        strength = np.clip(values / 5, 0, 1)[..., None]
        heat = (1 - strength) * np.array([255, 255, 255]) + strength * np.array([178, 24, 43])
        maps.append(Image.fromarray(np.rint(heat).astype(np.uint8)))
    grid = image_grid(
        [*images, *maps], columns=len(images), column_titles=[f"{each:.0f} nats" for each in nats.sum(1)]
    )
    return _with_row_titles(grid, ["image", "surprise"], top=22)


def neighbours_picture(model, processor, train: np.ndarray, queries: np.ndarray, layer: int) -> Image.Image:
    """Images on the left, and the training images whose features of a layer are nearest by their angle."""
    features = [extract_features(model, tokens)[layer] for tokens in (train, queries)]
    mean, deviation = features[0].mean(axis=0), features[0].std(axis=0)
    unit = [(each - mean) / deviation for each in features]
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in unit]
    nearest = np.argsort(-(unit[1] @ unit[0].T), axis=1, kind="stable")[:, :6]
    rows = [np.concatenate([query[None], train[places]]) for query, places in zip(queries, nearest, strict=True)]
    titles = ["test image", "nearest in train", "", "", "", "", ""]
    return image_grid(processor.decode(np.concatenate(rows)), columns=7, column_titles=titles)


def _with_row_titles(grid: Image.Image, titles: list[str], top: int = GAP) -> Image.Image:
    font = ImageFont.load_default(size=14)
    margin = max(round(font.getlength(title)) for title in titles) + 2 * GAP
    picture = Image.new("RGB", (grid.width + margin, grid.height), "white")
    picture.paste(grid, (margin, 0))
    height = (grid.height - top) / len(titles)
    for row, title in enumerate(titles):
        ImageDraw.Draw(picture).text((GAP, top + (row + 0.4) * height), title, fill=TEXT, font=font)
    return picture


def draw(name: str) -> dict[str, Image.Image]:
    """All pictures by their names, of the checkpoint in a folder."""
    model, processor, _ = load_checkpoint(name)
    tokens = load_matching_tokens(beside(name, "tokens"), model, processor)
    train, test = token_rows(tokens["train"]), token_rows(tokens["test"].select(range(8)))
    images = processor.decode(test)
    return {
        "concept-tokens": tokens_picture(images[0], test[0], processor.palette),
        "concept-palettes": palettes_picture(images),
        "concept-objectives": objectives_picture(images[:3]),
        "concept-likelihood": likelihood_picture(model, test, images),
        "concept-neighbours": neighbours_picture(model, processor, train, test[:5], model.config.num_hidden_layers),
    }


def main() -> None:
    """Draws and saves them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/digits/model", help="checkpoint folder")
    parser.add_argument("--output_dir", default=str(IMAGES), help="folder for the pictures")
    arguments = parser.parse_args()
    for name, picture in draw(arguments.model).items():
        save_png(picture, Path(arguments.output_dir) / f"{name}.png")


if __name__ == "__main__":
    main()
