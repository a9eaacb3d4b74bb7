"""Images to start from, with a word for each."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt import IGPTImageProcessor


@dataclass(frozen=True)
class Example:
    """An RGB image and what it is called."""

    image: Image.Image
    caption: str


def token_examples(tokens: "DatasetDict", split: str, count: int, processor: "IGPTImageProcessor") -> list[Example]:
    """The first images of a tokenized split, with their classes where there are some."""
    from hf_igpt.data.token_store import token_rows

    rows = tokens[split].select(range(min(count, len(tokens[split]))))
    images = processor.decode(token_rows(rows).astype(np.int64))
    return [
        Example(image, f"{split} image {number}{name}")
        for number, (image, name) in enumerate(zip(images, _classes(tokens, split, len(images)), strict=True), start=1)
    ]


def sample_examples() -> list[Example]:
    """Two photographs and six digits that come with scikit-learn."""
    from sklearn.datasets import load_digits, load_sample_images

    photographs = load_sample_images()
    names = ("a Chinese temple", "a flower")
    found = [
        Example(_square(Image.fromarray(image)), name) for image, name in zip(photographs.images, names, strict=False)
    ]
    digits = load_digits()
    pixels = np.minimum(digits.images[:6] * 16, 255).astype(np.uint8)
    return found + [
        Example(Image.fromarray(image).convert("RGB"), f"the digit {label}")
        for image, label in zip(pixels, digits.target[:6], strict=True)
    ]


def _square(image: Image.Image, side: int = 256) -> Image.Image:
    length = min(image.size)
    left, top = (image.width - length) // 2, (image.height - length) // 2
    return image.crop((left, top, left + length, top + length)).resize((side, side), Image.Resampling.LANCZOS)


def _classes(tokens: "DatasetDict", split: str, count: int) -> list[str]:
    """ ", class NAME" for every image, or nothing where the images have no classes."""
    from hf_igpt.data.classes import LABEL, class_names

    try:
        names = class_names(tokens)
    except ValueError:
        return [""] * count
    return [f", class {names[label]}" if 0 <= label < len(names) else "" for label in tokens[split][:count][LABEL]]
