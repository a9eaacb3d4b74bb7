import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import make_processor, nearest_colors
from PIL import Image

from hf_igpt.data.augmentation import AUGMENTATIONS, augmented_positions, random_resized_crop
from hf_igpt.data.randomness import random_integers, random_permutation, random_words


keys = st.integers(0, 2**40)


def augmented_pixels(augment, pixels, top, left, flip, padding):
    """The recipe on pixels: reflection padding, crop, flip."""
    height, width = pixels.shape[:2]
    if "crop" in augment:
        padded = np.pad(pixels, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        pixels = padded[top : top + height, left : left + width]
    return pixels[:, ::-1] if "flip" in augment and flip else pixels


@settings(max_examples=60, deadline=None)
@given(
    augment=st.sampled_from(AUGMENTATIONS),
    height=st.integers(2, 9),
    width=st.integers(2, 9),
    padding=st.integers(1, 4),
    num_channels=st.sampled_from([1, 3]),
    seed=st.integers(-(2**63), 2**64),
    epoch=keys,
    index=keys,
)
def test_on_tokens_equals_on_pixels_before_quantization(
    augment, height, width, padding, num_channels, seed, epoch, index
):
    padding = min(padding, height - 1, width - 1)
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    words = random_words("augment", seed, epoch, np.array([index]), 3)
    top, left = (int(random_integers(words[0, draw], 2 * padding + 1)) for draw in (0, 1))
    expected = augmented_pixels(augment, pixels, top, left, int(random_integers(words[0, 2], 2)), padding)
    processor = make_processor()
    if num_channels == 1:
        tokens, expected = nearest_colors(pixels[None], processor), nearest_colors(expected[None], processor)
    else:
        tokens, expected = pixels.reshape(1, -1), expected.reshape(1, -1)
    positions = augmented_positions(
        augment, (height, width), num_channels, seed=seed, epochs=epoch, indices=[index], padding=padding
    )
    np.testing.assert_array_equal(np.take_along_axis(tokens, positions, axis=1), expected)


def test_every_crop_and_flip_is_drawn_equally_often():
    positions = augmented_positions("crop_flip", (10, 10), seed=3, epochs=0, indices=np.arange(16200))
    kinds, counts = np.unique(positions, axis=0, return_counts=True)
    assert len(kinds) == 9 * 9 * 2
    assert counts.min() > 50 and counts.max() < 160


def test_an_example_is_a_function_of_its_key():
    epochs, images = np.repeat([0, 1, 2], 50), np.tile(np.arange(50), 3)
    whole = augmented_positions("crop_flip", (8, 8), seed=5, epochs=epochs, indices=images)
    order = np.random.default_rng(0).permutation(150)
    parts = [
        augmented_positions("crop_flip", (8, 8), seed=5, epochs=epochs[part], indices=images[part])
        for part in np.array_split(order, 7)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), whole[order])
    per_epoch = whole.reshape(3, 50, -1)
    assert (per_epoch[0] != per_epoch[1]).any(axis=1).mean() > 0.9
    other_seed = augmented_positions("crop_flip", (8, 8), seed=6, epochs=epochs, indices=images)
    assert (other_seed != whole).any(axis=1).mean() > 0.9


def test_purposes_draw_independent_numbers():
    order = np.argsort(random_permutation("order", 0, 0, 4000))
    top = random_words("augment", 0, 0, np.arange(4000), 1)[:, 0].astype(np.float64)
    assert abs(np.corrcoef(order, top)[0, 1]) < 0.05


def test_random_numbers_stay_what_they_are():
    """A changed number would change every split and every resumed run without a word."""
    words = random_words("order", 7, np.array([0, 1]), np.array([0, 5]), 2)
    assert words.tolist() == [[7047539723984198308, 3588305885968650894], [5080804197851344892, 8944647222961460130]]
    assert random_permutation("order", 7, 1, 8).tolist() == [5, 4, 6, 2, 1, 3, 7, 0]


@pytest.mark.parametrize(
    ("augment", "grid", "padding", "message"),
    [
        ("rotate", (8, 8), 4, "`augment` must be one of none, flip, crop, crop_flip, got 'rotate'"),
        ("crop", (8, 4), 4, "padding 4 for the grid 8x4"),
        ("crop", (8, 8), 0, "`padding` must be at least 1, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(augment, grid, padding, message):
    with pytest.raises(ValueError, match=message):
        augmented_positions(augment, grid, seed=0, epochs=0, indices=[0], padding=padding)


def gradient_image(width, height):
    """Red grows to the right, green downwards: a pixel tells where it came from."""
    across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([across, down, np.zeros_like(across)], axis=-1).astype(np.uint8))


def test_resized_crop_is_the_two_steps_of_the_paper():
    image = gradient_image(500, 400)
    for index in range(5):
        words = random_words("resized_crop", 1, 2, np.array([index]), 3)[0]
        side = 256 + int(random_integers(words[0], 129))
        resized = image.resize((round(500 * side / 400), side), Image.Resampling.BILINEAR)
        left = int(random_integers(words[1], resized.width - 223))
        top = int(random_integers(words[2], resized.height - 223))
        two_steps = np.asarray(resized.crop((left, top, left + 224, top + 224)), dtype=int)
        crop = random_resized_crop(image, seed=1, epoch=2, index=index)
        assert crop.size == (224, 224)
        assert np.abs(np.asarray(crop, dtype=int) - two_steps).max() <= 2


def test_resized_crop_reaches_both_ends_of_its_ranges():
    image = gradient_image(10, 10)
    spans, corners = set(), set()
    for index in range(400):
        crop = np.asarray(
            random_resized_crop(image, seed=0, epoch=0, index=index, shorter_side=(4, 6), crop_size=4), dtype=int
        )
        spans.add(int(crop[0, -1, 0] - crop[0, 0, 0]) // 10)
        corners.add(tuple(crop[0, 0, :2] // 20))
    # Three of the four pixels across 10, 8 and 6.7 of the image's ten, which rise by 28.3 each.
    assert spans == {19, 16, 14, 13}
    assert len(corners) > 8


@pytest.mark.parametrize("size", [(3000, 2), (2, 3000), (1, 1), (224, 224)])
def test_resized_crop_of_any_shape(size):
    assert random_resized_crop(Image.new("RGB", size), seed=0, epoch=0, index=0).size == (224, 224)


def test_resized_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="at least `crop_size`, got 200 to 384 for a crop of 224"):
        random_resized_crop(Image.new("RGB", (9, 9)), seed=0, epoch=0, index=0, shorter_side=(200, 384))
