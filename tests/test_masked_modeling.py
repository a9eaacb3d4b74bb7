"""The masked-pixel head: against the naive reference, by the definition of its objective, and what it refuses."""

import math

import pytest
import reference_igpt
import torch
from tiny_models import (
    assert_gradients_equal,
    random_tokens,
    randomize_,
    reference_weights,
    tiny_causal,
    tiny_config,
    tiny_masked,
)
from transformers import AutoModelForCausalLM, AutoModelForMaskedImageModeling

from hf_igpt import (
    ImageGPTForCausalImageModeling,
    ImageGPTForImageClassification,
    ImageGPTForMaskedImageModeling,
    ImageGPTModel,
)


def some_masks(config, batch: int = 2, seed: int = 3) -> torch.Tensor:
    """Masks with another number of hidden tokens for every image."""
    order = torch.rand((batch, config.n_positions), generator=torch.Generator().manual_seed(seed)).argsort(1)
    return order.argsort(1) < torch.arange(2, 2 + 3 * batch, 3)[:, None]


@pytest.mark.parametrize("overrides", [{}, {"image_size": [1, 4], "num_channels": 3}], ids=["palette", "rgb"])
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_it_equals_the_reference_in_logits_loss_and_every_gradient(overrides, dtype, atol, backend):
    model = tiny_masked(dtype, **overrides).train()
    model.set_attn_implementation(backend)
    tokens, weights = random_tokens(model.config, batch=3), reference_weights(model)
    masks = some_masks(model.config, batch=3)
    assert masks.sum(1).tolist() == [2, 5, 8]

    outputs = model(input_ids=tokens, bool_masked_pos=masks)
    outputs.loss.backward()
    head = weights["lm_head.weight"]
    logits, loss = reference_igpt.masked_model(tokens, masks, weights, head, num_heads=3)
    loss.backward()

    assert outputs.logits.shape == (3, 12, 10)
    torch.testing.assert_close(outputs.logits.double(), logits.detach(), atol=atol, rtol=0)
    torch.testing.assert_close(outputs.loss.double(), loss.detach(), atol=atol, rtol=0)
    assert_gradients_equal(model, weights, atol)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_changing_a_masked_pixel_moves_no_logit_and_an_unmasked_one_moves_all(backend, dtype):
    model = tiny_masked(dtype)
    model.set_attn_implementation(backend)
    tokens = random_tokens(model.config, batch=1)
    mask = some_masks(model.config)[1:]
    before = model(input_ids=tokens, bool_masked_pos=mask).logits[0]
    for position in range(model.config.n_positions):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 5) % 10
        after = model(input_ids=changed, bool_masked_pos=mask).logits[0]
        if mask[0, position]:
            assert torch.equal(after, before)
        else:
            assert (after != before).any(-1).all()


def test_hiding_a_pixel_is_not_any_colour_and_keeps_its_position():
    model = tiny_masked()
    tokens = random_tokens(model.config, batch=1)
    first, second = torch.zeros(2, 1, 12, dtype=torch.bool)
    first[0, 3], second[0, 4] = True, True
    hidden = [model(input_ids=tokens, bool_masked_pos=mask).logits for mask in (first, second)]
    assert not torch.allclose(*hidden)
    for value in range(10):
        tokens[0, 3] = value
        assert not torch.allclose(model(input_ids=tokens).logits, hidden[0])


def test_only_masked_tokens_are_scored_and_labels_default_to_the_tokens():
    model = tiny_masked()
    tokens, masks = random_tokens(model.config), some_masks(model.config)
    loss = model(input_ids=tokens, bool_masked_pos=masks).loss
    assert torch.equal(model(input_ids=tokens, bool_masked_pos=masks, labels=tokens).loss, loss)
    blanked = tokens.masked_fill(masks, 0)
    assert torch.equal(model(input_ids=blanked, bool_masked_pos=masks, labels=tokens).loss, loss)
    assert not torch.allclose(model(input_ids=blanked, bool_masked_pos=masks).loss, loss)
    labels = torch.where(masks, tokens, (tokens + 1) % 10)
    assert torch.equal(model(input_ids=tokens, bool_masked_pos=masks, labels=labels).loss, loss)


