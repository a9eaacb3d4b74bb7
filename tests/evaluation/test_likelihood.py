import math

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_igpt import causal_model
from tiny_models import code_processor, random_tokens, tiny_causal

from hf_igpt import IGPTImageProcessor
from hf_igpt.data.token_store import token_record, token_rows, write_record
from hf_igpt.evaluation import Likelihood, baselines, log_likelihood


@pytest.fixture(scope="module")
def model():
    return tiny_causal()


def images(model, count: int = 5) -> np.ndarray:
    return random_tokens(model.config, count).numpy()


def reference_nats(model, tokens: np.ndarray) -> list[float]:
    """From the naive transcription of the paper's code, in float64."""
    weights = {name.removeprefix("transformer."): weight for name, weight in model.state_dict().items()}
    head = weights.pop("lm_head.weight")
    one_by_one = [torch.from_numpy(row)[None] for row in tokens]
    losses = [causal_model(image, weights, head, model.config.num_attention_heads)[1] for image in one_by_one]
    return [float(loss) * tokens.shape[1] for loss in losses]


def dataset_of(tokens: np.ndarray) -> datasets.Dataset:
    feature = datasets.Sequence(datasets.Value("uint8"), length=tokens.shape[1])
    features = datasets.Features({"input_ids": feature, "label": datasets.Value("int64")})
    return datasets.Dataset.from_dict({"input_ids": tokens.tolist(), "label": [0] * len(tokens)}, features=features)


def test_nats_equal_the_reference(model):
    tokens = images(model)
    likelihood = log_likelihood(model, tokens)
    expected = reference_nats(model, tokens)
    assert np.ptp(expected) > 1
    assert likelihood.nats_per_image.dtype == np.float64
    np.testing.assert_allclose(likelihood.nats_per_image, expected, rtol=1e-12)
    assert likelihood.nats_per_token == pytest.approx(np.mean(expected) / 12, rel=1e-12)
    assert model(labels=torch.from_numpy(tokens)).loss.item() == pytest.approx(likelihood.nats_per_token, rel=1e-12)


def test_the_first_token_is_scored(model):
    tokens = np.repeat(images(model, 1), model.config.num_values, axis=0)
    tokens[:, 0] = np.arange(model.config.num_values)
    with torch.inference_mode():
        start = torch.tensor([[model.config.start_token_id]])
        first = model(input_ids=start).logits[0, -1].log_softmax(-1)
        rest = log_likelihood(model, tokens).nats_per_image + first.numpy()
        shifted = model(labels=torch.from_numpy(tokens)).logits.log_softmax(-1)
    expected = -shifted.gather(-1, torch.from_numpy(tokens)[..., None])[:, 1:, 0].sum(1)
    np.testing.assert_allclose(rest, expected.numpy(), rtol=1e-9)


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 9), order=st.permutations(range(7)))
def test_batches_and_order_make_no_difference(model, batch_size, order):
    tokens = images(model, 7)
    whole = log_likelihood(model, tokens, batch_size=7).nats_per_image
    np.testing.assert_allclose(
        log_likelihood(model, tokens[order], batch_size).nats_per_image, whole[order], rtol=1e-12
    )


def test_a_tokenized_split_is_scored_as_its_array(model):
    tokens = images(model, 6)
    split = dataset_of(tokens)
    expected = log_likelihood(model, tokens).nats_per_image
    np.testing.assert_array_equal(log_likelihood(model, split).nats_per_image, expected)
    chosen = split.select([4, 0, 2])
    np.testing.assert_array_equal(token_rows(chosen), tokens[[4, 0, 2]])
    np.testing.assert_allclose(log_likelihood(model, chosen).nats_per_image, expected[[4, 0, 2]], rtol=1e-12)
    together = datasets.concatenate_datasets([split.select([5]), split.select(range(2))])
    np.testing.assert_array_equal(token_rows(together), tokens[[5, 0, 1]])


def test_bits_per_pixel_of_codes_are_over_the_pixels_of_the_image(model):
    tokens, processor = images(model), code_processor(6, 8)
    cells = log_likelihood(model, tokens)
    per_pixel = cells.nats_per_image.mean() / (6 * 8) / math.log(2)
    likelihood = log_likelihood(model, tokens, processor=processor)
    assert (likelihood.pixels_per_image, cells.pixels_per_image) == (48, 12)
    assert likelihood.metrics()["bits_per_pixel"] == pytest.approx(per_pixel, rel=1e-12)
    assert likelihood.nats_per_token == cells.nats_per_token
    # The record of a split says it too, for who has no processor at hand.
    split = dataset_of(tokens)
    write_record(split, token_record(processor), [])
    assert log_likelihood(model, split).bits_per_pixel == pytest.approx(per_pixel, rel=1e-12)


