"""Small data sets of random images and processors for the tests of the data modules."""

import io

import datasets
import numpy as np
from PIL import Image

from hf_igpt.image_processing_igpt import IGPTImageProcessor


HEIGHT, WIDTH = 6, 5


def make_pixels(count=12, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def make_processor(height=HEIGHT, width=WIDTH, num_colors=7, seed=1):
    palette = np.random.default_rng(seed).uniform(0, 255, (num_colors, 3))
    return IGPTImageProcessor(size={"height": height, "width": width}, palette=palette.tolist())


def nearest_colors(pixels, processor):
    """Tokens by brute force: (images, height * width)."""
    distances = ((pixels[..., None, :].astype(np.float64) - processor.palette) ** 2).sum(-1)
    return distances.argmin(-1).reshape(len(pixels), -1)


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def dataset_of(pixels, damaged=()):
    """A data set with the columns `image` and `label`; rows in `damaged` have half of their bytes."""
    content = [png(array) for array in pixels]
    for row in damaged:
        content[row] = content[row][: len(content[row]) // 2]
    return dataset_of_rows([{"bytes": data, "path": f"image-{row}.png"} for row, data in enumerate(content)])


def dataset_of_rows(rows):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    labels = [row % 3 for row in range(len(rows))]
    return datasets.Dataset.from_dict({"image": rows, "label": labels}, features=features)
