"""The density of an RGB colour given its palette token, which makes likelihoods of tokens bits/dim of RGB images.

A token says which cell of the lattice of 256^3 colours a colour lies in: those that have the same nearest palette
colour. p(rgb) = p(token) p(rgb | token) is a density over all colours, as long as p(rgb | token) sums to one over each
cell.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_igpt.token_kinds_igpt import TOKEN_KINDS


if TYPE_CHECKING:
    from datasets import DatasetDict

    from hf_igpt.data.sources import ImageSource
    from hf_igpt.image_processing_igpt import IGPTImageProcessor


UNIFORM, EMPIRICAL, EXACT = "uniform", "empirical", "exact"
DENSITIES = (UNIFORM, EMPIRICAL)

# What is added to the count of every colour: where no validation images choose one of the others.
FIXED_SMOOTHING = 0.1
SMOOTHINGS = (1e-6, 1e-5, 1e-4, 3e-4, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)

NO_DENSITY = (
    "VQ-VAE codes do not say what the pixels are, and this decoder has no density over them: bits/dim are undefined."
)


@dataclass(frozen=True)
class ColorCost:
    """
    What the colours of images cost, given their tokens.

    Args:
        density: "uniform" or "empirical" within a cell; "exact" where tokens are the colours; None where there is no
            density.
        nats_per_image: -log p(rgb | token) summed over an image's pixels, float64 of shape (images,); None without a
            density.
        reason: why there is none.
        smoothing: of an empirical density, what is added to the count of every colour.
        smoothing_from: where that is from: "validation" images, "given" or "fixed".
    """

    density: str | None
    nats_per_image: np.ndarray | None
    reason: str | None = None
    smoothing: float | None = None
    smoothing_from: str | None = None


def color_cost(processor: Any, tokens: Any) -> ColorCost:
    """
    What can be said of the colours from the tokens alone: nothing is left to say of exact tokens, the colours of a
    palette's cell are equally likely, and without a palette there is no density.

    Args:
        processor: the image processor that made the tokens.
        tokens: a tokenized split, or an integer array of shape (images, tokens).

    Raises:
        ValueError: as `uniform_color_nats`.
    """
    from hf_igpt.data.token_store import check_tokens, token_rows

    if hasattr(tokens, "info"):
        check_tokens(tokens, processor)
    if TOKEN_KINDS[processor.token_kind].is_exact:
        return ColorCost(EXACT, np.zeros(len(tokens)))
    if processor.palette is None:
        return ColorCost(None, None, NO_DENSITY)
    return ColorCost(UNIFORM, uniform_color_nats(processor.palette, token_rows(tokens)).sum(axis=1))


def empirical_color_cost(
    source: "ImageSource",
    tokens: "DatasetDict",
    processor: "IGPTImageProcessor",
    split: str,
    smoothing: float | None = None,
) -> ColorCost:
    """
    What the colours of a split cost with the frequencies of train within the cells, read from the images again.

    Args:
        source: the images, as `source_of_tokens` gives them.
        tokens: the splits that were made of them.
        processor: the image processor that made them, with a palette.
        split: the one to score.
        smoothing: as in `EmpiricalColors`; by default validation chooses it, unless it is what is scored.

    Raises:
        ValueError: as `pixels_of_tokens` and `EmpiricalColors`.
    """
    from hf_igpt.data.token_pixels import pixels_of_tokens

    def pixels(name: str) -> Iterator[np.ndarray]:
        return pixels_of_tokens(source, tokens, processor, name)

    chooses = smoothing is None and "validation" in tokens and split != "validation"
    density = EmpiricalColors.fit(
        processor.palette, pixels("train"), pixels("validation") if chooses else None, smoothing
    )
    nats = [density.nats(block).reshape(len(block), -1).sum(axis=1) for block in pixels(split)]
    chosen = "given" if smoothing is not None else "validation" if chooses else "fixed"
    return ColorCost(EMPIRICAL, np.concatenate(nats), None, density.smoothing, chosen)


def uniform_color_nats(palette: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """
    -log p(rgb | token) where all colours of a cell are equally likely: the logarithm of the cell's size, float64 of
    the shape of `tokens`.

    Raises:
        ValueError: a token isn't one of the palette's, or no colour has it.
    """
    sizes = cell_sizes(palette)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(sizes):
        raise ValueError(
            f"`tokens` must lie in 0 to {len(sizes) - 1}, the palette's colours, got {tokens.min()} to {tokens.max()}."
        )
    used = np.bincount(tokens.ravel(), minlength=len(sizes)) > 0
    if (empty := used & (sizes == 0)).any():
        raise ValueError(
            f"Token {int(empty.argmax())} is nearest to none of the 256^3 colours, so that no image has it: these "
            "tokens were not made by quantizing images with this palette."
        )
    return np.log(np.maximum(sizes, 1)).take(tokens)


def cell_sizes(palette: Any) -> np.ndarray:
    """
    How many of the 256^3 colours have each token, exactly as `PaletteLookup` gives tokens: int64 of shape (colours,),
    read-only. A second or two, once a process for each palette.
    """
    from hf_igpt.palette_igpt import as_palette

    return _cell_sizes(as_palette(palette).tobytes())


@lru_cache(maxsize=16)
def _cell_sizes(palette: bytes) -> np.ndarray:
    from hf_igpt.palette_igpt import PaletteLookup

    rows = np.frombuffer(palette).reshape(-1, 3)
    lookup, sizes = PaletteLookup(rows), np.zeros(len(rows), dtype=np.int64)
    block = np.empty((256, 256, 3), dtype=np.uint8)
    block[..., 1], block[..., 2] = np.indices((256, 256))
    for red in range(256):
        block[..., 0] = red
        sizes += np.bincount(lookup.quantize(block).ravel(), minlength=len(rows))
    sizes.setflags(write=False)
    return sizes


class EmpiricalColors:
    """
    p(rgb | token) from how often colours occur: (count + a) / (count of the cell + a * size of the cell). The added
    `a` draws towards the uniform density, so that colours nobody has seen have a probability too, and each cell sums
    to one.

    Args:
        palette: RGB rows in 0...255.
        counts: how often each colour occurs in the training images, int64 of shape (256**3,), as `count_colors` gives
            it.
        smoothing: `a`, above 0.

    Raises:
        ValueError: `smoothing` isn't a finite number above 0, or `counts` is no such array.
    """

    def __init__(self, palette: Any, counts: np.ndarray, smoothing: float = FIXED_SMOOTHING):
        from hf_igpt.palette_igpt import PaletteLookup

        if not (math.isfinite(smoothing) and smoothing > 0):
            raise ValueError(f"`smoothing` must be a finite number above 0, got {smoothing}.")
        if counts.shape != (1 << 24,) or counts.dtype.kind not in "iu" or counts.min() < 0:
            raise ValueError(
                f"`counts` must be 256^3 whole numbers of at least 0, got {counts.dtype} of shape {counts.shape}."
            )
        self.smoothing = smoothing
        self._counts, self._lookup = counts, PaletteLookup(palette)
        self._sizes = cell_sizes(palette)
        seen = np.flatnonzero(counts)
        self._totals = np.bincount(self._tokens(seen), weights=counts[seen], minlength=len(self._sizes))

    @classmethod
    def fit(
        cls,
        palette: Any,
        train: Iterable[np.ndarray],
        validation: Iterable[np.ndarray] | None = None,
        smoothing: float | None = None,
    ) -> "EmpiricalColors":
        """
        Counts the colours of training images.

        Args:
            train: their pixels, uint8 arrays of shape (..., 3) in batches of any size.
            validation: pixels that choose the smoothing: the best of `SMOOTHINGS` for them.
            smoothing: the smoothing to take; by default the chosen one, without validation images
                `FIXED_SMOOTHING`.
        """
        from hf_igpt.data.palette_fitting import count_colors

        density = cls(palette, count_colors(train), FIXED_SMOOTHING if smoothing is None else smoothing)
        if smoothing is None and validation is not None:
            held_out = count_colors(validation)
            codes = np.flatnonzero(held_out)
            tokens, weights = density._tokens(codes), held_out[codes]
            density.smoothing = min(SMOOTHINGS, key=lambda added: float(weights @ density._nats(tokens, codes, added)))
        return density

    def nats(self, pixels: np.ndarray) -> np.ndarray:
        """-log p(rgb | token), float64 of shape (...), of pixels, uint8 of shape (..., 3)."""
        from hf_igpt.palette_igpt import rgb_codes

        return self._nats(self._lookup.quantize(pixels), rgb_codes(pixels), self.smoothing)

    def _nats(self, tokens: np.ndarray, codes: np.ndarray, smoothing: float) -> np.ndarray:
        cells = np.log(self._totals + smoothing * self._sizes, where=self._sizes > 0, out=np.zeros(len(self._sizes)))
        return cells.take(tokens) - np.log(self._counts.take(codes) + smoothing)

    def _tokens(self, codes: np.ndarray) -> np.ndarray:
        from hf_igpt.palette_igpt import split_codes

        return self._lookup.quantize(np.stack(split_codes(codes), axis=-1).astype(np.uint8))
