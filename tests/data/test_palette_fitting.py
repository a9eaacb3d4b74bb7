"""Palettes by k-means: as good as scikit-learn's or better, the same bytes however the data comes, no bad input."""

import io
import json
import logging
import math

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_samples import dataset_of, dataset_of_rows, make_pixels, png
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, load_sample_images

from hf_igpt.data import color_kmeans
from hf_igpt.data.palette_fitting import count_colors, fit_histogram, fit_palette
from hf_igpt.image_processing_igpt import IGPTImageProcessor
from hf_igpt.palette_igpt import PaletteLookup, rgb_codes


def psnr_of(pixels, palette):
    """dB between pixels and the rounded colours of their tokens, from the definition."""
    decoded = np.rint(palette)[PaletteLookup(palette).quantize(pixels)]
    error = ((decoded - pixels) ** 2).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def photo(name):
    """Every 31st pixel of one of scikit-learn's two photographs: (pixels, 3)."""
    return load_sample_images().images[["china", "flower"].index(name)].reshape(-1, 3)[::31]


def digits(color):
    levels = np.rint(load_digits().images[:400] * 255 / 16)[..., None]
    tint = np.random.default_rng(0).uniform(0, 1, (400, 1, 1, 3)) if color else np.ones(3)
    return np.rint(levels * tint).astype(np.uint8).reshape(-1, 3)


def noise():
    return np.random.default_rng(0).integers(0, 256, (2000, 3), dtype=np.uint8)


IMAGE_SETS = {
    "china": lambda: photo("china"),
    "flower": lambda: photo("flower"),
    "digits": lambda: digits(color=False),
    "colored digits": lambda: digits(color=True),
    "noise": noise,
}


@pytest.mark.parametrize("name", IMAGE_SETS)
@pytest.mark.parametrize("num_colors", [3, 8, 64])
def test_never_worse_than_scikit_learn(name, num_colors):
    pixels = IMAGE_SETS[name]()
    fitted = fit_histogram(count_colors([pixels]), num_colors)
    if fitted.num_distinct <= num_colors:
        assert fitted.psnr == math.inf
        return
    kmeans = KMeans(n_clusters=num_colors, n_init=1, random_state=0).fit(pixels.astype(np.float64))
    assert len(fitted.palette) == num_colors
    assert psnr_of(pixels, fitted.palette) >= psnr_of(pixels, np.clip(kmeans.cluster_centers_, 0, 255)) - 1e-9


def best_grey_error(levels, weights, num_colors):
    """The least possible weighted squared error of grey levels: dynamic programming over intervals."""
    total, first, second = (np.concatenate([[0], np.cumsum(weights * levels**power)]) for power in (0, 1, 2))

    def cost(i, j):
        return second[j] - second[i] - (first[j] - first[i]) ** 2 / (total[j] - total[i])

    best = [0.0] + [math.inf] * len(levels)
    for _ in range(num_colors):
        best = [math.inf] + [min(best[i] + cost(i, j) for i in range(j)) for j in range(1, len(levels) + 1)]
    return best[-1]