def test_pixels_of_a_palette_are_the_cells(model):
    tokens = images(model)
    processor = IGPTImageProcessor({"height": 3, "width": 4}, palette=np.arange(30).reshape(10, 3) * 8)
    expected = log_likelihood(model, tokens).bits_per_pixel
    assert log_likelihood(model, tokens, processor=processor).bits_per_pixel == expected
    split = dataset_of(tokens)
    write_record(split, token_record(processor), [])
    assert log_likelihood(model, split).bits_per_pixel == expected


def test_bits_per_pixel_of_three_tokens_a_cell():
    model = tiny_causal(image_size=[2, 3], num_channels=3)
    tokens = images(model, 3)
    likelihood = log_likelihood(model, tokens)
    nats = np.array(reference_nats(model, tokens))
    assert (likelihood.tokens_per_image, likelihood.pixels_per_image) == (18, 6)
    assert likelihood.bits_per_pixel == pytest.approx(nats.mean() / math.log(2) / 6, rel=1e-12)
    assert likelihood.nats_per_token == pytest.approx(nats.mean() / 18, rel=1e-12)


def test_metrics():
    metrics = Likelihood(np.array([10.0, 14.0, 18.0]), tokens_per_image=4, pixels_per_image=2).metrics()
    assert metrics == {
        "nats_per_token": 3.5,
        "nats_per_token_standard_error": pytest.approx(4 / math.sqrt(3) / 4),
        "bits_per_pixel": pytest.approx(7 / math.log(2)),
        "num_images": 3,
        "tokens_per_image": 4,
    }
    assert Likelihood(np.array([10.0]), 4, 2).metrics()["nats_per_token_standard_error"] is None


def test_float32_and_bfloat16_models_are_summed_in_float64(model):
    tokens = images(model)
    expected = np.array(reference_nats(model, tokens))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        nats = log_likelihood(tiny_causal(dtype=dtype), tokens).nats_per_image
        assert nats.dtype == np.float64
        np.testing.assert_allclose(nats, expected, rtol=tolerance)


def test_the_model_is_left_as_it_was():
    model = tiny_causal(embd_pdrop=0.5, resid_pdrop=0.5).train()
    tokens = images(model)
    state = torch.get_rng_state()
    first = log_likelihood(model, tokens).nats_per_image
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(log_likelihood(model, tokens).nats_per_image, first)
    np.testing.assert_allclose(log_likelihood(model.eval(), tokens).nats_per_image, first)
    assert not model.training


def test_progress_counts_every_image(model):
    seen = []
    log_likelihood(model, images(model, 7), batch_size=3, progress=seen.append)
    assert seen == [3, 3, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tokens: tokens[:0], "at least one image .* got 0"),
        (lambda tokens: np.where(tokens == tokens[2, 3], 10, tokens), r"\[0, 9\] for this model, got 0 to 10"),
        (lambda tokens: tokens - 1, r"\[0, 9\] for this model, got -1 to"),
        (lambda tokens: dataset_of(tokens).select([]), "at least one image .* got 0"),
    ],
)
def test_tokens_that_are_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        log_likelihood(model, change(images(model, 8)))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(model, batch_size):
    with pytest.raises(ValueError, match="batch size of at least 1"):
        log_likelihood(model, images(model), batch_size=batch_size)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_an_error(value):
    model = tiny_causal()
    tokens = images(model)
    tokens[:, -1] = 0
    tokens[3, 0] = 9
    tokens[[0, 1, 2, 4], :-1] %= 9
    with torch.no_grad():
        model.transformer.wte.weight[9] = value
    with pytest.raises(ValueError, match="The likelihood of image 3 is nan"):
        log_likelihood(model, tokens)


def test_baselines_by_hand():
    train, held_out = np.array([[0, 0, 1], [0, 1, 0]]), np.array([[0, 2, 1]])
    # Counts with one added: 5, 3, 1, 1 of 10.
    expected = -(math.log(0.5) + math.log(0.1) + math.log(0.3)) / 3
    assert baselines(train, held_out, 4) == {
        "uniform_nats_per_token": math.log(4),
        "unigram_nats_per_token": pytest.approx(expected, rel=1e-12),
    }
    assert baselines(dataset_of(train), dataset_of(held_out), 4) == baselines(train, held_out, 4)
