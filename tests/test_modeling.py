"""What the models compute: against the naive reference, and by the definition of the objectives and their losses."""

import math

import pytest
import reference_igpt
import torch
from tiny_models import (
    assert_discriminates,
    assert_gradients_equal,
    random_tokens,
    randomize_,
    reference_weights,
    tiny_causal,
    tiny_config,
    with_start,
)

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel


GRIDS = {"palette": {}, "rgb": {"image_size": [1, 4], "num_channels": 3}, "square": {"image_size": 3}}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_causal_head_equals_the_reference_in_logits_loss_and_every_gradient(grid, dtype, atol, backend):
    model = tiny_causal(dtype, **GRIDS[grid]).train()
    model.set_attn_implementation(backend)
    tokens, weights = random_tokens(model.config, batch=3), reference_weights(model)

    outputs = model(labels=tokens)
    outputs.loss.backward()
    logits, loss = reference_igpt.causal_model(tokens, weights, weights["lm_head.weight"], num_heads=3)
    loss.backward()

    assert outputs.logits.shape == (3, model.config.n_positions, 10)
    torch.testing.assert_close(outputs.logits.double(), logits.detach(), atol=atol, rtol=0)
    torch.testing.assert_close(outputs.loss.double(), loss.detach(), atol=atol, rtol=0)
    assert_gradients_equal(model, weights, atol)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_bidirectional_backbone_equals_the_reference_in_value_and_every_gradient(backend):
    model = randomize_(ImageGPTModel(tiny_config(is_causal=False))).double().train()
    model.set_attn_implementation(backend)
    tokens, weights = random_tokens(model.config), reference_weights(model)
    nothing_masked = torch.ones(tokens.shape, dtype=torch.float64)

    hidden = model(input_ids=tokens).last_hidden_state
    rows = zip(tokens, nothing_masked, strict=True)
    expected = torch.stack([reference_igpt.masked_hidden(t, k, weights, num_heads=3)[0] for t, k in rows])
    direction = torch.randn(hidden.shape, dtype=torch.float64)
    (hidden * direction).sum().backward()
    (expected * direction).sum().backward()

    torch.testing.assert_close(hidden, expected, atol=1e-12, rtol=0)
    assert_gradients_equal(model, weights, 1e-11)


@pytest.mark.parametrize("is_causal", [True, False])
def test_pooled_features_of_every_layer_equal_the_reference(is_causal):
    model = randomize_(ImageGPTModel(tiny_config(is_causal=is_causal))).double().eval()
    tokens, weights = random_tokens(model.config), reference_weights(model)
    for image in range(2):
        ones = torch.ones(model.config.n_positions, dtype=torch.float64)
        if is_causal:
            _, features = reference_igpt.causal_hidden(tokens[image], weights, num_heads=3)
        else:
            _, features = reference_igpt.masked_hidden(tokens[image], ones, weights, num_heads=3)
        assert len(features) == model.config.num_hidden_layers + 1
        for layer, expected in enumerate(features):
            pooled = model.pooled_features(tokens, layer)[image]
            torch.testing.assert_close(pooled, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.pooled_features(tokens), model.pooled_features(tokens, 2))
    with pytest.raises(ValueError, match="`layer` must be from 0 to 2, got 3"):
        model.pooled_features(tokens, 3)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_changing_a_pixel_moves_no_logit_at_or_before_it(backend, dtype):
    model = tiny_causal(dtype)
    model.set_attn_implementation(backend)
    tokens = random_tokens(model.config, batch=1)
    before = model(labels=tokens).logits[0]
    for position in range(model.config.n_positions - 1):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 5) % model.config.num_values
        after = model(labels=changed).logits[0]
        assert torch.equal(after[: position + 1], before[: position + 1])
        assert not torch.equal(after[position + 1], before[position + 1])


def test_with_weights_that_overflow_float16_no_logit_leaks_from_a_later_pixel():
    # -65504, the lowest number of float16, is an ordinary attention weight here: an additive mask would not hide.
    model = randomize_(ImageGPTForCausalImageModeling(tiny_config(initializer_range=2.0)).eval())
    with torch.no_grad():
        for block in model.transformer.h:
            block.attn.c_attn.weight.mul_(400)
    model = model.half()
    for backend in ("eager", "sdpa"):
        model.set_attn_implementation(backend)
        tokens = random_tokens(model.config, batch=1)
        changed = tokens.clone()
        changed[0, 6] = (changed[0, 6] + 5) % 10
        before, after = model(labels=tokens).logits[0], model(labels=changed).logits[0]
        assert before.isfinite().all()
        assert torch.equal(before[:7], after[:7])


