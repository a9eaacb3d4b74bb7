"""Votes of one classifier over several masks of an image."""

import numpy as np

from hf_igpt.data.randomness import random_words


# The paper's number (section 4.6).
ENSEMBLE_MASKS = 5


def majority(votes: np.ndarray, num_classes: int, seed: int = 0) -> np.ndarray:
    """
    The class with most votes for every image, ties at random (paper, section 4.6), as a function of seed and image.

    Args:
        votes: classes of shape (masks, images).

    Returns:
        int64 of shape (images,).

    Raises:
        ValueError: another shape, or classes out of range.
    """
    votes = np.asarray(votes)
    if votes.ndim != 2 or votes.size == 0:
        raise ValueError(f"`votes` must be of shape (masks, images), none 0, got {list(votes.shape)}.")
    if votes.min() < 0 or votes.max() >= num_classes:
        raise ValueError(f"`votes` must be from 0 to {num_classes - 1}, got {votes.min()} to {votes.max()}.")
    images = np.arange(votes.shape[1])
    counts = np.zeros((votes.shape[1], num_classes), dtype=np.int64)
    for vote in votes:
        counts[images, vote] += 1
    lots = random_words("tie between classes", seed, 0, images, num_classes)
    return np.where(counts == counts.max(axis=1, keepdims=True), lots, 0).argmax(axis=1)
