"""The smallest job that has every stage: a few seconds, of which training is the least."""

import io
from pathlib import Path

import datasets
import numpy as np
from PIL import Image


TINY = {
    "output_dir": "out",
    "max_images": 40,
    "image_size": 8,
    "num_colors": 17,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "dropout": 0.1,
    "augmentation": "crop",
    "augmentation_padding": 1,
    "total_batch_size": 8,
    "max_steps": 6,
    "warmup_epochs": 0.2,
    "learning_rate": "1e-2",
    "logging_steps": 1,
    "eval_steps": 3,
    "save_steps": 2,
    "cpu_threads": 1,
    "report_to": "none",
}


def write_recipe(folder: Path, name: str = "tiny.yaml", **changes) -> str:
    values = TINY | changes
    lines = [f"{key}: {str(value).lower() if isinstance(value, bool) else value}\n" for key, value in values.items()]
    (folder / name).write_text("".join(lines))
    return name


def make_pixels(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def write_images(folder: Path, count: int, damaged=()) -> None:
    """A parquet file of images in `images`; rows in `damaged` have half of their bytes."""
    rows = []
    for row, array in enumerate(make_pixels(count)):
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, "PNG")
        content = buffer.getvalue()
        rows.append({"bytes": content[: len(content) // 2] if row in damaged else content, "path": f"image-{row}.png"})
    images = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    (folder / "images").mkdir()
    images.to_parquet(folder / "images/train.parquet")