def test_an_images_mean_comes_before_the_mean_over_images():
    model = tiny_masked()
    tokens, masks = random_tokens(model.config), some_masks(model.config)
    each = [model(input_ids=t[None], bool_masked_pos=m[None]).loss for t, m in zip(tokens, masks, strict=True)]
    assert abs(each[0] - each[1]) > 0.1
    loss = model(input_ids=tokens, bool_masked_pos=masks).loss
    torch.testing.assert_close(loss, (each[0] + each[1]) / 2)
    share = model(input_ids=tokens, bool_masked_pos=masks, num_items_in_batch=torch.tensor(5 * 12)).loss
    torch.testing.assert_close(share, loss * 2 / 5)


def test_fresh_models_loss_is_the_log_of_the_values():
    model = ImageGPTForMaskedImageModeling(tiny_config())
    loss = model(input_ids=random_tokens(model.config), bool_masked_pos=some_masks(model.config)).loss
    assert loss.item() == pytest.approx(math.log(10), abs=1e-6)


def test_with_nothing_masked_the_loss_is_zero_and_so_is_every_gradient():
    model = tiny_masked()
    tokens = random_tokens(model.config)
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    loss = model(input_ids=tokens, bool_masked_pos=nothing).loss
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in model.transformer.h.parameters())
    assert model(input_ids=tokens, labels=tokens).loss.item() == 0
    assert model(input_ids=tokens).loss is None
    masks = some_masks(model.config)
    half = masks & torch.tensor([[True], [False]])
    alone = model(input_ids=tokens[:1], bool_masked_pos=masks[:1]).loss
    torch.testing.assert_close(model(input_ids=tokens, bool_masked_pos=half).loss, alone / 2)


def test_huge_logits_at_pixels_that_are_not_scored_do_no_harm():
    model = tiny_masked(torch.float32)
    model.lm_head.weight.data.mul_(1e20)
    tokens, masks = random_tokens(model.config), some_masks(model.config)
    assert model(input_ids=tokens, bool_masked_pos=masks & False).loss.item() == 0


@pytest.mark.parametrize(
    ("mask", "received"),
    [
        (torch.zeros(2, 12, dtype=torch.long), r"torch.int64 of shape \[2, 12\]"),
        (torch.zeros(2, 12), r"torch.float32 of shape \[2, 12\]"),
        (torch.zeros(1, 12, dtype=torch.bool), r"torch.bool of shape \[1, 12\]"),
        (torch.zeros(2, 3, 4, dtype=torch.bool), r"torch.bool of shape \[2, 3, 4\]"),
        ([[False] * 12] * 2, "list"),
    ],
)
def test_a_mask_of_another_shape_or_type_is_refused(mask, received):
    message = rf"`bool_masked_pos` must be a bool tensor of shape \[2, 12\].*got {received}"
    tokens = random_tokens(tiny_config())
    for model in (tiny_masked(), ImageGPTForImageClassification(tiny_config(is_causal=False))):
        with pytest.raises(ValueError, match=message):
            model(input_ids=tokens, bool_masked_pos=mask)


def test_next_pixel_models_take_no_mask():
    tokens = random_tokens(tiny_config())
    mask = some_masks(tiny_config())
    for model in (tiny_causal().transformer, ImageGPTForImageClassification(tiny_config())):
        with pytest.raises(ValueError, match="is_causal=True.*Leave the mask out"):
            model(input_ids=tokens, bool_masked_pos=mask)
    with pytest.raises(ValueError, match="Leave the mask out"):
        tiny_causal()(labels=tokens, bool_masked_pos=mask)


@pytest.mark.parametrize("labels", [torch.full((2, 12), 10), torch.full((2, 12), -100)])
def test_labels_that_are_no_values_are_refused(labels):
    with pytest.raises(ValueError, match=r"`labels` must be in \[0, 9\]"):
        tiny_masked()(input_ids=random_tokens(tiny_config()), labels=labels)


