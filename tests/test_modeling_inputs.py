"""What the models accept and refuse: masks, positions, embeddings, lengths, ids, dtypes."""

import contextlib
import logging

import pytest
import torch
from tiny_models import random_tokens, randomize_, tiny_causal, tiny_config, with_start
from transformers import StaticCache
from transformers.utils.logging import warning_once

from hf_igpt import ImageGPTForCausalImageModeling, ImageGPTForImageClassification, ImageGPTModel
from hf_igpt.causal_generation_igpt import CACHE_NAME


@contextlib.contextmanager
def captured_warnings(caplog):
    """transformers' loggers do not pass on to the root logger, where pytest listens."""
    warning_once.cache_clear()
    logger = logging.getLogger("hf_igpt.modeling_igpt")
    logger.addHandler(caplog.handler)
    yield
    logger.removeHandler(caplog.handler)


BACKENDS = pytest.mark.parametrize("backend", ["eager", "sdpa"])


@BACKENDS
def test_attention_mask_hides_what_it_hides(backend):
    model = tiny_causal()
    model.set_attn_implementation(backend)
    ids = with_start(model.config, random_tokens(model.config))
    changed = ids.clone()
    changed[:, 3] = (changed[:, 3] + 5) % 10
    mask = torch.ones_like(ids)
    mask[:, 3] = 0
    hidden = model(input_ids=ids, attention_mask=mask).logits
    rest = [i for i in range(12) if i != 3]
    torch.testing.assert_close(hidden[:, rest], model(input_ids=changed, attention_mask=mask).logits[:, rest])
    unmasked = model(input_ids=ids).logits
    assert (hidden[:, 4:] - unmasked[:, 4:]).abs().max() > 0.01
    torch.testing.assert_close(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits, unmasked)


@BACKENDS
@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_prepared_mask_of_four_dimensions_is_used_as_it_is(backend, dtype):
    model = tiny_causal()
    model.set_attn_implementation(backend)
    ids = with_start(model.config, random_tokens(model.config))
    seen = torch.ones(12, 12).tril().bool()
    seen[7:, 3] = False
    additive = torch.zeros(12, 12, dtype=torch.float64).masked_fill(~seen, torch.finfo(torch.float64).min)
    mask = (seen if dtype == torch.bool else additive)[None, None].expand(2, 1, 12, 12)
    logits, plain = model(input_ids=ids, attention_mask=mask).logits, model(input_ids=ids).logits
    torch.testing.assert_close(logits[:, :7], plain[:, :7])
    assert ((logits[:, 7:] - plain[:, 7:]).abs().amax((0, 2)) > 1e-3).all()


@BACKENDS
def test_left_padding_with_positions_equals_no_padding(backend):
    model = tiny_causal()
    model.set_attn_implementation(backend)
    ids = with_start(model.config, random_tokens(model.config))[:, :6]
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 6, dtype=torch.long)], dim=1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[:, 3:], model(input_ids=ids).logits)


def test_position_ids_choose_the_position_embeddings():
    model = tiny_causal()
    ids = with_start(model.config, random_tokens(model.config))[:, :4]
    default = model(input_ids=ids).logits
    torch.testing.assert_close(model(input_ids=ids, position_ids=torch.arange(4)[None]).logits, default)
    shifted = model(input_ids=ids, position_ids=torch.arange(3, 7)[None]).logits
    assert (shifted - default).abs().max() > 0.1


def test_inputs_embeds_stand_for_input_ids():
    model = tiny_causal()
    ids = with_start(model.config, random_tokens(model.config))
    embeds = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)
    both = {"input_ids": ids, "inputs_embeds": embeds}
    for inputs in ({}, both):
        with pytest.raises(ValueError, match="exactly one of `input_ids` and `inputs_embeds`"):
            model(**inputs)


def test_logits_to_keep_are_the_last_ones():
    model = tiny_causal()
    ids = with_start(model.config, random_tokens(model.config))
    full = model(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids, logits_to_keep=2).logits, full[:, -2:])
    assert torch.equal(model(input_ids=ids, logits_to_keep=torch.tensor([0, 5])).logits, full[:, [0, 5]])


