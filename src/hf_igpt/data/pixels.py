"""Training batches of pixels, each a function of (seed, epoch, image index): what a VQ-VAE is trained on."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_igpt.data.augmentation import RESIZED_CROP, augmented_positions, check_augmentation, random_resized_crop
from hf_igpt.data.columns import find_image_column
from hf_igpt.data.loading import KeyedDataset, opened_image


if TYPE_CHECKING:
    from datasets import Dataset

    from hf_igpt.image_processing_igpt import IGPTImageProcessor


class PixelDataset(KeyedDataset):
    """
    Images that are read, brought to one size and augmented when they are asked for.

    An example is {"pixels": uint8 array of shape (height, width, 3), "epoch" and "image": the parts of its key}.

    Args:
        images: A split with images.
        processor: Brings them to its size; its tokens aren't used.
        image_column: Column with the images, found where there is one.
        augment: One of `hf_igpt.data.augmentation.AUGMENTATIONS`, or "random_resized_crop": ImageNet's random resize
            and crop (paper §3.1) in place of the processor's centre crop, of its `crop_size`.
        seed: Seed of the augmentation.
        padding: Pixels of reflection padding of the crops.
        image_roots: Folders that a row's path may point into.

    Raises:
        ValueError: If there is no image, the augmentation doesn't fit, or an image read is damaged (names row and
            file).
    """

    def __init__(
        self,
        images: "Dataset",
        processor: "IGPTImageProcessor",
        *,
        image_column: str | None = None,
        augment: str = "none",
        seed: int = 0,
        padding: int = 4,
        image_roots: tuple[str, ...] = (),
    ):
        from datasets import Image

        super().__init__(len(images), "images")
        self.image_column = find_image_column(images.features, image_column)
        images = images.select_columns([self.image_column])
        self.images = images.cast_column(self.image_column, Image(decode=False)).with_format(None)
        self.image_size = (processor.size["height"], processor.size["width"])
        self.augment, self.seed, self.padding = augment, seed, padding
        self.image_roots = image_roots
        self.crop_size = None
        if augment == RESIZED_CROP:
            self.crop_size = processor.crop_size["height"]
            # The crops are drawn here, so the processor's own crop must not come on top.
            processor = processor.with_size(processor.size)
        else:
            check_augmentation(augment, self.image_size, padding)
        self.processor = processor

    def _examples(self, epochs: np.ndarray, images: np.ndarray) -> list[dict[str, Any]]:
        values = self.images[images][self.image_column]
        keys = zip(values, epochs.tolist(), images.tolist(), strict=True)
        pixels = self.processor.pixels([self._opened(*key) for key in keys])
        if self.augment not in ("none", RESIZED_CROP):
            positions = augmented_positions(
                self.augment, self.image_size, 3, seed=self.seed, epochs=epochs, indices=images, padding=self.padding
            )
            flat = pixels.reshape(len(pixels), -1)
            pixels = np.take_along_axis(flat, positions, axis=1).reshape(pixels.shape)
        return [{"pixels": image} for image in pixels]

    def _opened(self, value: Any, epoch: int, image: int) -> Any:
        opened = opened_image(value, image, self.image_roots)
        if self.crop_size is None:
            return opened
        return random_resized_crop(
            opened,
            seed=self.seed,
            epoch=epoch,
            index=image,
            shorter_side=resized_sides(self.crop_size),
            crop_size=self.crop_size,
            resample=self.processor.resample,
        )


def resized_sides(crop_size: int) -> tuple[int, int]:
    """Smallest and largest shorter side before a crop of so many pixels: the paper's 256 to 384 for a crop of 224."""
    return round(crop_size * 256 / 224), round(crop_size * 384 / 224)


@dataclass(frozen=True)
class PixelCollator:
    """Batches examples: {"pixel_values": float32 tensor of shape (batch, 3, height, width) in [-1, 1]}."""

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        pixels = torch.from_numpy(np.stack([example["pixels"] for example in examples]))
        return {"pixel_values": pixels.permute(0, 3, 1, 2) / 127.5 - 1}