def test_changing_any_pixel_moves_every_position_of_a_bidirectional_model():
    model = randomize_(ImageGPTModel(tiny_config(is_causal=False))).eval()
    tokens = random_tokens(model.config, batch=1)
    before = model(input_ids=tokens).last_hidden_state
    for position in range(model.config.n_positions):
        changed = tokens.clone()
        changed[0, position] = (changed[0, position] + 5) % 10
        difference = (model(input_ids=changed).last_hidden_state - before).abs().amax(-1)
        assert (difference > 1e-5).all()


def test_trap_labels_cannot_score_the_first_pixel():
    """transformers' loss has one term fewer than the image has pixels; ours is the exact likelihood."""
    model = tiny_causal()
    tokens, weights = random_tokens(model.config), reference_weights(model)
    _, mean = reference_igpt.causal_model(tokens, weights, weights["lm_head.weight"], num_heads=3)
    log_probs = model(labels=tokens).logits.log_softmax(-1)
    terms = -log_probs.gather(2, tokens[..., None])[..., 0]
    assert terms.shape == (2, model.config.n_positions)
    assert model(labels=tokens).loss.item() == pytest.approx(terms.sum().item() / terms.numel(), abs=1e-12)
    assert terms.sum().item() == pytest.approx(mean.item() * terms.numel(), abs=1e-10)
    first = tokens.clone()
    first[:, 0] = (first[:, 0] + 1) % 10
    assert not torch.allclose(model(labels=first).logits.log_softmax(-1)[:, 0, 0], terms[:, 0])
    assert model(labels=first).loss != model(labels=tokens).loss


def test_the_probabilities_of_all_images_sum_to_one():
    """Over every image of three pixels of four values: the likelihood is one of images, with no mass lost."""
    model = tiny_causal(vocab_size=5, image_size=[1, 3])
    images = torch.cartesian_prod(*[torch.arange(4)] * 3)
    log_probs = model(labels=images).logits.log_softmax(-1).gather(2, images[..., None]).sum((1, 2))
    assert log_probs.std() > 0.5
    assert log_probs.exp().sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("grid", GRIDS)
def test_fresh_models_loss_is_exactly_the_log_of_the_values(grid):
    model = ImageGPTForCausalImageModeling(tiny_config(vocab_size=301, **GRIDS[grid])).double()
    tokens = random_tokens(model.config)
    assert model(labels=tokens).loss.item() == pytest.approx(math.log(300), abs=1e-14)
    classifier = ImageGPTForImageClassification(tiny_config(vocab_size=301, num_labels=7, **GRIDS[grid])).double()
    outputs = classifier(input_ids=tokens, labels=torch.tensor([0, 6]))
    assert outputs.class_loss.item() == pytest.approx(math.log(7), abs=1e-14)
    assert outputs.generative_loss.item() == pytest.approx(math.log(300), abs=1e-14)
    assert outputs.loss.item() == pytest.approx(math.log(7) + math.log(300), abs=1e-14)


def test_teacher_forcing_feeds_the_start_token_and_not_the_last_pixel():
    model = tiny_causal()
    tokens = random_tokens(model.config)
    by_hand = model(input_ids=with_start(model.config, tokens)).logits
    assert torch.equal(model(labels=tokens).logits, by_hand)
    last = tokens.clone()
    last[:, -1] = (last[:, -1] + 1) % 10
    assert torch.equal(model(labels=last).logits, by_hand)


