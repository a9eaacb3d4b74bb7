"""What a palette does to an image."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from hf_igpt.demo.checkpoints import Checkpoint
from hf_igpt.image_quality import psnr_of_images


SIZES = (2, 8, 32, 512)
MAX_SIDE = 64


@dataclass(frozen=True)
class Quantized:
    """
    An image in the colours of a palette.

    Args:
        num_colors: of the palette.
        psnr: in dB, infinite where nothing is lost.
        asked: colours that the palette might have had; it has fewer where the image has fewer.
    """

    image: Image.Image
    num_colors: int
    psnr: float
    asked: int


def with_own_palettes(image: Image.Image, sizes: tuple[int, ...] = SIZES) -> list[Quantized]:
    """
    An RGB image in 2, 8, 32 and 512 colours that k-means fits to it alone, as it fits a training set's. At the image's
    own size, up to 64 pixels a side: what a palette costs before the token grid takes detail away.
    """
    from hf_igpt.data.color_kmeans import fit_colors
    from hf_igpt.palette_igpt import rgb_codes

    image = image.copy()
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    codes, counts = np.unique(rgb_codes(np.asarray(image)), return_counts=True)
    return [_quantized(image, fit_colors(codes, counts, size, seed=0), size) for size in sizes]


def as_checkpoint_sees(checkpoint: Checkpoint, image: Image.Image) -> tuple[Image.Image, Quantized]:
    """An image at the processor's size, and the same as the model sees it."""
    pixels = checkpoint.processor.pixels([image])
    small = Image.fromarray(pixels[0])
    seen = checkpoint.processor.decode(checkpoint.processor.quantize(pixels))[0]
    num_values = checkpoint.processor.num_values
    return small, Quantized(seen, num_values, psnr_of_images([seen], [small]), num_values)


def _quantized(image: Image.Image, palette: np.ndarray, asked: int) -> Quantized:
    pixels = np.asarray(image).reshape(-1, 3)
    # One part after the other: pixels times colours in float64 would take tens of megabytes.
    nearest = [_nearest(part, palette) for part in np.array_split(pixels, max(1, len(pixels) // 2048))]
    colors = np.rint(palette).astype(np.uint8)[np.concatenate(nearest)]
    result = Image.fromarray(colors.reshape(image.height, image.width, 3))
    return Quantized(result, len(palette), psnr_of_images([result], [image]), asked)


def _nearest(pixels: np.ndarray, palette: np.ndarray) -> np.ndarray:
    return np.square(pixels[:, None].astype(np.float64) - palette).sum(axis=-1).argmin(axis=1)
