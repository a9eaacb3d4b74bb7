import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_igpt.data.masking import UNIFORM, Masking, smallest


RATES = st.one_of(st.floats(0.001, 1), st.just(UNIFORM))


@settings(deadline=None, max_examples=50)
@given(rate=RATES, num_tokens=st.integers(1, 40), seed=st.integers(-(2**40), 2**40), cut=st.integers(0, 9))
def test_masks_are_functions_of_seed_epoch_and_image(rate, num_tokens, seed, cut):
    masking = Masking(num_tokens, rate, seed)
    epochs, images = np.arange(9) % 3, np.arange(9) * 1000
    masks = masking(epochs, images)
    assert masks.dtype == bool and masks.shape == (9, num_tokens)
    assert masks.any(axis=1).all()
    order = np.random.default_rng(0).permutation(9)
    np.testing.assert_array_equal(masking(epochs[order], images[order]), masks[order])
    parts = [masking(epochs[part], images[part]) for part in (slice(cut), slice(cut, None))]
    np.testing.assert_array_equal(np.concatenate(parts), masks)


@pytest.mark.parametrize("rate", [0.15, UNIFORM])
def test_seeds_epochs_images_and_strata_have_masks_of_their_own(rate):
    images = np.arange(4)
    base = Masking(64, rate, 0)(0, images)
    others = (Masking(64, rate, 1)(0, images), Masking(64, rate, 0)(1, images), Masking(64, rate, 0)(0, images + 4))
    for other in (*others, Masking(64, rate, 0)(0, images, (1, 2)), np.roll(base, 1, axis=0)):
        assert (other != base).any(axis=1).all()


@pytest.mark.parametrize("rate", [0.02, 0.15, 0.9])
def test_a_fixed_rate_hides_every_token_on_its_own(rate):
    masks = Masking(50, rate, 3)(0, np.arange(40_000))
    error = np.sqrt(rate * (1 - rate) / len(masks))
    # Where none would be hidden, one is: (1 - rate)^50 of the images, spread over their 50 tokens.
    expected = rate + (1 - rate) ** 50 / 50
    assert np.abs(masks.mean(axis=0) - expected).max() < 5 * error
    together = (masks[:, 0] & masks[:, 1]).mean()
    assert together == pytest.approx(rate**2, abs=5 * np.sqrt(rate**2 / len(masks)))
    if rate == 0.9:
        assert masks.sum(axis=1).var() == pytest.approx(50 * rate * (1 - rate), rel=0.05)


def test_a_rate_of_one_hides_everything_and_a_tiny_one_something():
    assert Masking(30, 1.0)(0, np.arange(5)).all()
    assert (Masking(30, 1e-12)(0, np.arange(500)).sum(axis=1) == 1).all()


def test_uniform_numbers_of_hidden_tokens_are_stratified_over_the_images():
    """Any run of images has each number about equally often, far closer than independent draws would be."""
    for first in (0, 1234, 10**7):
        counts = Masking(16, UNIFORM, 5)(0, first + np.arange(1600)).sum(axis=1)
        numbers = np.bincount(counts, minlength=17)
        assert numbers[0] == 0
        assert np.abs(numbers[1:] - 100).max() <= 3
    short = Masking(16, UNIFORM, 5)(0, np.arange(16)).sum(axis=1)
    assert len(set(short)) >= 10


def test_an_images_number_is_uniform_over_epochs():
    counts = Masking(5, UNIFORM, 0)(np.arange(20_000), np.full(20_000, 7)).sum(axis=1)
    numbers = np.bincount(counts, minlength=6)[1:]
    assert ((numbers - 4000) ** 2 / 4000).sum() < 4 + 5 * np.sqrt(8)


def test_which_tokens_are_hidden_is_uniform_given_their_number():
    masks = Masking(5, UNIFORM, 0)(0, np.arange(60_000))
    pairs = masks[masks.sum(axis=1) == 2]
    codes, numbers = np.unique(pairs @ (2 ** np.arange(5)), return_counts=True)
    assert len(codes) == 10
    expected = len(pairs) / 10
    assert ((numbers - expected) ** 2 / expected).sum() < 9 + 5 * np.sqrt(18)


def test_strata_cover_the_numbers_of_hidden_tokens():
    images = np.arange(50)
    counts = np.stack([Masking(64, UNIFORM)(0, images, (part, 8)).sum(axis=1) for part in range(8)])
    for part, row in enumerate(counts):
        assert row.min() >= 1 + 8 * part and row.max() <= 8 * (part + 1)
    every = np.stack([Masking(6, UNIFORM)(0, images, (part, 6)).sum(axis=1) for part in range(6)])
    assert (every == np.arange(1, 7)[:, None]).all()


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan"), True, "random", None])
def test_other_rates_are_refused(rate):
    with pytest.raises(ValueError, match="`rate` must be above 0 and at most 1, or 'uniform', got"):
        Masking(64, rate)


@pytest.mark.parametrize("values", [3, 2**64 - 1])
def test_the_smallest_words_of_a_row_the_first_of_equal_ones(values):
    generator = np.random.default_rng(0)
    words = generator.integers(0, values, (50, 20), dtype=np.uint64, endpoint=True)
    counts = generator.integers(1, 21, 50)
    chosen = smallest(words, counts)
    for row, count, places in zip(words, counts, chosen, strict=True):
        expected = sorted(range(20), key=lambda place, row=row: (row[place], place))[:count]
        assert np.flatnonzero(places).tolist() == sorted(expected)