@pytest.mark.parametrize("pooler_layer", [None, 0, 1, 2])
def test_classifier_pools_the_layer_asked_for_and_adds_the_generative_loss(pooler_layer):
    config = tiny_config(num_labels=3, pooler_layer=pooler_layer, generative_loss_weight=0.3)
    model = randomize_(ImageGPTForImageClassification(config)).double().eval()
    tokens, classes, weights = random_tokens(config), torch.tensor([2, 0]), reference_weights(model)

    outputs = model(input_ids=tokens, labels=classes)
    layer = config.num_hidden_layers if pooler_layer is None else pooler_layer
    pooled = [reference_igpt.causal_hidden(image, weights, num_heads=3)[1][layer] for image in tokens]
    logits = torch.stack(pooled) @ weights["score.weight"].T
    class_loss = -logits.log_softmax(-1)[[0, 1], classes].mean()
    _, generative_loss = reference_igpt.causal_model(tokens, weights, weights["lm_head.weight"], num_heads=3)

    torch.testing.assert_close(outputs.logits, logits, atol=1e-12, rtol=0)
    torch.testing.assert_close(outputs.class_loss, class_loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(outputs.generative_loss, generative_loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(outputs.loss, class_loss + 0.3 * generative_loss, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.pooled_features(tokens), torch.stack(pooled), atol=1e-12, rtol=0)
    assert outputs.hidden_states is None


def test_trap_no_joint_loss_every_parameter_of_the_classifier_learns():
    """transformers' classifier has no generative loss; with ours every parameter gets a gradient, without it fewer."""
    tokens, classes = random_tokens(tiny_config()), torch.tensor([2, 0])
    joint = randomize_(ImageGPTForImageClassification(tiny_config(num_labels=3)))
    joint(input_ids=tokens, labels=classes).loss.backward()
    assert all(parameter.grad.abs().max() > 1e-6 for parameter in joint.parameters())
    alone = randomize_(ImageGPTForImageClassification(tiny_config(num_labels=3, generative_loss_weight=0.0)))
    outputs = alone(input_ids=tokens, labels=classes)
    assert outputs.generative_loss is None
    assert not hasattr(alone, "lm_head")
    assert outputs.loss == outputs.class_loss


def test_no_loss_is_computed_where_a_pixel_is_given_to_the_position_that_predicts_it():
    config = tiny_config(use_start_token=False)
    for head, message in (
        (ImageGPTForCausalImageModeling, "needs `use_start_token=True`"),
        (ImageGPTForImageClassification, "`generative_loss_weight` must be 0 where `use_start_token` is False"),
    ):
        with pytest.raises(ValueError, match=message):
            head(config)
    ImageGPTForImageClassification(tiny_config(use_start_token=False, is_causal=False))


def test_classifier_without_start_token_sees_every_pixel():
    config = tiny_config(num_labels=3, use_start_token=False, generative_loss_weight=0.0)
    model = randomize_(ImageGPTForImageClassification(config)).double().eval()
    tokens = random_tokens(config)
    hidden = model.transformer(input_ids=tokens).last_hidden_state.mean(1)
    torch.testing.assert_close(model(input_ids=tokens).logits, hidden @ model.score.weight.T)


def test_trap_classifier_features_are_shifted_by_one_pixel():
    """transformers feeds its classifier no start token: pixel i sits where pretraining predicts pixel i."""
    config = tiny_config(num_labels=3)
    model = randomize_(ImageGPTForImageClassification(config)).double().eval()
    tokens = random_tokens(config)
    causal = ImageGPTForCausalImageModeling(config).double().eval()
    causal.transformer.load_state_dict(model.transformer.state_dict())
    pretrained = causal(labels=tokens, output_hidden_states=True).hidden_states[-1]
    outputs = model(input_ids=tokens, output_hidden_states=True)
    assert torch.equal(outputs.hidden_states[-1], pretrained)
    assert torch.equal(causal.pooled_features(tokens), model.pooled_features(tokens))


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_classifiers_other_losses_split_into_shares_as_the_class_loss_does(problem_type):
    config = tiny_config(num_labels=3, problem_type=problem_type)
    model = randomize_(ImageGPTForImageClassification(config)).double().eval()
    tokens, targets = random_tokens(config, batch=5), torch.rand(5, 3, dtype=torch.float64)
    whole = model(input_ids=tokens, labels=targets).loss
    shares = [
        model(input_ids=tokens[rows], labels=targets[rows], num_items_in_batch=torch.tensor(15)).loss
        for rows in (slice(0, 2), slice(2, 4), slice(4, 5))
    ]
    torch.testing.assert_close(sum(shares), whole)


def test_hidden_states_are_block_inputs_and_the_final_norm():
    model = tiny_causal()
    tokens = random_tokens(model.config)
    hidden_states = model(labels=tokens, output_hidden_states=True).hidden_states
    embedded = model.transformer.wte(with_start(model.config, tokens)) + model.transformer.wpe.weight
    assert len(hidden_states) == 3
    assert torch.equal(hidden_states[0], embedded)
    assert torch.equal(hidden_states[1], model.transformer.h[0](embedded))
    assert torch.equal(model.lm_head(hidden_states[2]), model(labels=tokens).logits)


def test_attention_weights_are_causal_and_sum_to_one():
    model = tiny_causal()
    model.set_attn_implementation("eager")
    attentions = model(labels=random_tokens(model.config), output_attentions=True).attentions
    assert [a.shape for a in attentions] == [(2, 3, 12, 12)] * 2
    for weights in attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 12, dtype=torch.float64))
        assert weights.triu(1).abs().max() == 0


def test_dropout_is_active_in_training_only_and_each_of_the_three_counts():
    tokens = random_tokens(tiny_config())
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        for backend in ("eager", "sdpa"):
            model = randomize_(ImageGPTForCausalImageModeling(tiny_config(**{name: 0.5})))
            model.set_attn_implementation(backend)
            assert_discriminates(model.eval())
            assert torch.equal(model(labels=tokens).logits, model(labels=tokens).logits)
            model.train()
            assert not torch.equal(model(labels=tokens).logits, model(labels=tokens).logits), name
