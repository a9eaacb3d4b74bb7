"""Exact nearest colours against brute force, and what a palette may be."""

import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_igpt.palette_igpt import (
    CandidateLists,
    PaletteLookup,
    as_palette,
    color_cells,
    palette_from_clusters,
    palette_hash,
    rgb_codes,
    split_codes,
)


def brute_force(points, palette):
    """float64 argmin of the squared distance, the first of equals; (points, 3) and (colours, 3) to (points,)."""
    nearest = []
    for start in range(0, len(points), 1024):
        block = points[start : start + 1024].astype(np.float64)
        nearest.append(((block[:, None, :] - palette[None]) ** 2).sum(-1).argmin(-1))
    return np.concatenate(nearest)


def probe_pixels(palette, seed=0, count=3000):
    """Random pixels, the corners of the cube, and pixels on and around the colours, where neighbours tie."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, 3))
    around = np.rint(palette[rng.integers(0, len(palette), count)]) + rng.integers(-2, 3, (count, 3))
    corners = np.array(np.meshgrid([0, 255], [0, 255], [0, 255])).reshape(3, -1).T
    return np.clip(np.concatenate([pixels, around, corners]), 0, 255).astype(np.uint8)


def assert_exact(palette, seed=0):
    pixels = probe_pixels(palette, seed)
    lookup = PaletteLookup(palette)
    expected = brute_force(pixels, palette)
    for _ in ("filled now", "read from the table"):
        tokens = lookup.quantize(pixels)
        assert tokens.dtype == np.uint16
        np.testing.assert_array_equal(tokens, expected)


@pytest.mark.parametrize("num_colors", [2, 3, 17, 512, 4096])
def test_random_palettes_are_exact(num_colors):
    assert_exact(np.random.default_rng(num_colors).uniform(0, 255, (num_colors, 3)))


def test_largest_palette_is_exact():
    palette = np.random.default_rng(0).uniform(0, 255, (65535, 3))
    pixels = probe_pixels(palette, count=200)
    np.testing.assert_array_equal(PaletteLookup(palette).quantize(pixels), brute_force(pixels, palette))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_colors=st.integers(2, 60),
    step=st.sampled_from([64.0, 51.0, 8.0, 1.0, 0.5, 1e-3, 1e-7, 1e-9, 1e-12]),
    spread=st.sampled_from([3, 40, 10_000]),
    grey=st.booleans(),
)
def test_palettes_with_ties_are_exact(seed, num_colors, step, spread, grey):
    """Lattices make many equal distances and duplicates; tiny steps make distances that differ by rounding alone."""
    rng = np.random.default_rng(seed)
    shape = (num_colors, 1 if grey else 3)
    palette = rng.uniform(0, 255) + step * rng.integers(-spread, spread + 1, shape)
    assert_exact(np.clip(np.broadcast_to(palette, (num_colors, 3)), 0, 255), seed)


def test_equal_colors_go_to_the_first():
    palette = np.array([[9.0, 9.0, 9.0], [200.0, 0.0, 0.0], [9.0, 9.0, 9.0], [200.0, 0.0, 0.0]])
    tokens = PaletteLookup(palette).quantize(np.array([[10, 9, 9], [190, 0, 0]], dtype=np.uint8))
    assert tokens.tolist() == [0, 1]


def test_a_pixel_half_way_goes_to_the_lower_index():
    for palette in ([[0, 0, 0], [2, 0, 0]], [[2, 0, 0], [0, 0, 0]]):
        assert PaletteLookup(palette).quantize(np.array([[1, 0, 0]], dtype=np.uint8)).tolist() == [0]


def test_pruning_leaves_few_candidates():
    """What makes it fast; an exactness test passes with lists of everything too."""
    lists = CandidateLists(np.random.default_rng(0).uniform(0, 255, (512, 3)))
    assert len(lists._candidates) / len(lists._counts) < 4
    assert len(lists._counts) == 32**3


def test_points_between_levels_are_exact():
    """k-means asks for the means of the pixels of a cell, which aren't whole."""
    rng = np.random.default_rng(0)
    palette = rng.uniform(0, 255, (300, 3))
    levels = rng.integers(0, 32, (3, 2000)) * 8
    points = levels + rng.uniform(0, 7, (3, 2000))
    tokens = CandidateLists(palette).nearest(*points, color_cells(*levels))
    np.testing.assert_array_equal(tokens, brute_force(points.T, palette))


def test_the_table_is_filled_only_where_asked():
    lookup = PaletteLookup(np.random.default_rng(0).uniform(0, 255, (16, 3)))
    lookup.quantize(np.array([[1, 2, 3], [1, 2, 3], [255, 255, 255]], dtype=np.uint8))
    assert np.count_nonzero(lookup._table) == 2


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 3), (2, 5, 4, 3)])
def test_any_leading_shape(shape):
    palette = np.random.default_rng(0).uniform(0, 255, (16, 3))
    pixels = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    tokens = PaletteLookup(palette).quantize(pixels)
    assert tokens.shape == shape[:-1]
    if pixels.size:
        np.testing.assert_array_equal(tokens.ravel(), brute_force(pixels.reshape(-1, 3), palette))


