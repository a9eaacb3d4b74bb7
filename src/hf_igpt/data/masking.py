"""Which pixels of an image are hidden, as a function of (seed, epoch, image index)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hf_igpt.data.randomness import random_words


if TYPE_CHECKING:
    from hf_igpt.configuration_igpt import ImageGPTConfig


UNIFORM = "uniform"
# Hidden share of the paper's masked models (section 2.1).
PAPER_RATE = 0.15
# Its multiples, taken modulo one, fill the unit interval evenly however many there are (Kronecker sequence).
_GOLDEN_RATIO = (np.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Masking:
    """
    Draws masks.

    Args:
        num_tokens: tokens of an image.
        rate: probability that a token is hidden, each on its own, in (0, 1]; `PAPER_RATE` is the paper's objective.
            Where it would hide none, one is hidden. Or "uniform": the number of hidden tokens is uniform over 1 to
            `num_tokens`, and which ones is uniform. The mean loss over hidden tokens then is, in expectation, an upper
            bound on the negative log-likelihood per token: averaged over all orders of the tokens, the chain rule has
            one term for each number of hidden tokens (Uria et al., 2014; Shi et al., arXiv 2406.04329).
        seed: any integer.
        num_channels: tokens of a cell of the grid, which are hidden together: one of three levels of a pixel is no
            riddle beside the other two. Everything above is then true of cells, and their tokens are predicted as if
            independent.

    Raises:
        ValueError: another rate, or tokens that are no whole cells.
    """

    num_tokens: int
    rate: float | str = PAPER_RATE
    seed: int = 0
    num_channels: int = 1

    def __post_init__(self):
        is_number = isinstance(self.rate, float | int) and not isinstance(self.rate, bool)
        if self.rate != UNIFORM and not (is_number and 0 < self.rate <= 1):
            raise ValueError(f"`rate` must be above 0 and at most 1, or {UNIFORM!r}, got {self.rate!r}.")
        if self.num_tokens % self.num_channels:
            raise ValueError(f"{self.num_tokens} tokens are no whole cells of {self.num_channels}.")

    @property
    def num_cells(self) -> int:
        """Cells of an image."""
        return self.num_tokens // self.num_channels

    def __call__(self, epochs: np.ndarray | int, images: np.ndarray, strata: tuple[int, int] = (0, 1)) -> np.ndarray:
        """
        The masks of images, bool of shape (images, tokens), True where hidden.

        Args:
            epochs: epoch of each image, or one for all.
            images: image indices of shape (images,).
            strata: for several masks of an image, which one of how many. Uniform numbers of hidden tokens come each
                from its own part of the range, so that together they cover it.
        """
        cells = self._cells(epochs, np.asarray(images, dtype=np.int64), *strata)
        return cells if self.num_channels == 1 else np.repeat(cells, self.num_channels, axis=1)

    def _cells(self, epochs: np.ndarray | int, images: np.ndarray, part: int, parts: int) -> np.ndarray:
        words = random_words(f"mask {part}", self.seed, epochs, images, self.num_cells)
        if self.rate == UNIFORM:
            # The k smallest of independent numbers are a uniform choice of k places.
            return smallest(words, self._uniform_counts(epochs, images, part, parts))
        masks = words < np.uint64(min(round(self.rate * 2.0**64), 2**64 - 1))
        empty = ~masks.any(axis=1)
        masks[empty, words[empty].argmin(axis=1)] = True
        return masks

    def _uniform_counts(self, epochs: np.ndarray | int, images: np.ndarray, part: int, parts: int) -> np.ndarray:
        # One offset an epoch makes every image's number uniform; the multiples spread neighbouring images evenly.
        offsets = random_words("mask rate", self.seed, epochs, np.zeros(1), 1)[:, 0] / 2.0**64
        points = (offsets + images * _GOLDEN_RATIO) % 1.0
        return 1 + np.minimum(((part + points) / parts * self.num_cells).astype(np.int64), self.num_cells - 1)


def masking_for(config: "ImageGPTConfig", rate: float | str, seed: int) -> Masking:
    """The masks of a model's images."""
    return Masking(config.n_positions, rate, seed, config.num_channels)


def smallest(words: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """True at the `counts` (rows,) smallest words of each row of (rows, places), the first of equal ones."""
    # Sorting values is ten times as fast as sorting places, which only equal words at the limit need.
    limits = np.take_along_axis(np.sort(words, axis=1), counts[:, None] - 1, axis=1)
    chosen = words <= limits
    tied = chosen.sum(axis=1) != counts
    if tied.any():
        ranks = words[tied].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        chosen[tied] = ranks < counts[tied, None]
    return chosen