@pytest.mark.parametrize("num_colors", [2, 7, 8, 13])
def test_grey_images_reach_the_optimum(num_colors):
    pixels = digits(color=False)
    levels, weights = np.unique(pixels[:, 0], return_counts=True)
    palette = fit_histogram(count_colors([pixels]), num_colors).palette
    error = (((levels[:, None] - palette[:, 0]) ** 2).min(axis=1) * weights).sum()
    assert error <= best_grey_error(levels.astype(float), weights, num_colors) * (1 + 1e-9)
    np.testing.assert_allclose(palette, palette[:, :1].repeat(3, axis=1), rtol=0, atol=1e-9)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 60),
    num_colors=st.integers(2, 12),
    step=st.sampled_from([1, 17, 128]),
)
def test_small_sets(seed, count, num_colors, step):
    """Repeated colours, few colours, colours side by side: a valid palette in order, and the PSNR it says."""
    pixels = (np.random.default_rng(seed).integers(0, 256, (count, 3)) // step * step).astype(np.uint8)
    pixels[0], pixels[1] = 0, 255
    fitted = fit_histogram(count_colors([pixels]), num_colors)
    distinct = np.unique(pixels, axis=0)
    assert fitted.num_distinct == len(distinct)
    assert fitted.num_pixels == count
    assert len(fitted.palette) == min(num_colors, len(distinct))
    assert len(np.unique(fitted.palette, axis=0)) == len(fitted.palette)
    assert np.all(np.diff(fitted.palette.sum(axis=1)) >= 0)
    assert fitted.psnr == pytest.approx(psnr_of(pixels, fitted.palette))
    if len(distinct) <= num_colors:
        assert {tuple(row) for row in fitted.palette} == {tuple(row) for row in distinct}


def test_every_color_is_used():
    pixels = photo("flower")[::4]
    palette = fit_histogram(count_colors([pixels]), 128).palette
    assert len(np.unique(PaletteLookup(palette).quantize(pixels))) == 128


def test_centers_move_to_where_one_is_missing():
    """Two centres share the dark colours and one serves two bright groups: Lloyd's iterations alone stay there."""
    dark, bright = np.arange(0, 8), np.concatenate([np.arange(180, 188), np.arange(230, 238)])
    codes = rgb_codes(np.concatenate([dark, bright])[:, None].repeat(3, axis=1).astype(np.uint8))
    colors = color_kmeans._histogram(codes, np.ones(24, dtype=np.int64), 8)
    start = np.array([[1.5] * 3, [5.5] * 3, [208.5] * 3])
    stuck = color_kmeans._lloyd(colors, start, 50, 0.0)
    np.testing.assert_allclose(stuck.centers, start)
    moved = color_kmeans._move_centers(colors, start)
    np.testing.assert_allclose(np.sort(moved.centers, axis=0), [[3.5] * 3, [183.5] * 3, [233.5] * 3])
    assert moved.error < stuck.error / 10


def test_fewer_colors_than_asked_are_given_exactly(caplog):
    pixels = np.array([[0, 0, 0], [9, 8, 7], [9, 8, 7], [255, 255, 255]], dtype=np.uint8).reshape(1, 2, 2, 3)
    with caplog.at_level(logging.WARNING):
        fitted = fit_palette(pixels, num_colors=16)
    assert "3 distinct colours of the 16 asked for" in caplog.text
    assert fitted.palette.tolist() == [[0, 0, 0], [9, 8, 7], [255, 255, 255]]
    assert fitted.psnr == math.inf
    assert fitted.requested_colors == 16
    metrics = json.loads(json.dumps(fitted.metrics(), allow_nan=False))
    assert metrics["psnr_db"] is None
    assert metrics["num_colors"] == metrics["num_distinct"] == 3


def test_one_color_is_refused():
    with pytest.raises(ValueError, match="at least 2 distinct colours, the data has 1"):
        fit_palette(np.full((2, 4, 4, 3), 7, dtype=np.uint8))


@pytest.mark.parametrize("images", [[], iter(())])
def test_no_images(images):
    with pytest.raises(ValueError, match="at least 2 distinct colours, the data has 0"):
        fit_palette(images)


@pytest.mark.parametrize("num_colors", [1, 0, -3, 4097, 16.0, True, "16", None])
def test_bad_number_of_colors(num_colors):
    with pytest.raises(ValueError, match="`num_colors` must be"):
        fit_palette(make_pixels(), num_colors=num_colors)


def test_the_largest_number_of_colors():
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 3), dtype=np.uint8)
    assert len(fit_histogram(count_colors([pixels]), 4096).palette) == len(np.unique(pixels, axis=0))


def stream(pixels):
    return dataset_of(pixels).to_iterable_dataset(num_shards=3)


def test_every_source_gives_the_same_bytes(tmp_path):
    pixels = make_pixels(count=40)
    (tmp_path / "a.png").write_bytes(png(pixels[0]))
    expected = fit_palette(pixels, num_colors=9).palette.tobytes()
    images = [Image.fromarray(image) for image in pixels]
    order = np.random.default_rng(0).permutation(len(pixels))
    for source in (
        list(pixels),
        images,
        [tmp_path / "a.png", *images[1:]],
        (image for image in images),
        pixels[order],
        torch.from_numpy(pixels),
        torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255,
        dataset_of(pixels),
        stream(pixels),
        dataset_of(pixels).select(order),
        # One tall image, as if the batches were of another size.
        pixels.reshape(1, -1, pixels.shape[2], 3),
    ):
        assert fit_palette(source, num_colors=9).palette.tobytes() == expected