def test_pixels_that_are_not_contiguous():
    palette = np.random.default_rng(0).uniform(0, 255, (16, 3))
    pixels = np.random.default_rng(1).integers(0, 256, (6, 4, 3), dtype=np.uint8)
    lookup = PaletteLookup(palette)
    flipped = lookup.quantize(pixels[:, ::-1])
    np.testing.assert_array_equal(flipped, lookup.quantize(pixels)[:, ::-1])


@pytest.mark.parametrize(
    "pixels", [np.zeros((2, 3)), np.zeros((2, 4), dtype=np.uint8), [[0, 0, 0]], np.zeros((2, 3), dtype=np.int8)]
)
def test_other_pixels_are_refused(pixels):
    with pytest.raises(ValueError, match="`pixels` must be a uint8 array"):
        PaletteLookup([[0, 0, 0], [1, 1, 1]]).quantize(pixels)


def test_codes_go_there_and_back():
    pixels = np.random.default_rng(0).integers(0, 256, (7, 5, 3), dtype=np.uint8)
    np.testing.assert_array_equal(np.stack(split_codes(rgb_codes(pixels)), axis=-1), pixels)
    assert len(np.unique(rgb_codes(pixels))) == len(np.unique(pixels.reshape(-1, 3), axis=0))


@pytest.mark.parametrize(
    "palette",
    [
        [[0, 1, 2], [3.5, 4, 5]],
        np.array([[0, 1, 2], [3.5, 4, 5]]),
        np.array([[0, 1, 2], [3.5, 4, 5]], dtype=np.float32),
        torch.tensor([[0, 1, 2], [3.5, 4, 5]]),
        torch.tensor([[0, 1, 2], [3.5, 4, 5]], dtype=torch.bfloat16, requires_grad=True),
    ],
)
def test_as_palette_takes_lists_arrays_and_tensors(palette):
    array = as_palette(palette)
    assert array.dtype == np.float64
    np.testing.assert_array_equal(array, [[0, 1, 2], [3.5, 4, 5]])


GOOD = [[0.0, 0.0, 0.0], [255.0, 1.0, 2.0]]


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        ([[0, 0, float("nan")], [1, 1, 1]], "row 0, channel 2"),
        ([[0, 0, 0], [1, float("inf"), 1]], "row 1, channel 1"),
        ([[0, 0, 0], [255.001, 1, 1]], "255.001"),
        ([[0, 0, 0], [-0.001, 1, 1]], "-0.001"),
        ([[0, 0, 0]], "2 to 65535 colours, got 1"),
        (np.zeros((65536, 3)), "2 to 65535 colours, got 65536"),
        ([[0, 0], [1, 1]], r"\(colours, 3\), got \(2, 2\)"),
        (np.zeros((2, 3, 1)), r"\(colours, 3\)"),
        ([[0, 0, 0], [1, 1]], "unequal length"),
        ([["0", "0", "0"], ["1", "1", "1"]], "must hold numbers"),
        (np.array(GOOD, dtype=object), "type object"),
        ([[None, 0, 0], [1, 1, 1]], "type object"),
        ([[10**400, 0, 0], [1, 1, 1]], "must hold numbers"),
        ([[1j, 0, 0], [1, 1, 1]], "must hold numbers"),
        ([[True, False, True], [True, True, True]], "must hold numbers"),
        ("palette.npy", "must hold numbers"),
        ({"a": 1}, "must hold numbers"),
        (3, "must have the shape"),
    ],
)
def test_bad_palettes_name_the_field(palette, message):
    with pytest.raises(ValueError, match=f"`palette`.*{message}"):
        as_palette(palette)


@pytest.mark.parametrize(("read", "name"), [(as_palette, "palette"), (palette_from_clusters, "clusters")])
def test_a_list_of_millions_of_colours_is_refused_before_it_is_made_an_array(read, name):
    start = time.process_time()
    with pytest.raises(ValueError, match=f"`{name}` must have 2 to 65535 colours, got 5000000"):
        read([[0, 0, 0]] * 5_000_000)
    assert time.process_time() - start < 0.5


@given(st.lists(st.lists(st.floats(0, 255), min_size=3, max_size=3), min_size=2, max_size=9))
def test_hash_survives_json(palette):
    assert palette_hash(json.loads(json.dumps(palette))) == palette_hash(np.array(palette))


def test_hash_tells_palettes_apart():
    changed = np.array(GOOD)
    changed[1, 0] = np.nextafter(255.0, 0.0)
    assert palette_hash(changed) != palette_hash(GOOD) != palette_hash(GOOD[::-1])
    # SHA-256 of the 48 bytes, computed apart from this package.
    assert palette_hash(GOOD) == "9f8f517748e099ae"
    assert palette_hash([[-0.0, 0.0, 0.0], [255.0, 1.0, 2.0]]) == palette_hash(GOOD)


def test_clusters_are_mapped_without_rounding():
    clusters = np.array([[-1.0, 0.0, 1.0], [0.123456789, -0.5, 0.25]])
    np.testing.assert_array_equal(palette_from_clusters(clusters.tolist()), 127.5 * (clusters + 1))


def test_clusters_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"`clusters`.*\[-1, 1\]; pass 0...255 values as `palette`"):
        palette_from_clusters([[0, 0, 0], [255, 255, 255]])
