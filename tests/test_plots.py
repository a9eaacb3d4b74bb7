import itertools
import math
import os

import numpy as np
import pytest
from PIL import Image

from hf_igpt.plots import (
    BACKGROUND,
    GAP,
    MISSING,
    completion_grid,
    hide_region,
    image_grid,
    palette_swatch,
    quantization_grid,
    save_loss_curve,
    save_png,
)


def drawn(count: int, height: int = 3, width: int = 4, seed: int = 0) -> list[Image.Image]:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def cell(grid: Image.Image, row: int, column: int, size: tuple[int, int], top: int = GAP) -> np.ndarray:
    """The pixels of one cell, taken where the layout says: a gap before each."""
    left, upper = GAP + column * (size[0] + GAP), top + row * (size[1] + GAP)
    return np.asarray(grid.crop((left, upper, left + size[0], upper + size[1])))


def enlarged(image: Image.Image, factor: int) -> np.ndarray:
    return np.asarray(image).repeat(factor, axis=0).repeat(factor, axis=1)


@pytest.mark.parametrize(("count", "columns"), [(1, None), (5, None), (6, 2), (4, 7)])
def test_a_grid_holds_every_image_unsmoothed(count, columns):
    images = drawn(count)
    grid = image_grid(images, columns)
    columns = columns or math.ceil(math.sqrt(count))
    factor, rows = 24, math.ceil(count / columns)
    assert grid.size == (GAP + columns * (4 * factor + GAP), GAP + rows * (3 * factor + GAP))
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        np.testing.assert_array_equal(cell(grid, row, column, (96, 72)), enlarged(image, factor))
    for number in range(count, rows * columns):
        row, column = divmod(number, columns)
        assert (cell(grid, row, column, (96, 72)) == BACKGROUND).all()


def test_large_images_are_not_reduced():
    images = drawn(2, 130, 150)
    np.testing.assert_array_equal(cell(image_grid(images), 0, 1, (150, 130)), np.asarray(images[1]))


def test_a_grid_of_nothing():
    with pytest.raises(ValueError, match="`images` must hold at least one image, got none"):
        image_grid([])


def test_completions_stand_between_the_given_part_and_the_original():
    originals, completions = drawn(2), [drawn(3, seed=1), drawn(3, seed=2)]
    given = [hide_region(image, np.arange(3)[:, None] >= np.ones(4)) for image in originals]
    grid = completion_grid(given, completions, originals)
    assert grid.size == (GAP + 5 * (96 + GAP), 22 + 2 * (72 + GAP))
    assert (np.asarray(grid)[:20] != BACKGROUND).any()
    for row in range(2):
        expected = [given[row], *completions[row], originals[row]]
        for column, image in enumerate(expected):
            np.testing.assert_array_equal(cell(grid, row, column, (96, 72), top=22), enlarged(image, 24))
    with pytest.raises(ValueError, match="shorter"):
        completion_grid(given, completions, originals[:1])


@pytest.mark.parametrize("share", [0, 0.5, 1])
def test_what_is_hidden(share):
    image = drawn(1)[0]
    before = np.asarray(image).copy()
    region = np.random.default_rng(0).random((3, 4)) < share
    assert region.mean() == pytest.approx(share, abs=0.3)
    hidden = np.asarray(hide_region(image, region))
    np.testing.assert_array_equal(hidden[~region], before[~region])
    assert (hidden[region] == MISSING).all()
    np.testing.assert_array_equal(np.asarray(image), before)