@pytest.mark.parametrize("length", [1, 2, 7, 12])
def test_fewer_tokens_than_the_grid_are_the_first_of_it(length):
    model = tiny_causal()
    tokens = random_tokens(model.config)
    full = model(labels=tokens).logits
    torch.testing.assert_close(model(labels=tokens[:, :length]).logits, full[:, :length])
    classifier = randomize_(ImageGPTForImageClassification(tiny_config(num_labels=3)))
    assert classifier(input_ids=tokens[:, :length], labels=torch.tensor([0, 1])).loss.isfinite()


def test_more_tokens_than_the_grid_are_refused():
    model = tiny_causal()
    tokens = random_tokens(model.config, length=13)
    message = r"has 12 tokens \(grid \(3, 4\), 1 per cell\), got 13"
    for inputs in ({"labels": tokens}, {"input_ids": tokens}):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
    with pytest.raises(ValueError, match=message):
        ImageGPTForImageClassification(tiny_config())(input_ids=tokens)
    for cache in (None, StaticCache(config=model.config, max_cache_len=20)):
        past = model(input_ids=tokens[:, :12], cache=cache, use_cache=True)[CACHE_NAME]
        with pytest.raises(ValueError, match=message):
            model(input_ids=tokens[:, 12:], cache=past)


@pytest.mark.parametrize(("value", "start_hint"), [(10, True), (11, False), (-1, False), (2**40, False)])
def test_tokens_that_are_no_value_are_refused_with_their_place(value, start_hint):
    tokens = random_tokens(tiny_config())
    tokens[1, 4] = value
    classifier = ImageGPTForImageClassification(tiny_config())
    for call in (lambda: tiny_causal()(labels=tokens), lambda: classifier(input_ids=tokens)):
        with pytest.raises(ValueError, match=rf"in \[0, 9\], got {value} at position 4 of image 1") as error:
            call()
        assert ("start token" in str(error.value)) == start_hint


@pytest.mark.parametrize("value", [11, -1])
def test_ids_outside_the_vocabulary_are_refused_by_the_backbone(value):
    ids = with_start(tiny_config(), random_tokens(tiny_config()))
    ids[1, 4] = value
    with pytest.raises(ValueError, match=rf"`input_ids` must be in \[0, 10\], got {value} at position 4 of image 1"):
        ImageGPTModel(tiny_config())(input_ids=ids)


@pytest.mark.parametrize(
    "tokens",
    [
        torch.zeros(12, dtype=torch.long),
        torch.zeros(1, 1, 12, dtype=torch.long),
        torch.zeros(2, 0, dtype=torch.long),
        torch.zeros(0, 12, dtype=torch.long),
        torch.zeros(2, 12),
        torch.zeros(2, 12, dtype=torch.bool),
        torch.zeros(2, 12, dtype=torch.uint16),
    ],
    ids=lambda tokens: f"{tokens.dtype} {list(tokens.shape)}",
)
def test_tokens_of_another_shape_or_kind_are_refused(tokens):
    with pytest.raises(ValueError, match=r"must be int64 of shape \(images, tokens\)"):
        tiny_causal()(labels=tokens)
    with pytest.raises(ValueError, match=r"must be int64 of shape \(images, tokens\)"):
        ImageGPTForImageClassification(tiny_config())(input_ids=tokens)


def test_int32_tokens_are_tokens():
    model = tiny_causal()
    tokens = random_tokens(model.config)
    assert model(labels=tokens.int()).loss == model(labels=tokens).loss


@pytest.mark.parametrize("value", [3, -1, -100])
def test_classes_that_the_head_does_not_have_are_refused(value):
    model = ImageGPTForImageClassification(tiny_config(num_labels=3))
    with pytest.raises(ValueError, match=rf"classes in \[0, 2\], got {value} for image 1"):
        model(input_ids=random_tokens(model.config), labels=torch.tensor([0, value]))


