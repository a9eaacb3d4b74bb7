"""Colour palettes and the exact nearest-colour lookup.

A palette is a float64 array of shape (colours, 3): RGB rows in 0...255, not rounded. A token is the index of a row.
"""

import functools
import hashlib
from typing import Any

import numpy as np


MIN_COLORS = 2
MAX_COLORS = 65535  # a token fits uint16, and one uint16 value is left to mark an empty table entry

_LEAF_SIDE = 8
_LEAF_BITS = 3
# Squared levels. Squared distances stay below 3 * 255**2 < 2e5, so float64 computes any of them, and any bound below,
# within 1e-9: a colour that loses by more than this loses in the final comparison too, whatever was rounded.
_MARGIN = 1e-6
_BLOCK_PAIRS = 1 << 16
_BLOCK_PIXELS = 1 << 15
_BLOCK_MISSING = 1 << 13  # looking for the nearest colour takes more memory a pixel than reading the table


def as_palette(palette: Any) -> np.ndarray:
    """Check a palette and return it as a float64 array of shape (colours, 3).

    Args:
        palette: RGB rows in 0...255, as nested lists, a NumPy array or a torch tensor. 2 to 65535 rows.

    Raises:
        ValueError: if shape, number type, count or range is wrong. Nothing is rounded or clipped.
    """
    array = _as_rows(palette, "palette")
    _check_count(len(array), "palette")
    _check_range(array, "palette", 0.0, 255.0, "RGB values in 0...255")
    return array


def palette_from_clusters(clusters: Any) -> np.ndarray:
    """Turn the `clusters` of transformers' ImageGPT, RGB rows in [-1, 1], into a palette: 127.5 * (c + 1), unrounded.

    Raises:
        ValueError: if `clusters` is not an array of shape (colours, 3) with finite values in [-1, 1].
    """
    array = _as_rows(clusters, "clusters")
    _check_range(array, "clusters", -1.0, 1.0, "RGB values in [-1, 1]; pass 0...255 values as `palette`")
    return as_palette(127.5 * (array + 1.0))


def palette_hash(palette: Any) -> str:
    """The first 16 hex digits of SHA-256 over the palette's little-endian float64 bytes, row by row."""
    return hashlib.sha256(as_palette(palette).astype("<f8").tobytes()).hexdigest()[:16]


def _check_count(count: int, name: str) -> None:
    if not MIN_COLORS <= count <= MAX_COLORS:
        raise ValueError(f"`{name}` must have {MIN_COLORS} to {MAX_COLORS} colours, got {count}.")


def _as_rows(values: Any, name: str) -> np.ndarray:
    # First, because making an array of a list with millions of rows takes seconds.
    if isinstance(values, list | tuple) and len(values) > MAX_COLORS:
        _check_count(len(values), name)
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"`{name}` must be rows of three numbers, got rows of unequal length.") from error
    if array.dtype.kind not in "iuf":
        raise ValueError(f"`{name}` must hold numbers, got values of type {array.dtype}.")
    if array.ndim != 2 or array.shape[1] != 3:
        raise ValueError(f"`{name}` must have the shape (colours, 3), got {array.shape}.")
    # Adding 0.0 turns -0.0 into 0.0, so that equal palettes have equal bytes and one hash.
    return np.ascontiguousarray(array, dtype=np.float64) + 0.0


def _check_range(array: np.ndarray, name: str, low: float, high: float, meaning: str) -> None:
    outside = ~((array >= low) & (array <= high))  # true for NaN as well
    if outside.any():
        row, channel = np.argwhere(outside)[0]
        raise ValueError(
            f"`{name}` must hold finite {meaning}; row {row}, channel {channel} is {array[row, channel]!r}."
        )