@pytest.mark.parametrize("num_colors", [2, 17, 512, 4096])
def test_a_swatch_holds_every_colour_from_dark_to_bright(num_colors):
    palette = np.random.default_rng(num_colors).uniform(0, 255, (num_colors, 3))
    swatch = np.asarray(palette_swatch(palette))
    columns = math.ceil(math.sqrt(num_colors))
    side = swatch.shape[1] // columns
    squares = swatch.reshape(-1, side, columns, side, 3)
    assert (squares == squares[:, :1, :, :1]).all()
    colors = squares[:, 0, :, 0].reshape(-1, 3)
    assert sorted(map(tuple, colors[:num_colors].tolist())) == sorted(map(tuple, np.rint(palette).tolist()))
    assert (np.diff(colors[:num_colors] @ [0.299, 0.587, 0.114]) >= 0).all()
    assert (colors[num_colors:] == BACKGROUND).all()


def test_colours_before_and_after_stand_above_each_other():
    """Also in a last row that isn't full."""
    originals, quantized = drawn(5, 4, 4), drawn(5, 4, 4, seed=1)
    grid = quantization_grid(originals, quantized, "7 colours", columns=3)
    for number in range(5):
        block, column = divmod(number, 3)
        for row, images in ((2 * block, originals), (2 * block + 1, quantized)):
            found = cell(grid, row, column, (96, 96), top=22 + GAP)
            np.testing.assert_array_equal(found, enlarged(images[number], 24))
    assert (cell(grid, 2, 2, (96, 96), top=22 + GAP) == BACKGROUND).all()


def test_the_psnr_of_the_title(monkeypatch):
    texts = []
    draw = "PIL.ImageDraw.ImageDraw.text"
    monkeypatch.setattr(draw, lambda self, position, text, **options: texts.append(text))
    black, grey = Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), (10, 10, 10))
    quantization_grid([black], [grey], "16 colours")
    quantization_grid([grey], [grey], "512 colours")
    assert texts == [
        f"above: original, below: 16 colours, PSNR of these images {20 * math.log10(25.5):.1f} dB",
        "above: original, below: 512 colours, PSNR of these images exact",
    ]


def test_a_png_is_whole_or_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "new folder ü" / "picture.png"
    old, new = drawn(2)
    assert save_png(old, path) == path
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(old))

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_png(new, path)
    with Image.open(path) as picture:
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(old))
    assert [file.name for file in path.parent.iterdir()] == ["picture.png"]


def test_the_loss_curve_draws_both_losses_and_the_references(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    lines, references = {}, []
    plot, axhline = Axes.plot, Axes.axhline

    def recorded(self, *points, label=None, **options):
        lines[label] = [list(values) for values in points]
        return plot(self, *points, label=label, **options)

    def recorded_reference(self, height, label, **options):
        references.append((height, label))
        return axhline(self, height, label=label, **options)

    monkeypatch.setattr(Axes, "plot", recorded)
    monkeypatch.setattr(Axes, "axhline", recorded_reference)
    history = [{"step": 1, "loss": 2.8}, {"step": 2, "loss": 2.5}, {"step": 2, "eval_loss": 2.6}, {"step": 2}]
    path = save_loss_curve(history, tmp_path / "loss.png", {"unigram": 2.1})
    assert lines == {"train": [[1, 2], [2.8, 2.5]], "validation": [[2], [2.6]]}
    assert references == [(2.1, "unigram (2.100)")]
    with Image.open(path) as picture:
        assert picture.size == (840, 480) and len(picture.convert("RGB").getcolors(10**6)) > 10
    assert [file.name for file in tmp_path.iterdir()] == ["loss.png"]


def test_a_run_that_logged_nothing_has_a_curve_too(tmp_path, recwarn):
    with Image.open(save_loss_curve([], tmp_path / "loss.png")) as picture:
        assert picture.format == "PNG"
    assert [str(warning.message) for warning in recwarn] == []


def test_titles_do_not_overlap():
    grid = np.asarray(image_grid(drawn(3, 2, 2), column_titles=["a", "a title wider than its column", "c"]))
    ink = np.flatnonzero((grid[:20] != BACKGROUND).any(axis=(0, 2)))
    gaps = [later - earlier for earlier, later in itertools.pairwise(ink) if later - earlier > 20]
    assert len(gaps) >= 1 and ink[-1] < grid.shape[1]
