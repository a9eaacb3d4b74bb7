"""How near images are to those that they stand for: peak signal-to-noise ratio and structural similarity."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np


if TYPE_CHECKING:
    import torch
    from PIL import Image


WINDOW, SIGMA = 11, 1.5
# Wang et al. (2004), section III.B: the constants of images of 8 bits.
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error in levels of 0...255; infinite for 0."""
    return math.inf if mean_squared_error == 0 else 10 * math.log10(255**2 / mean_squared_error)


def psnr_of_images(images: "Sequence[Image.Image]", originals: "Sequence[Image.Image]") -> float:
    """`psnr` over all pixels and channels of images that have one size."""
    errors = [
        np.mean(np.square(np.asarray(image, dtype=np.float64) - np.asarray(original, dtype=np.float64)))
        for image, original in zip(images, originals, strict=True)
    ]
    return psnr(float(np.mean(errors)))


def structural_similarity(images: "torch.Tensor", originals: "torch.Tensor") -> "torch.Tensor":
    """
    SSIM of each pair of images (Wang et al., "Image quality assessment: from error visibility to structural
    similarity", 2004): means, variances and covariance under a Gaussian window of 11x11 pixels and standard deviation
    1.5, at every position where the window lies within the image, averaged over positions and channels. The paper has
    one channel.

    Args:
        images, originals: levels 0...255 of shape (images, height, width, channels), both sides at least 11.

    Returns:
        float64 of shape (images,), 1 for equal images.

    Raises:
        ValueError: the shapes differ, or an image is smaller than the window.
    """
    if images.shape != originals.shape or images.dim() != 4 or min(images.shape[1:3]) < WINDOW:
        raise ValueError(
            f"`images` and `originals` must have one shape (images, height, width, channels), both sides at least "
            f"{WINDOW} pixels, got {list(images.shape)} and {list(originals.shape)}."
        )
    first, second = (values.double().permute(0, 3, 1, 2).flatten(0, 1)[:, None] for values in (images, originals))
    products = (first, second, first * first, second * second, first * second)
    mean_1, mean_2, square_1, square_2, product = map(_blurred, products)
    variance_1, variance_2 = square_1 - mean_1**2, square_2 - mean_2**2
    covariance = product - mean_1 * mean_2
    similarity = (2 * mean_1 * mean_2 + _C1) * (2 * covariance + _C2)
    similarity /= (mean_1**2 + mean_2**2 + _C1) * (variance_1 + variance_2 + _C2)
    return similarity.flatten(1).mean(dim=1).view(len(images), -1).mean(dim=1)


def _blurred(planes: "torch.Tensor") -> "torch.Tensor":
    """Weighted means under the window, at the positions where it lies within the plane."""
    import torch
    import torch.nn.functional as F

    offsets = torch.arange(WINDOW, dtype=planes.dtype, device=planes.device) - WINDOW // 2
    weights = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    weights /= weights.sum()
    return F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
