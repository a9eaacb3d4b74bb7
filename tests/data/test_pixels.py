"""Batches of pixels: read, brought to one size, and augmented as a function of (seed, epoch, image)."""

import numpy as np
import pytest
import torch
from image_samples import HEIGHT, WIDTH, dataset_of, make_pixels
from PIL import Image

from hf_igpt import IGPTImageProcessor
from hf_igpt.data.augmentation import random_resized_crop
from hf_igpt.data.pixels import PixelCollator, PixelDataset, resized_sides


SIZE = {"height": HEIGHT, "width": WIDTH}


def test_an_example_is_its_image_moved_by_seed_epoch_and_index():
    pixels = make_pixels(7)
    plain = PixelDataset(dataset_of(pixels), IGPTImageProcessor(size=SIZE))
    np.testing.assert_array_equal([example["pixels"] for example in plain], pixels)
    flipped = PixelDataset(dataset_of(pixels), IGPTImageProcessor(size=SIZE), augment="flip", seed=3)
    mirrored = []
    for key in range(21):
        example = flipped[key]
        assert (example["epoch"], example["image"]) == divmod(key, 7)
        image = pixels[key % 7]
        mirrored.append(bool((example["pixels"] == image[:, ::-1]).all()))
        assert mirrored[-1] or (example["pixels"] == image).all()
    assert 3 < sum(mirrored) < 18 and mirrored[:7] != mirrored[7:14]
    crops = PixelDataset(dataset_of(pixels), IGPTImageProcessor(size=SIZE), augment="crop_flip", seed=3, padding=2)
    together, alone = crops.__getitems__([9, 2, 16]), [crops[key] for key in (9, 2, 16)]
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_array_equal(first["pixels"], second["pixels"])
    assert (together[0]["pixels"] != together[1]["pixels"]).any()
    # Every pixel is one of the image, for padding reflects.
    colors = {tuple(color) for color in pixels[2].reshape(-1, 3)}
    assert {tuple(color) for color in together[0]["pixels"].reshape(-1, 3)} <= colors


def test_imagenets_crops_are_those_of_tokens():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3), dtype=np.uint8)
    processor = IGPTImageProcessor(size=8, do_center_crop=True, crop_size=14)
    dataset = PixelDataset(dataset_of(pixels), processor, augment="random_resized_crop", seed=5)
    for key in (0, 4, 8):
        options = {"seed": 5, "epoch": key // 3, "index": key % 3, "shorter_side": (16, 24), "crop_size": 14}
        crop = random_resized_crop(Image.fromarray(pixels[key % 3]), **options)
        expected = np.asarray(crop.resize((8, 8), Image.Resampling.BILINEAR))
        np.testing.assert_array_equal(dataset[key]["pixels"], expected)
    assert resized_sides(14) == (16, 24) and resized_sides(224) == (256, 384)
    # Held-out images are cropped in the middle.
    held_out = PixelDataset(dataset_of(pixels), processor)
    np.testing.assert_array_equal(held_out[1]["pixels"], processor.pixels([Image.fromarray(pixels[1])])[0])


def test_a_batch_of_pixels():
    pixels = make_pixels(4)
    batch = PixelCollator()([{"pixels": image} for image in pixels])["pixel_values"]
    assert (batch.dtype, batch.shape) == (torch.float32, (4, 3, HEIGHT, WIDTH))
    np.testing.assert_allclose(batch.permute(0, 2, 3, 1), pixels / 127.5 - 1, atol=1e-6)
    assert batch.min() >= -1 and batch.max() <= 1


def test_what_is_refused():
    processor = IGPTImageProcessor(size=SIZE)
    damaged = PixelDataset(dataset_of(make_pixels(3), damaged=[1]), processor)
    with pytest.raises(ValueError, match=r"The image in row 1, file image-1.png can't be used"):
        damaged[1]
    with pytest.raises(ValueError, match="`images` must hold at least one image"):
        PixelDataset(dataset_of(make_pixels(1)).select([]), processor)
    with pytest.raises(ValueError, match="`padding` must be smaller than both sides"):
        PixelDataset(dataset_of(make_pixels(1)), processor, augment="crop", padding=5)
    with pytest.raises(ValueError, match="`augment` must be one of"):
        PixelDataset(dataset_of(make_pixels(1)), processor, augment="turn")
