import itertools

import numpy as np
import pytest
import torch
from tiny_models import random_tokens, tiny_causal

from hf_igpt.generation import complete, sample


@pytest.fixture(scope="module")
def model():
    return tiny_causal(torch.float32)


def probabilities(model) -> np.ndarray:
    """Of every image of a model with few of them, from teacher forcing."""
    values, length = model.config.num_values, model.config.n_positions
    images = torch.tensor(list(itertools.product(range(values), repeat=length)))
    with torch.inference_mode():
        chosen = model(labels=images).logits.double().log_softmax(-1).gather(-1, images[..., None])
    return chosen.squeeze(-1).sum(1).exp().numpy()


def frequencies(model, images: np.ndarray) -> np.ndarray:
    values, length = model.config.num_values, model.config.n_positions
    codes = images @ values ** np.arange(length - 1, -1, -1)
    return np.bincount(codes, minlength=values**length)


def assert_drawn_from(counts: np.ndarray, expected: np.ndarray) -> None:
    """Chi-square, at most five standard deviations above its mean."""
    expected = expected / expected.sum() * counts.sum()
    assert counts[expected == 0].sum() == 0
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert ((counts - expected) ** 2 / expected).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_images_come_with_the_models_probabilities():
    model = tiny_causal(torch.float32, vocab_size=4, image_size=[1, 3])
    expected = probabilities(model)
    assert expected.sum() == pytest.approx(1) and expected.max() > 3 * expected.min()
    images = sample(model, 6000, batch_size=3000)
    assert images.shape == (6000, 3) and images.dtype == np.int64
    assert_drawn_from(frequencies(model, images), expected)
    # The test itself can tell: the uniform distribution isn't taken for the model's.
    with pytest.raises(AssertionError):
        assert_drawn_from(frequencies(model, images), np.ones_like(expected))


def test_completions_come_with_the_conditional_probabilities():
    model = tiny_causal(torch.float32, vocab_size=4, image_size=[3, 1])
    expected = probabilities(model).reshape(3, 9)
    given = np.array([[0, 0, 0], [2, 1, 1]])
    drawn = complete(model, given, 1, num_samples=3000, batch_size=3000)
    assert drawn.shape == (2, 3000, 3)
    for image, first in enumerate((0, 2)):
        assert (drawn[image, :, 0] == first).all()
        assert_drawn_from(frequencies(model, drawn[image]).reshape(3, 9)[first], expected[first])


def test_arguments_of_generate_reach_it(model):
    greedy = sample(model, 3, top_k=1)
    assert (greedy == greedy[0]).all()
    with torch.inference_mode():
        logits = model(labels=torch.from_numpy(greedy[:1])).logits[0]
    np.testing.assert_array_equal(logits.argmax(-1).numpy(), greedy[0])
    cold = sample(model, 3, temperature=1e-4)
    np.testing.assert_array_equal(cold, greedy)
    assert (sample(model, 3) != greedy).any()


@pytest.mark.parametrize("rows_kept", [0, 1, 2])
def test_the_kept_rows_stay(model, rows_kept):
    given = random_tokens(model.config, 4).numpy()
    before = given.copy()
    drawn = complete(model, given, rows_kept, num_samples=3, batch_size=5)
    assert drawn.shape == (4, 3, 12) and drawn.min() >= 0 and drawn.max() < model.config.num_values
    kept = rows_kept * 4
    assert (drawn[:, :, :kept] == given[:, None, :kept]).all()
    assert (drawn[:, :, kept:] != given[:, None, kept:]).any(axis=(1, 2)).all()
    assert (drawn[:, 0] != drawn[:, 1]).any()
    np.testing.assert_array_equal(given, before)


def test_what_is_hidden_is_not_read(model):
    given = random_tokens(model.config, 2).numpy()
    other = given.copy()
    other[:, 4:] = 0
    np.testing.assert_array_equal(complete(model, given, 1), complete(model, other, 1))


def test_rows_of_three_tokens_a_cell():
    model = tiny_causal(torch.float32, image_size=[2, 2], num_channels=3)
    given = random_tokens(model.config, 2).numpy().astype(np.uint8)
    drawn = complete(model, given, 1)
    assert drawn.shape == (2, 1, 12) and (drawn[:, 0, :6] == given[:, :6]).all()


@pytest.mark.parametrize("rows_kept", [-1, 3, 100])
def test_rows_out_of_range(model, rows_kept):
    with pytest.raises(ValueError, match=f"`rows_kept` must be from 0 to 2 for a grid 3 high, got {rows_kept}"):
        complete(model, random_tokens(model.config, 2).numpy(), rows_kept)


@pytest.mark.parametrize("call", [lambda m: sample(m, 0), lambda m: sample(m, 2, batch_size=0)])
def test_nothing_to_draw(model, call):
    with pytest.raises(ValueError, match="at least one image and a batch size of at least 1"):
        call(model)


def test_seeds(model):
    first, again, other = sample(model, 5, seed=3), sample(model, 5, seed=3), sample(model, 5, seed=4)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    batches = sample(model, 6, seed=3, batch_size=2)
    assert len({tuple(map(tuple, batches[start : start + 2])) for start in (0, 2, 4)}) == 3
    np.testing.assert_array_equal(batches[:2], sample(model, 2, seed=3, batch_size=2))
    # No seed repeats another one's later batches.
    assert not any(np.array_equal(sample(model, 2, seed=seed), batches[2:4]) for seed in range(6))


def test_the_global_random_state_is_left_alone(model):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    drawn = sample(model, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    np.testing.assert_array_equal(sample(model, 2), drawn)


def test_the_mode_is_restored_and_dropout_is_off():
    model = tiny_causal(torch.float32, embd_pdrop=0.5, resid_pdrop=0.5)
    expected = sample(model, 2)
    np.testing.assert_array_equal(sample(model.train(), 2), expected)
    assert model.training


def test_progress_counts_every_image(model):
    seen = []
    complete(model, random_tokens(model.config, 3).numpy(), 2, num_samples=3, batch_size=4, progress=seen.append)
    assert seen == [4, 4, 1]
