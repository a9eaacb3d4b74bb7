"""Loss at a mask rate and the bound on the likelihood, against enumeration of all masks, orders and images."""

import itertools
import math

import numpy as np
import pytest
import torch
from reference_igpt import masked_model
from tiny_models import code_processor, random_tokens, randomize_, tiny_causal, tiny_config, tiny_masked

from hf_igpt import ImageGPTForMaskedImageModeling
from hf_igpt.data.masking import UNIFORM, Masking
from hf_igpt.evaluation import likelihood_bound, log_likelihood, masked_metrics, masked_nats_per_token


TOKENS, VALUES = 4, 3


@pytest.fixture(scope="module")
def model():
    return tiny_masked()


@pytest.fixture(scope="module")
def enumerable():
    config = tiny_config(vocab_size=VALUES + 1, image_size=[2, 2])
    return randomize_(ImageGPTForMaskedImageModeling(config)).double().eval()


@torch.no_grad()
def log_probabilities_by_order(model) -> torch.Tensor:
    """log p(image | order) of every image (81) and every order of its tokens (24), by the chain rule."""
    images = torch.tensor(list(itertools.product(range(VALUES), repeat=TOKENS)))
    columns = []
    for order in itertools.permutations(range(TOKENS)):
        total = torch.zeros(len(images), dtype=torch.float64)
        for step in range(TOKENS):
            hidden = torch.zeros_like(images, dtype=torch.bool)
            hidden[:, list(order[step:])] = True
            log_probs = model(input_ids=images, bool_masked_pos=hidden).logits.log_softmax(-1)
            total += log_probs[:, order[step]].gather(1, images[:, order[step], None])[:, 0]
        columns.append(total)
    return torch.stack(columns, dim=1)


def test_the_bound_lies_above_the_exact_likelihood_and_is_the_mean_over_orders(enumerable):
    by_order = log_probabilities_by_order(enumerable)
    exact = -(by_order.logsumexp(dim=1) - math.log(by_order.shape[1]))
    assert exact.neg().exp().sum().item() == pytest.approx(1, abs=1e-12)
    bounds = -by_order.mean(dim=1).numpy()
    assert (bounds >= exact.numpy()).all() and (bounds - exact.numpy()).max() > 0.01

    images = np.array(list(itertools.product(range(VALUES), repeat=TOKENS)))
    seeds = 300
    estimates = np.stack(
        [
            likelihood_bound(enumerable, images, num_masks=TOKENS, seed=seed, batch_size=81).nats_per_image
            for seed in range(seeds)
        ]
    )
    errors = estimates.std(axis=0, ddof=1) / math.sqrt(seeds)
    assert (errors > 0).all()
    assert (np.abs(estimates.mean(axis=0) - bounds) < 5 * errors).all()
    assert abs(estimates.mean() - bounds.mean()) < 0.01 * bounds.mean()


@pytest.mark.parametrize("num_masks", [1, 3])
def test_it_is_unbiased_with_fewer_masks_than_tokens(enumerable, num_masks):
    bounds = -log_probabilities_by_order(enumerable).mean(dim=1).numpy()
    images = np.array(list(itertools.product(range(VALUES), repeat=TOKENS)))
    means = [
        likelihood_bound(enumerable, images, num_masks=num_masks, seed=seed, batch_size=81).nats_per_image.mean()
        for seed in range(200)
    ]
    assert abs(np.mean(means) - bounds.mean()) < 5 * np.std(means, ddof=1) / math.sqrt(200)


def test_nats_equal_the_reference_averaged_over_masks(model):
    tokens = random_tokens(model.config, batch=5)
    weights = {name.removeprefix("transformer."): weight for name, weight in model.state_dict().items()}
    head = weights.pop("lm_head.weight")
    for rate in (0.3, UNIFORM):
        masking = Masking(12, rate, 4)
        nats = masked_nats_per_token(model, tokens.numpy(), masking, num_masks=3, batch_size=2)
        for image in range(5):
            losses = []
            for number in range(3):
                mask = torch.from_numpy(masking(0, np.array([image]), (number, 3)))
                losses.append(masked_model(tokens[image : image + 1], mask, weights, head, num_heads=3)[1].item())
            assert nats[image] == pytest.approx(np.mean(losses), abs=1e-12)
    assert nats.dtype == np.float64


def test_masks_belong_to_the_image_and_not_to_the_batch(model):
    tokens = random_tokens(model.config, batch=5).numpy()
    results = [likelihood_bound(model, tokens, batch_size=size).nats_per_image for size in (1, 2, 5)]
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-12)
    assert not np.allclose(likelihood_bound(model, tokens, seed=1).nats_per_image, results[0])


def test_metrics_say_what_was_measured(model):
    tokens = random_tokens(model.config, batch=6).numpy()
    seen = []
    metrics, bound = masked_metrics(
        model, tokens, mask_rate=0.4, num_masks=5, seed=2, batch_size=4, progress=seen.append
    )
    assert sum(seen) == 12
    at_rate = masked_nats_per_token(model, tokens, Masking(12, 0.4, 2), num_masks=5)
    assert metrics["masked_nats_per_token"] == pytest.approx(at_rate.mean())
    assert metrics["masked_nats_per_token_standard_error"] == pytest.approx(at_rate.std(ddof=1) / math.sqrt(6))
    assert metrics["bound_nats_per_token"] == pytest.approx(bound.nats_per_image.mean() / 12)
    error = bound.nats_per_image.std(ddof=1) / math.sqrt(6) / 12
    assert metrics["bound_nats_per_token_standard_error"] == pytest.approx(error)
    assert metrics["bound_bits_per_pixel"] == pytest.approx(metrics["bound_nats_per_token"] / math.log(2))
    assert (metrics["mask_rate"], metrics["num_masks"], metrics["num_images"]) == (0.4, 5, 6)
    single, _ = masked_metrics(model, tokens[:1])
    assert single["bound_nats_per_token_standard_error"] is None


def test_the_bound_of_codes_is_over_the_pixels_of_the_image(model):
    tokens = random_tokens(model.config, batch=3).numpy()
    cells, bound = likelihood_bound(model, tokens), likelihood_bound(model, tokens, processor=code_processor(6, 8))
    np.testing.assert_array_equal(bound.nats_per_image, cells.nats_per_image)
    assert bound.bits_per_pixel == pytest.approx(cells.bits_per_pixel / 4, rel=1e-12)
    metrics, _ = masked_metrics(model, tokens, processor=code_processor(6, 8))
    assert metrics["bound_bits_per_pixel"] == pytest.approx(cells.bits_per_pixel / 4, rel=1e-12)


def test_each_objective_has_its_own_measure(model):
    tokens = random_tokens(model.config).numpy()
    with pytest.raises(ValueError, match="use `likelihood_bound`"):
        log_likelihood(model, tokens)
    with pytest.raises(ValueError, match="is_causal=True"):
        likelihood_bound(tiny_causal(), tokens)
    with pytest.raises(ValueError, match="`num_masks` must be at least 1, got 0"):
        likelihood_bound(model, tokens, num_masks=0)