def test_labels_have_the_shape_of_the_tokens():
    tokens = random_tokens(tiny_config())
    with pytest.raises(ValueError, match=r"`labels` must have the shape of the input \[2, 12\], got \[2, 11\]"):
        tiny_masked()(input_ids=tokens, labels=tokens[:, 1:])


def test_tokens_must_be_given():
    with pytest.raises(ValueError, match="`input_ids` must be given"):
        tiny_masked()(labels=random_tokens(tiny_config()))


def test_the_direction_is_the_heads_and_is_stored(tmp_path):
    config = tiny_config()
    model = randomize_(ImageGPTForMaskedImageModeling(config))
    assert config.is_causal and not model.config.is_causal and not model.transformer.config.is_causal
    model.save_pretrained(tmp_path)
    tokens, masks = random_tokens(config), some_masks(config)
    expected = model.eval()(input_ids=tokens, bool_masked_pos=masks).logits
    loaded = AutoModelForMaskedImageModeling.from_pretrained(tmp_path)
    assert type(loaded) is ImageGPTForMaskedImageModeling
    assert torch.equal(loaded(input_ids=tokens, bool_masked_pos=masks).logits, expected)
    backbone = ImageGPTModel.from_pretrained(tmp_path)
    assert not backbone.config.is_causal
    hidden = backbone(input_ids=tokens, bool_masked_pos=masks).last_hidden_state
    assert torch.equal(loaded.lm_head(hidden), expected)


def test_checkpoints_of_the_other_objective_are_refused(tmp_path):
    tiny_masked().save_pretrained(tmp_path / "masked")
    tiny_causal().save_pretrained(tmp_path / "causal")
    for load in (ImageGPTForCausalImageModeling.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match="needs a checkpoint with `is_causal=True`.*saved with is_causal=False"):
            load(tmp_path / "masked")
    for config in (None, tiny_config(is_causal=False)):
        with pytest.raises(ValueError, match="needs a checkpoint with `is_causal=False`.*saved with is_causal=True"):
            ImageGPTForMaskedImageModeling.from_pretrained(tmp_path / "causal", config=config)


def test_a_masked_models_classifier_sees_the_mask_and_learns_to_fill_it():
    config = tiny_config(is_causal=False, num_labels=3, generative_loss_weight=0.5)
    model = randomize_(ImageGPTForImageClassification(config)).double()
    tokens, masks, classes = random_tokens(config), some_masks(config), torch.tensor([0, 2])
    outputs = model(input_ids=tokens, bool_masked_pos=masks, labels=classes)
    hidden = model.transformer(input_ids=tokens, bool_masked_pos=masks).last_hidden_state
    torch.testing.assert_close(model.pooled_features(tokens, bool_masked_pos=masks), hidden.mean(1))
    torch.testing.assert_close(outputs.logits, model.score(hidden.mean(1)))
    nats = -model.lm_head(hidden).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    by_hand = sum(row[mask].mean() for row, mask in zip(nats, masks, strict=True)) / 2
    torch.testing.assert_close(outputs.generative_loss, by_hand)
    torch.testing.assert_close(outputs.loss, outputs.class_loss + 0.5 * by_hand)
    unmasked = model(input_ids=tokens, labels=classes)
    assert unmasked.generative_loss.item() == 0
    assert not torch.allclose(unmasked.logits, outputs.logits)


def test_compiled_in_one_graph_it_equals_eager():
    torch._dynamo.reset()
    model = tiny_masked(torch.float32)
    tokens, masks = random_tokens(model.config), some_masks(model.config)
    inputs = {"input_ids": tokens, "bool_masked_pos": masks, "num_items_in_batch": torch.tensor(24)}
    expected = model(**inputs)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(**inputs)
    torch.testing.assert_close(compiled.loss, expected.loss, atol=1e-5, rtol=0)
    torch.testing.assert_close(compiled.logits, expected.logits, atol=1e-5, rtol=0)
