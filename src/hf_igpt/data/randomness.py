"""Random numbers that are a function of their key, not of a running generator.

Every split, epoch order, crop and flip is computed from (purpose, seed, epoch, image index) alone. So it is the same
for any number of workers or processes, any split into batches, and after a resume; and, being plain integer
arithmetic, the same under every version of NumPy, which does not promise that for its generators' methods.
"""

import zlib

import numpy as np


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_WORD = 2**64 - 1


def random_words(purpose: str, seed: int, epochs: np.ndarray | int, indices: np.ndarray, count: int) -> np.ndarray:
    """64 random bits for each key and draw, by SplitMix64 (Steele, Lea and Flood, 2014) keyed by hashing.

    Args:
        purpose: What the numbers are for. Different purposes draw independent numbers from one seed: otherwise the
            images that come first in an epoch would all be cropped at the same corner.
        seed: Any integer.
        epochs: Epoch of each image, of shape (batch,), or one for all.
        indices: Image indices of shape (batch,).
        count: Numbers to draw for each image.

    Returns:
        uint64 array of shape (batch, count).
    """
    indices = np.atleast_1d(np.asarray(indices, dtype=np.int64)).astype(np.uint64)
    epochs = np.atleast_1d(np.asarray(epochs, dtype=np.int64)).astype(np.uint64)
    key = np.array([zlib.crc32(purpose.encode())], dtype=np.uint64)
    for part in (np.array([seed & _WORD], dtype=np.uint64), epochs, indices):
        key = _mix((key ^ part) + _GOLDEN)
    return _mix(key[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def random_integers(words: np.ndarray, high: int) -> np.ndarray:
    """Turns random words into integers in [0, high), int64. The bias is below high / 2**32."""
    return (((words >> np.uint64(32)) * np.uint64(high)) >> np.uint64(32)).astype(np.int64)


def random_permutation(purpose: str, seed: int, epoch: int, size: int) -> np.ndarray:
    """A permutation of range(size), int64, as a function of its arguments."""
    return np.argsort(random_words(purpose, seed, epoch, np.arange(size), 1)[:, 0], kind="stable")


def _mix(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