def test_classifier_without_tokens_says_so():
    with pytest.raises(ValueError, match="`input_ids` must be given"):
        ImageGPTForImageClassification(tiny_config())(pixel_values=torch.zeros(1, 3, 4, 4))


def test_labels_alone_take_no_mask_positions_or_cache():
    model = tiny_causal()
    tokens = random_tokens(model.config)
    for extra in (
        {"attention_mask": torch.ones_like(tokens)},
        {"position_ids": torch.arange(12)[None]},
        {"use_cache": True},
        {"logits_to_keep": 1},
        {"logits_to_keep": torch.tensor([0])},
    ):
        with pytest.raises(ValueError, match="must not be given"):
            model(labels=tokens, **extra)


def test_labels_beside_input_ids_give_transformers_shifted_loss_and_warn_without_start_token(caplog):
    model = tiny_causal()
    ids = random_tokens(model.config)
    log_probs = model(input_ids=ids).logits[:, :-1].log_softmax(-1)
    terms = -log_probs.gather(2, ids[:, 1:, None])[..., 0]
    with captured_warnings(caplog):
        outputs = model(input_ids=ids, labels=ids)
    assert outputs.loss.item() == pytest.approx(terms.mean().item(), abs=1e-12)
    assert "do not begin with the start token" in caplog.text
    caplog.clear()
    with captured_warnings(caplog):
        started = with_start(model.config, ids)
        model(input_ids=started, labels=started)
    assert not caplog.text

    ignored = ids.clone()
    ignored[:, 1:5] = -100
    assert model(input_ids=ids, labels=ignored).loss.item() == pytest.approx(terms[:, 4:].mean().item(), abs=1e-12)
    with pytest.raises(ValueError, match="got 10 at position 2 of image 0.*start token"):
        model(input_ids=ids, labels=torch.full_like(ids, 10).index_fill(1, torch.arange(3), 0))


def test_labels_beside_input_ids_have_their_shape():
    model = tiny_causal()
    ids = with_start(model.config, random_tokens(model.config))
    with pytest.raises(ValueError, match=r"must have the shape of the input \[2, 12\], got \[2, 11\]"):
        model(input_ids=ids, labels=ids[:, 1:])


def test_resizing_the_embeddings_is_refused():
    for model in (tiny_causal(), ImageGPTModel(tiny_config()), ImageGPTForImageClassification(tiny_config())):
        with pytest.raises(ValueError, match="cannot be resized"):
            model.resize_token_embeddings(20)
        assert model.get_input_embeddings().weight.shape[0] == 11


def test_trap_tied_embeddings_make_the_head_a_row_too_large():
    """transformers' head grows a row for the start token when tied, and samples it. Ours refuses to tie."""
    with pytest.raises(ValueError, match="`tie_word_embeddings` must be False"):
        tiny_config(tie_word_embeddings=True)
    config = tiny_config()
    config.tie_word_embeddings = True
    with pytest.raises(ValueError, match="`tie_word_embeddings` must be False"):
        ImageGPTForCausalImageModeling(config)
    model = tiny_causal()
    model.tie_weights()
    assert model.get_output_embeddings().weight.shape == (10, 24)


def test_causal_head_refuses_a_bidirectional_config_in_memory_and_on_disk(tmp_path):
    with pytest.raises(ValueError, match="needs `is_causal=True`, got a config with is_causal=False"):
        ImageGPTForCausalImageModeling(tiny_config(is_causal=False))
    ImageGPTModel(tiny_config(is_causal=False)).save_pretrained(tmp_path)
    for arguments in ({}, {"config": tiny_config()}, {"is_causal": True}):
        with pytest.raises(ValueError, match="needs a checkpoint with `is_causal=True`"):
            ImageGPTForCausalImageModeling.from_pretrained(tmp_path, **arguments)
    assert ImageGPTModel.from_pretrained(tmp_path).config.is_causal is False


def test_fields_set_after_construction_are_checked_by_the_model():
    config = tiny_config()
    config.num_attention_heads = 5
    with pytest.raises(ValueError, match="`hidden_size` must be divisible by `num_attention_heads`"):
        ImageGPTModel(config)