def test_the_seed_decides():
    pixels = noise()[None]
    palettes = [fit_palette(pixels, num_colors=32, seed=seed).palette for seed in (0, 0, 1)]
    assert palettes[0].tobytes() == palettes[1].tobytes() != palettes[2].tobytes()


def test_counts_are_exact_and_add_up():
    pixels = np.array([[1, 2, 3]] * 5 + [[3, 2, 1]], dtype=np.uint8)
    counts = count_colors([pixels, pixels[:2].reshape(1, 2, 3)])
    assert counts.dtype == np.int64
    assert sorted(counts[counts > 0].tolist()) == [1, 7]


def test_frequent_colors_weigh_more():
    """Two colours near each other, one of them common: the centre of both lies by the common one."""
    pixels = np.array([[100] * 3] * 99 + [[110] * 3] + [[200] * 3] * 5, dtype=np.uint8)
    palette = fit_histogram(count_colors([pixels]), 2).palette
    np.testing.assert_allclose(palette, [[100.1] * 3, [200] * 3])


def test_the_processors_size_and_crop_come_first():
    images = [Image.fromarray(image) for image in make_pixels(count=6)]
    processor = IGPTImageProcessor(size=2, do_center_crop=True, crop_size=4)
    fitted = fit_palette(images, num_colors=5, processor=processor)
    assert fitted.num_pixels == 6 * 4
    assert fitted.palette.tobytes() == fit_palette(processor.pixels(images), num_colors=5).palette.tobytes()


def test_grey_and_mixed_images():
    images = [
        Image.fromarray(image).convert(mode) for image, mode in zip(make_pixels(3), ("L", "P", "RGBA"), strict=True)
    ]
    fitted = fit_palette(images, num_colors=4)
    assert fitted.num_pixels == 3 * images[0].width * images[0].height


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_damaged_row_is_named(as_stream):
    dataset = dataset_of(make_pixels(), damaged=[5])
    with pytest.raises(ValueError, match="^row 5: image bytes"):
        fit_palette(dataset.to_iterable_dataset() if as_stream else dataset)


def test_an_unsuitable_array_is_named():
    good = make_pixels(1)[0]
    for bad, message in (
        (good * np.nan, "with NaN"),
        (good[..., :2], "channels, got 2"),
        ("http://x/y.png", "address"),
    ):
        with pytest.raises(ValueError, match=f"^image 1: .*{message}"):
            fit_palette([good, bad])
    with pytest.raises(ValueError, match="with NaN"):
        fit_palette(make_pixels() * np.nan)


def test_rows_that_hold_an_address_or_a_strange_path(tmp_path):
    (tmp_path / "x.png").write_bytes(png(make_pixels(1)[0]))
    for path in ("http://127.0.0.1:1/x.png", str(tmp_path / "x.png")):
        with pytest.raises(ValueError, match="^row 0: the row holds the"):
            fit_palette(dataset_of_rows([{"bytes": None, "path": path}]))
    allowed = dataset_of_rows([{"bytes": None, "path": str(tmp_path / "x.png")}])
    assert fit_palette(allowed, num_colors=3, image_roots=[tmp_path]).num_pixels == make_pixels(1)[0][..., 0].size


def test_columns():
    rows = dataset_of(make_pixels())
    two = rows.add_column("other", rows["label"]).cast_column("other", datasets.Value("int64"))
    assert fit_palette(two, num_colors=3, image_column="image").num_pixels > 0
    with pytest.raises(ValueError, match="'other'"):
        fit_palette(two, image_column="other")
    with pytest.raises(ValueError, match="needs a data set, got ndarray"):
        fit_palette(make_pixels(), image_column="image")
    with pytest.raises(ValueError, match="choose one of train, test"):
        fit_palette(datasets.DatasetDict(train=rows, test=rows))


def test_a_single_image_is_one_image_not_its_rows():
    pixels = make_pixels(1)[0]
    buffer = io.BytesIO(png(pixels))
    for image in (pixels, Image.open(buffer), png(pixels), torch.from_numpy(pixels)):
        assert fit_palette(image, num_colors=3).num_pixels == pixels[..., 0].size