def rgb_codes(pixels: np.ndarray) -> np.ndarray:
    """Pixels of shape (..., 3), uint8, as the integers `red | green << 8 | blue << 16`: int64 of shape (...)."""
    flat = np.ascontiguousarray(pixels).reshape(-1)
    codes = np.empty(flat.size // 3, dtype=np.int64)
    if codes.size:
        # Reading four bytes at every third one takes a pixel and a byte of the next, which the mask removes: several
        # times faster than putting three strided channels together. The last pixel has no byte after it.
        codes[:-1] = np.ndarray(codes.size - 1, dtype="<u4", buffer=flat, strides=(3,))
        codes[-1] = int.from_bytes(flat[-3:].tobytes(), "little")
        codes &= 0xFFFFFF
    return codes.reshape(pixels.shape[:-1])


def split_codes(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The red, green and blue levels, int64, of such codes."""
    return codes & 255, (codes >> 8) & 255, codes >> 16


@functools.cache
def _cell_bits() -> np.ndarray:
    """The part of a cell's number that a level 0...255 of the blue channel decides; int64 of shape (256,)."""
    levels = np.arange(256) >> _LEAF_BITS
    return sum(((levels >> bit) & 1) << (3 * bit) for bit in range(8 - _LEAF_BITS))


def color_cells(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """Numbers, int64, of the cells of `CandidateLists` that hold these integer levels.

    Cells come from splitting the cube in two along each axis again and again, so a number interleaves the bits of the
    cell's position.
    """
    bits = _cell_bits()
    cells = (bits << 2).take(red)
    cells += (bits << 1).take(green)
    cells += bits.take(blue)
    return cells


class CandidateLists:
    """For every cell of 8 x 8 x 8 colours, the palette rows that can be nearest somewhere in that cell.

    Built from the whole cube downwards: each cell splits into eight, and a child keeps those of its parent's
    candidates that beat the colour nearest to the child's centre somewhere in the child. The difference of two squared
    distances is linear in the point, so its minimum over a box is known exactly, at a corner. About two candidates
    a cell remain of 512 colours.
    """

    def __init__(self, palette: np.ndarray):
        palette = as_palette(palette)
        self._channels = np.ascontiguousarray(palette.T)
        # Of equal colours only the first can win.
        candidates = np.sort(np.unique(palette, axis=0, return_index=True)[1])
        counts = np.array([len(candidates)])
        corners = np.zeros((1, 3), dtype=np.int64)
        side = 256
        while side > _LEAF_SIDE:
            side //= 2
            corners, counts, candidates = self._split(corners, counts, candidates, side)
        self._candidates = candidates
        self._counts = counts.astype(np.uint16)
        self._starts = np.cumsum(counts) - counts

    def _split(
        self, corners: np.ndarray, counts: np.ndarray, candidates: np.ndarray, side: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Split every cell into eight of the given side; works in blocks, so that temporary arrays stay small."""
        ends = np.cumsum(counts)
        octants = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)])
        corners = (corners[:, None, :] + octants * side).reshape(-1, 3)
        new_counts, new_candidates = [], []
        first = 0
        while first < len(counts):
            start = ends[first] - counts[first]
            last = max(first + 1, int(np.searchsorted(ends, start + _BLOCK_PAIRS // 8, side="right")))
            kept_counts, kept = self._prune(
                corners[8 * first : 8 * last], counts[first:last], candidates[start : ends[last - 1]], side
            )
            new_counts.append(kept_counts)
            new_candidates.append(kept)
            first = last
        return corners, np.concatenate(new_counts), np.concatenate(new_candidates)

    def _prune(
        self, corners: np.ndarray, parent_counts: np.ndarray, parent_candidates: np.ndarray, side: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Candidates of the children, and how many each has, in the order of cells and then of palette rows."""
        parent_starts = np.cumsum(parent_counts) - parent_counts
        counts = np.repeat(parent_counts, 8)
        starts = np.cumsum(counts) - counts
        sources = np.repeat(np.repeat(parent_starts, 8) - starts, counts)
        sources += np.arange(len(sources))
        candidates = parent_candidates.take(sources)

        half = (side - 1) / 2  # the pixels of a cell reach from its corner to corner + side - 1
        values = [channel.take(candidates) for channel in self._channels]
        distances = sum((value - np.repeat(corners[:, i] + half, counts)) ** 2 for i, value in enumerate(values))
        distances -= np.repeat(np.minimum.reduceat(distances, starts), counts)
        anchors = np.empty(len(counts), dtype=np.int64)
        nearest = np.flatnonzero(distances == 0)
        anchors[np.searchsorted(starts, nearest, side="right") - 1] = candidates[nearest]

        # |p - c|^2 - |p - a|^2 at the centre, less what the best corner of the box gains for c over the anchor a.
        for channel, value in zip(self._channels, values, strict=True):
            distances -= 2 * half * np.abs(value - np.repeat(channel[anchors], counts))
        keep = distances <= _MARGIN
        return np.add.reduceat(keep, starts, dtype=np.int64), candidates[keep]

    def nearest(self, red: np.ndarray, green: np.ndarray, blue: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """The row nearest to each point: float64 argmin of the squared distance, the lowest index among equals.

        Args:
            red, green, blue: float64 arrays of shape (points,), each point between the least and the largest level
                of its cell.
            cells: int64 array of shape (points,), as `color_cells` returns it.

        Returns:
            int64 array of shape (points,).
        """
        starts = self._starts.take(cells)
        tokens = self._candidates.take(starts)
        counts = self._counts.take(cells)
        # Longest lists first: those still to be compared in each round are then a prefix.
        open_points = np.flatnonzero(counts > 1)
        order = open_points[np.argsort(counts.take(open_points), kind="stable")[::-1]]
        if order.size == 0:
            return tokens
        points = [channel.take(order) for channel in (red, green, blue)]
        counts, starts, best = counts.take(order), starts.take(order), tokens.take(order)
        best_distances = self._distances(points, best)
        longer_than = len(order) - np.cumsum(np.bincount(counts))
        for position, rivals in enumerate(longer_than[1:-1], start=1):
            tokens_here = self._candidates.take(starts[:rivals] + position)
            distances = self._distances(points, tokens_here)
            closer = distances < best_distances[:rivals]
            np.copyto(best_distances[:rivals], distances, where=closer)
            np.copyto(best[:rivals], tokens_here, where=closer)
        tokens[order] = best
        return tokens

    def _distances(self, points: list[np.ndarray], rows: np.ndarray) -> np.ndarray:
        """Squared distances of the first points to these rows, added red, green, blue as a plain sum does."""
        total = None
        for channel, point in zip(self._channels, points, strict=True):
            difference = channel.take(rows)
            difference -= point[: len(rows)]
            difference *= difference
            total = difference if total is None else np.add(total, difference, out=total)
        return total


class PaletteLookup:
    """Exact nearest palette colour of any RGB pixel: the float64 argmin, the lowest index among equals.

    Keeps a table over all 256^3 colours, 32 MB, which is filled only where asked. A colour seen before costs one
    table read.

    Args:
        palette: as in `as_palette`.
    """

    def __init__(self, palette: Any):
        self._lists = CandidateLists(palette)
        self._table = np.zeros(1 << 24, dtype=np.uint16)  # token + 1; 0 where not asked yet

    def quantize(self, pixels: np.ndarray) -> np.ndarray:
        """Tokens, uint16 of shape (...), of RGB pixels, uint8 of shape (..., 3).

        Raises:
            ValueError: if `pixels` is not such an array.
        """
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[-1:] != (3,):
            received = f"{getattr(pixels, 'dtype', type(pixels).__name__)} of shape {getattr(pixels, 'shape', None)}"
            raise ValueError(f"`pixels` must be a uint8 array of shape (..., 3), got {received}.")
        flat = pixels.reshape(-1, 3)
        tokens = np.empty(len(flat), dtype=np.uint16)
        for start in range(0, len(flat), _BLOCK_PIXELS):
            block = slice(start, start + _BLOCK_PIXELS)
            codes = rgb_codes(flat[block])
            entries = self._table.take(codes, mode="wrap")  # codes are in range; "wrap" only skips the slow check
            missing = np.flatnonzero(entries == 0)
            for first in range(0, missing.size, _BLOCK_MISSING):
                part = missing[first : first + _BLOCK_MISSING]
                entries[part] = self._fill(codes[part])
            np.subtract(entries, 1, out=tokens[block])
        return tokens.reshape(pixels.shape[:-1])

    def _fill(self, codes: np.ndarray) -> np.ndarray:
        levels = split_codes(codes)
        cells = color_cells(*levels)
        entries = (self._lists.nearest(*(level.astype(np.float64) for level in levels), cells) + 1).astype(np.uint16)
        self._table[codes] = entries
        return entries


__all__ = [
    "CandidateLists",
    "PaletteLookup",
    "as_palette",
    "color_cells",
    "palette_from_clusters",
    "palette_hash",
    "rgb_codes",
    "split_codes",
]
