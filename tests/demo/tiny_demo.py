"""Checkpoints that were never trained, with tokens and probe results beside them, and readers of what a page shows."""

import base64
import io
import re
from html import unescape
from pathlib import Path

import datasets
import numpy as np
from PIL import Image
from tiny_models import randomize_, tiny_config

from hf_igpt import IGPTImageProcessor, ImageGPTForCausalImageModeling, ImageGPTForMaskedImageModeling
from hf_igpt.data import tokenize
from hf_igpt.data.token_store import save_tokens
from hf_igpt.results import write_results
from hf_igpt.weights import weights_digest


NUM_COLORS = 16
HEADS = {"causal": ImageGPTForCausalImageModeling, "masked": ImageGPTForMaskedImageModeling}
# Far from each other, from black, and from the grey of what is not drawn.
PALETTE = np.array([[r, g, b] for r in (20, 90, 160, 240) for g in (30, 200) for b in (10, 120)], dtype=float)
HOSTILE = "<script>alert(1)</script>{{evil}}${evil}"
ACCURACIES = (0.5, 0.7, 0.6)


def write_checkpoint(folder: Path, kind: str, side: int, **sizes: int) -> Path:
    """A model of that kind in `folder/model`, twelve images in `folder/tokens`, a probe in `folder/probe`."""
    model = randomize_(HEADS[kind](tiny_config(vocab_size=NUM_COLORS + 1, image_size=[side, side], **sizes)))
    model.save_pretrained(folder / "model")
    processor = IGPTImageProcessor(size={"height": side, "width": side}, palette=PALETTE)
    processor.save_pretrained(folder / "model")
    pixels = np.rint(PALETTE[np.random.default_rng(0).integers(0, NUM_COLORS, (12, side, side))]).astype(np.uint8)
    rows = {"image": list(map(Image.fromarray, pixels)), "label": [number % 2 for number in range(12)]}
    images = datasets.Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=[HOSTILE, "plain"]))
    splits = datasets.DatasetDict({"train": images, "test": images.select(range(10))})
    save_tokens(tokenize(splits, processor), folder / "tokens")
    layers = [{"layer": layer, "test_accuracy": accuracy} for layer, accuracy in enumerate(ACCURACIES)]
    write_results(
        folder / "probe",
        metrics={"layers": layers, "best": {"layer": 1, "test_accuracy": ACCURACIES[1]}, "pixels": None},
        probe={"solver": "lbfgs", "concatenate": 1},
        checkpoint={"name": "tiny", "sha256": weights_digest(model), "objective": "next_pixel", "parameters": 1},
    )
    return folder / "model"


def pictures(page: str) -> list[np.ndarray]:
    """The images in a piece of HTML, uint8 of shape (height, width, 3)."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")) for data in found]


def alternatives(page: str) -> list[str]:
    """The alternative texts of all images of a piece of HTML."""
    images = re.findall(r"<img[^>]*>", page)
    texts = [re.search(r'alt="([^"]+)"', image) for image in images]
    assert all(texts), page
    return [unescape(text[1]) for text in texts]


def text_of(page: str) -> str:
    """What a reader sees of a piece of HTML."""
    return unescape(re.sub(r"<[^>]+>", " ", page))


def marked(number: int, side: int = 40) -> Image.Image:
    """An image of one colour of the palette, by which its owner can tell it."""
    return Image.new("RGB", (side, side), tuple(int(level) for level in PALETTE[number]))


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def huge_png(side: int = 20_000) -> bytes:
    """A PNG of so many pixels a side that is small on disk."""
    buffer = io.BytesIO()
    Image.new("1", (side, side)).save(buffer, format="PNG")
    return buffer.getvalue()
